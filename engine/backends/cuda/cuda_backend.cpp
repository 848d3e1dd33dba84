#include "backends/cuda/cuda_backend.h"

#include <dlfcn.h>

#include <algorithm>
#include <sstream>
#include <string>
#include <utility>

#include "backends/cuda/kernels.h"
#include "backends/cuda/kv_layout.h"
#include "backends/memory.h"
#include "core/error.h"

namespace stepladder {

using cuda::must;

namespace {

void check_kv(const KVSpec& s) {
  check_kv_shape(s, {.backend = "CUDA", .head_dim = cuda::kMaxHeadDim});
}

/// Whether the build has code for such a device: its own, one of an earlier minor version, or PTX
/// that the driver compiles; "a" stands for code that runs on one version alone.
bool has_code_for(int major, int minor) {
  std::istringstream all(SL_CUDA_ARCHITECTURES);
  for (std::string arch; std::getline(all >> std::ws, arch, ',');) {
    const int version = std::stoi(arch), here = 10 * major + minor;
    if (arch.ends_with("-virtual") ? here >= version
        : arch.ends_with("a")      ? here == version
                                   : version / 10 == major && here >= version)
      return true;
  }
  return false;
}

struct Version {
  int major = 0, minor = 0;
};
Version version_of(int device) {
  Version v;
  must(cudaDeviceGetAttribute(&v.major, cudaDevAttrComputeCapabilityMajor, device), "its version");
  must(cudaDeviceGetAttribute(&v.minor, cudaDevAttrComputeCapabilityMinor, device), "its version");
  return v;
}

int devices() {
  int n = 0;
  if (cudaGetDeviceCount(&n) == cudaSuccess) return n;
  cudaGetLastError();
  return 0;
}

std::string missing() {
  int n = 0;
  if (void* const driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL))
    dlclose(driver);
  else
    return "no NVIDIA driver is installed here";
  if (const cudaError_t status = cudaGetDeviceCount(&n); status != cudaSuccess) {
    cudaGetLastError();
    return std::string("no NVIDIA GPU can be used (") + cudaGetErrorString(status) +
           "); nvidia-smi should list one, with a driver for CUDA " +
           std::to_string(CUDART_VERSION / 1000);
  }
  std::string found;
  for (int i = 0; i < n; ++i) {
    const Version v = version_of(i);
    if (has_code_for(v.major, v.minor)) return "";
    found += (found.empty() ? "" : ", ") + std::to_string(v.major) + std::to_string(v.minor);
  }
  return n == 0 ? "no NVIDIA GPU was found"
                : "this build has code for " SL_CUDA_ARCHITECTURES " and the GPUs here are " +
                      found + ": build with -DSTEPLADDER_CUDA_ARCHITECTURES=" + found;
}

std::unique_ptr<Backend> open(int index, const BackendOptions& options) {
  check(options.isa.empty(), Code::unsupported, "isa \"", options.isa,
        "\": instruction sets are chosen on the CPU, not on ", options.device);
  return std::make_unique<CudaBackend>(index);
}

}  // namespace

namespace backend {
extern const BackendKind cuda{10, false, missing, devices, open};
}  // namespace backend

// ---- memory and the queue --------------------------------------------------------------------

CudaBackend::CudaBackend(int index) : index_(index) {
  use();
  must(cudaGetDeviceProperties(&properties_, index_), "the device's properties");
  check(has_code_for(properties_.major, properties_.minor), Code::unsupported, "cuda:", index_,
        " is a ", properties_.name, " of compute capability ", properties_.major, ".",
        properties_.minor, "; this build has code for ", SL_CUDA_ARCHITECTURES,
        ": build with -DSTEPLADDER_CUDA_ARCHITECTURES=", properties_.major, properties_.minor,
        ", or load with device=\"cpu\"");
  must(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream");
  must(cudaEventCreate(&began_), "an event");
  must(cudaEventCreate(&ended_), "an event");
  must(cudaEventCreate(&ended_before_), "an event");
  uploads_ = std::make_unique<cuda::Uploads>(stream_);
  reads_ = std::make_unique<cuda::Reads>(stream_);
}

CudaBackend::~CudaBackend() {
  cudaSetDevice(index_);
  cudaStreamSynchronize(stream_);
  reads_.reset();
  uploads_.reset();
  cudaEventDestroy(began_);
  cudaEventDestroy(ended_);
  cudaEventDestroy(ended_before_);
  cudaStreamDestroy(stream_);
}

void CudaBackend::use() const { must(cudaSetDevice(index_), "the device"); }

std::string CudaBackend::name() const {
  return "cuda/sm_" + std::to_string(properties_.major) + std::to_string(properties_.minor);
}

size_t CudaBackend::available_bytes() const {
  use();
  size_t free = 0, all = 0;
  must(cudaMemGetInfo(&free, &all), "the memory there is");
  return free;
}

void* CudaBackend::allocate(size_t bytes) {
  use();
  void* memory = nullptr;
  const cudaError_t status = cudaMalloc(&memory, std::max<size_t>(bytes, 1));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail(Code::out_of_memory, "cuda:", index_, " cannot give ", bytes,
         " bytes: ", available_bytes(), " of ", properties_.totalGlobalMem, " are free");
  }
  must(status, "device memory");
  must(cudaMemsetAsync(memory, 0, bytes, stream_), "clearing memory");
  return memory;
}

void CudaBackend::release(void* memory, size_t) noexcept {
  cudaSetDevice(index_);
  cudaStreamSynchronize(stream_);
  cudaFree(memory);
}

void CudaBackend::begin_work() {
  use();
  if (working_ || capturing_) return;
  working_ = true;
  must(cudaEventRecord(began_, stream_), "an event");
}

void CudaBackend::upload(void* to, const void* host_from, size_t bytes) {
  begin_work();
  uploads_->push(to, host_from, bytes);
}

void CudaBackend::read(void* host_to, const void* from, size_t bytes) {
  begin_work();
  reads_->push(host_to, from, bytes);
}

void CudaBackend::wait() {
  use();
  if (working_) must(cudaEventRecord(ended_, stream_), "an event");
  must(cudaStreamSynchronize(stream_), "waiting for the device");
  reads_->arrived();
  worked_ms_.reset(), idle_ms_.reset();
  if (!working_) return;
  working_ = false;
  float ms = 0;
  must(cudaEventElapsedTime(&ms, began_, ended_), "the time of a piece of work");
  worked_ms_ = ms;
  if (std::exchange(has_worked_, true)) {
    must(cudaEventElapsedTime(&ms, ended_before_, began_), "the time between two pieces of work");
    idle_ms_ = ms;
  }
  std::swap(ended_, ended_before_);
}

class CudaBackend::Graph final : public Recording {
 public:
  Graph(CudaBackend& backend, cudaGraph_t graph) : backend_(backend) {
    const cudaError_t status = cudaGraphInstantiate(&graph_, graph, 0);
    cudaGraphDestroy(graph);
    must(status, "a recording");
    // What the device keeps of it is taken now and not at the first replay.
    must(cudaGraphUpload(graph_, backend.stream_), "a recording");
  }
  ~Graph() override {
    cudaSetDevice(backend_.index_);
    cudaGraphExecDestroy(graph_);
  }
  void replay() override {
    backend_.begin_work();
    must(cudaGraphLaunch(graph_, backend_.stream_), "a replay");
  }

 private:
  CudaBackend& backend_;
  cudaGraphExec_t graph_ = nullptr;
};

std::unique_ptr<Recording> CudaBackend::record(const std::function<void()>& body) {
  use();
  cudaGraph_t graph = nullptr;
  must(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "recording");
  capturing_ = true;
  try {
    body();
  } catch (...) {
    capturing_ = false;
    cudaStreamEndCapture(stream_, &graph);
    if (graph) cudaGraphDestroy(graph);
    throw;
  }
  capturing_ = false;
  must(cudaStreamEndCapture(stream_, &graph), "recording");
  return std::make_unique<Graph>(*this, graph);
}

// ---- the cache -------------------------------------------------------------------------------

size_t CudaBackend::kv_bytes(const KVSpec& spec) const {
  check_kv(spec);
  return static_cast<size_t>(cuda::kv_elements(spec)) * sizeof(uint16_t);
}

void CudaBackend::read_entries(uint16_t* host_to, const KVView& kv, int slot, int first,
                               int count) {
  begin_work();
  const KVSpec& s = kv.spec;
  const size_t row = s.head_dim * sizeof(uint16_t), line = s.kv_heads * row;
  for (int layer = 0; layer < s.layers; ++layer)
    for (int plane = 0; plane < 2; ++plane, host_to += count * line / sizeof(uint16_t))
      for (int h = 0; h < s.kv_heads; ++h) {
        const auto* from = static_cast<const uint16_t*>(kv.data) +
                           cuda::keys_at(s, layer, slot, h) + plane * cuda::kv_plane(s) +
                           int64_t{first} * s.head_dim;
        must(cudaMemcpy2DAsync(host_to + size_t(h) * s.head_dim, line, from, row, row, count,
                               cudaMemcpyDeviceToHost, stream_),
             "reading entries");
      }
}

void CudaBackend::read_features(uint16_t* host_to, const KVView& kv, int slot, int first,
                                int count) {
  read(host_to, static_cast<const uint16_t*>(kv.data) + cuda::features_at(kv.spec, slot, first),
       cuda::feature_size(kv.spec) * count * sizeof(uint16_t));
}

// ---- operators -------------------------------------------------------------------------------

template <class Args>
void CudaBackend::launch(void (*kernel)(const Args&, cudaStream_t), const Args& args) {
  begin_work();
  kernel(args, stream_);
}

constexpr size_t kCounterBytes = cuda::kCounters * sizeof(uint32_t);

size_t CudaBackend::workspace_bytes(const ProjectArgs& a) const {
  const size_t bytes = steps_workspace_bytes(a);
  return bytes ? kCounterBytes + bytes : 0;
}
size_t CudaBackend::workspace_bytes(const AttentionArgs& a) const {
  use();
  return cuda::tiles_workspace_bytes(a);
}
void CudaBackend::project(const ProjectArgs& args) {
  ProjectArgs a = args;
  if (a.workspace) a.workspace = static_cast<std::byte*>(a.workspace) + kCounterBytes;
  if (a.weight.kernel)
    launch(static_cast<const cuda::CudaKernel*>(a.weight.kernel)->project, a);
  else
    run_steps(a, *this);
}

void CudaBackend::rms_norm(const RmsNormArgs& a) { launch(cuda::rms_norm, a); }
void CudaBackend::quantize(const QuantizeArgs& a) { launch(cuda::quantize, a); }
void CudaBackend::linear(const LinearArgs& a) { launch(cuda::described_linear, a); }
void CudaBackend::rope_append(const RopeAppendArgs& a) { launch(cuda::rope_append, a); }
void CudaBackend::gated_act(const GatedActArgs& a) { launch(cuda::gated_act, a); }

void CudaBackend::expand(const ExpandArgs& a) { launch(cuda::expand, a); }
void CudaBackend::embed(const EmbedArgs& a) { launch(cuda::embed, a); }
void CudaBackend::attention(const AttentionArgs& a) { launch(cuda::attention, a); }
void CudaBackend::feature(const FeatureArgs& a) { launch(cuda::feature, a); }
void CudaBackend::advance(const AdvanceArgs& a) { launch(cuda::advance, a); }
void CudaBackend::follow(const FollowArgs& a) { launch(cuda::follow, a); }
void CudaBackend::choose(const ChooseArgs& a) { launch(cuda::choose, a); }
void CudaBackend::logprobs(const LogprobArgs& a) { launch(cuda::logprobs, a); }
void CudaBackend::accept(const AcceptArgs& a) { launch(cuda::accept, a); }
void CudaBackend::keep(const KeepArgs& a) { launch(cuda::keep, a); }
void CudaBackend::count(const CountArgs& a) { launch(cuda::count, a); }
void CudaBackend::narrow(const NarrowArgs& a) { launch(cuda::narrow, a); }
void CudaBackend::join(const JoinArgs& a) { launch(cuda::join, a); }
void CudaBackend::top(const TopArgs& a) { launch(cuda::top, a); }
void CudaBackend::grow(const GrowArgs& a) { launch(cuda::grow, a); }
void CudaBackend::prune(const PruneArgs& a) { launch(cuda::prune, a); }

}  // namespace stepladder
