#include "backends/cpu/cpu_backend.h"

#include <cstring>
#include <utility>

#include "backends/cpu/isa.h"
#include "backends/cpu/kv_layout.h"
#include "backends/cpu/memory.h"
#include "backends/cpu/share_out.h"
#include "backends/memory.h"
#include "core/error.h"
#include "core/host_memory.h"

namespace stepladder {
namespace {

constexpr int kMaxHeadDim = 256;

/// Operators run at once here, so what is remembered is the body itself.
class Closure final : public Recording {
 public:
  explicit Closure(std::function<void()> body) : body_(std::move(body)) {}
  void replay() override { body_(); }

 private:
  std::function<void()> body_;
};

void check_kv(const KVSpec& s) { check_kv_shape(s, {.backend = "CPU", .head_dim = kMaxHeadDim}); }

std::string missing() { return ""; }
int devices() { return 1; }
std::unique_ptr<Backend> open(int, const BackendOptions& options) {
  return std::make_unique<CpuBackend>(options.isa, options.threads);
}

}  // namespace

namespace backend {
extern const BackendKind cpu{0, true, missing, devices, open};
}  // namespace backend

CpuBackend::CpuBackend(const std::string& isa, int threads)
    : kernels_(kernels_for(isa)), pool_(threads) {}
CpuBackend::~CpuBackend() = default;

std::string CpuBackend::name() const { return std::string("cpu/") + kernels_.isa; }

size_t CpuBackend::available_bytes() const { return available_host_bytes(); }
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
  return (feature_base(l, 0) + l.sequences * feature_stride(l)) * sizeof(uint16_t);
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

void CpuBackend::read_features(uint16_t* host_to, const KVView& kv, int slot, int first,
                               int count) {
  const KVLayout l = kv_layout(kv.spec);
  std::memcpy(host_to, static_cast<const uint16_t*>(kv.data) + feature_at(l, slot, first),
              l.feature * static_cast<size_t>(count) * sizeof(uint16_t));
}

void CpuBackend::expand(const ExpandArgs& a) { share_out(pool_, kernels_.expand, a, false); }
void CpuBackend::embed(const EmbedArgs& a) {
  share_out(pool_, kernels_.embed, a, worth_sharing(a.live, a.out.cols));
}
void CpuBackend::attention(const AttentionArgs& a) {
  share_out(pool_, kernels_.attention, a, true);
}
void CpuBackend::feature(const FeatureArgs& a) {
  share_out(pool_, kernels_.feature, a, worth_sharing(a.live, a.x.cols));
}
void CpuBackend::advance(const AdvanceArgs& a) { *a.at += a.by; }
void CpuBackend::follow(const FollowArgs& a) { share_out(pool_, kernels_.follow, a, false); }
void CpuBackend::choose(const ChooseArgs& a) { share_out(pool_, kernels_.choose, a, true); }
void CpuBackend::logprobs(const LogprobArgs& a) {
  if (*a.asked >= 0) share_out(pool_, kernels_.logprobs, a, true);
}
void CpuBackend::accept(const AcceptArgs& a) { share_out(pool_, kernels_.accept, a, false); }
void CpuBackend::keep(const KeepArgs& a) { share_out(pool_, kernels_.keep, a, true); }
void CpuBackend::count(const CountArgs& a) { share_out(pool_, kernels_.count, a, false); }
void CpuBackend::narrow(const NarrowArgs& a) {
  share_out(pool_, kernels_.narrow, a, worth_sharing(a.live, a.x.cols));
}
void CpuBackend::join(const JoinArgs& a) {
  share_out(pool_, kernels_.join, a, worth_sharing(a.live, a.out.cols));
}
void CpuBackend::top(const TopArgs& a) { share_out(pool_, kernels_.top, a, true); }
void CpuBackend::grow(const GrowArgs& a) { share_out(pool_, kernels_.grow, a, false); }
void CpuBackend::prune(const PruneArgs& a) { share_out(pool_, kernels_.prune, a, false); }

}  // namespace stepladder
