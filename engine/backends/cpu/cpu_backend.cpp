#include "backends/cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "backends/cpu/isa.h"
#include "backends/cpu/kv_layout.h"
#include "backends/cpu/memory.h"
#include "core/error.h"
#include "core/float_mode.h"

namespace stepladder {
namespace {

// Below this many values an operator ends on one thread before a second one has begun.
constexpr int64_t kWorthSharing = 8192;
// Weights are dealt out in pieces that take some microseconds to read, at most so many a thread: of
// two virtual cores one is often slowed down by what else its host runs.
constexpr size_t kPieceBytes = size_t{96} << 10;
constexpr int kMostPieces = 16;
constexpr int kMaxHeadDim = 256, kMaxScratch = 65535;

/// Runs an operator on every thread when its work is worth it, else on the caller alone. No
/// operator's result depends on how it is shared out.
template <class Args>
void run(ThreadPool& pool, void (*kernel)(const Args&, Lane), const Args& args, bool shared) {
  if (!shared || pool.threads() == 1) {
    const FloatMode mode;
    kernel(args, Lane{});
    return;
  }
  const int parts = pool.threads();
  pool.run([&](int part) { kernel(args, Lane{part, parts, nullptr}); });
}

bool worth_sharing(const Live& live, int64_t values_a_row) {
  return live_rows(live) * values_a_row >= kWorthSharing;
}

/// Operators run at once here, so what is remembered is the body itself.
class Closure final : public Recording {
 public:
  explicit Closure(std::function<void()> body) : body_(std::move(body)) {}
  void replay() override { body_(); }

 private:
  std::function<void()> body_;
};

void check_kv(const KVSpec& s) {
  check(s.layers > 0 && s.kv_heads > 0 && s.sequences > 0 && s.scratch >= 0 && s.positions > 0,
        Code::invalid_argument, "kv cache: layers=", s.layers, " kv_heads=", s.kv_heads,
        " sequences=", s.sequences, " scratch=", s.scratch, " positions=", s.positions,
        ": all must be positive");
  check(s.positions % kAttentionStep == 0, Code::invalid_argument,
        "kv cache: positions=", s.positions, " is not a multiple of ", kAttentionStep);
  check(s.head_dim > 0 && s.head_dim % 2 == 0 && s.head_dim <= kMaxHeadDim, Code::unsupported,
        "kv cache: head_dim=", s.head_dim, "; the CPU backend takes even ones up to ", kMaxHeadDim);
  check(s.scratch <= kMaxScratch, Code::unsupported, "kv cache: a tree of ", s.scratch,
        " nodes; the CPU backend takes up to ", kMaxScratch);
  check(s.dtype == DType::bf16 || s.dtype == DType::f16, Code::unsupported, "kv cache: dtype ",
        stepladder::name(s.dtype), "; the CPU backend keeps bf16 or f16");
}

}  // namespace

CpuBackend::CpuBackend(const std::string& isa, int threads)
    : kernels_(kernels_for(isa)), pool_(threads) {}
CpuBackend::~CpuBackend() = default;

std::string CpuBackend::name() const { return std::string("cpu/") + kernels_.isa; }

void* CpuBackend::allocate(size_t bytes) { return allocate_host(bytes, pool_); }
void CpuBackend::release(void* memory, size_t bytes) noexcept { release_host(memory, bytes); }

void CpuBackend::upload(void* to, const void* host_from, size_t bytes) {
  if (bytes) std::memcpy(to, host_from, bytes);
}
void CpuBackend::read(void* host_to, const void* from, size_t bytes) {
  if (bytes) std::memcpy(host_to, from, bytes);
}
void CpuBackend::wait() {}

std::unique_ptr<Recording> CpuBackend::record(const std::function<void()>& body) {
  return std::make_unique<Closure>(body);
}

size_t CpuBackend::kv_bytes(const KVSpec& spec) const {
  check_kv(spec);
  const KVLayout l = kv_layout(spec);
  return static_cast<size_t>(spec.layers) * l.sequences * kv_stride(l) * sizeof(uint16_t);
}

void CpuBackend::read_entries(uint16_t* host_to, const KVView& kv, int slot, int first, int count) {
  const KVLayout l = kv_layout(kv.spec);
  const int dim = kv.spec.head_dim;
  for (int layer = 0; layer < kv.spec.layers; ++layer) {
    const uint16_t* base = static_cast<const uint16_t*>(kv.data) + kv_base(l, layer, slot);
    for (int p = first; p < first + count; ++p)
      for (int h = 0; h < kv.spec.kv_heads; ++h)
        for (int d = 0; d < dim; ++d)
          *host_to++ = base[key_block(l, h, p) + in_key_block(p % kKeyBlock, d)];
    for (int p = first; p < first + count; ++p)
      for (int h = 0; h < kv.spec.kv_heads; ++h, host_to += dim)
        std::memcpy(host_to, base + value_at(l, h, p), l.head_dim * sizeof(uint16_t));
  }
}

void CpuBackend::expand(const ExpandArgs& a) { run(pool_, kernels_.expand, a, false); }
void CpuBackend::embed(const EmbedArgs& a) {
  run(pool_, kernels_.embed, a, worth_sharing(a.live, a.out.cols));
}
void CpuBackend::rms_norm(const RmsNormArgs& a) {
  run(pool_, kernels_.rms_norm, a, worth_sharing(a.live, a.out.cols));
}
void CpuBackend::quantize(const QuantizeArgs& a) {
  run(pool_, kernels_.quantize, a, worth_sharing(a.live, a.x.cols));
}
void CpuBackend::linear(const LinearArgs& a) {
  const LinearKernelFn kernel = a.kernel ? a.kernel : kernels_.described_linear;
  const int threads = pool_.threads();
  if (threads == 1) return run(pool_, kernel, a, false);
  // As many for each thread: one piece over would keep the others waiting.
  const auto each = static_cast<int64_t>(a.weight.bytes / (kPieceBytes * threads)) + 1;
  const int parts = threads * static_cast<int>(std::min<int64_t>(each, kMostPieces));
  next_piece_ = 0;
  pool_.run([&](int part) { kernel(a, Lane{part, parts, nullptr, &next_piece_}); });
}
void CpuBackend::rope_append(const RopeAppendArgs& a) {
  run(pool_, kernels_.rope_append, a, worth_sharing(a.live, a.qkv.cols));
}
void CpuBackend::attention(const AttentionArgs& a) { run(pool_, kernels_.attention, a, true); }
void CpuBackend::gated_act(const GatedActArgs& a) {
  // Each value takes a power and a division.
  run(pool_, kernels_.gated_act, a, worth_sharing(a.live, 4 * a.out.cols));
}
void CpuBackend::choose(const ChooseArgs& a) { run(pool_, kernels_.choose, a, true); }
void CpuBackend::logprobs(const LogprobArgs& a) { run(pool_, kernels_.logprobs, a, true); }
void CpuBackend::accept(const AcceptArgs& a) { run(pool_, kernels_.accept, a, false); }
void CpuBackend::keep(const KeepArgs& a) { run(pool_, kernels_.keep, a, true); }
void CpuBackend::count(const CountArgs& a) { run(pool_, kernels_.count, a, false); }

}  // namespace stepladder
