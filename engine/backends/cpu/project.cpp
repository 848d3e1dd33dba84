// A projection on the CPU: how each of the kernels it is composed of is shared out.
#include <algorithm>
#include <cstdint>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/share_out.h"

namespace stepladder {
namespace {

// Weights are dealt out in pieces that take some microseconds to read, at most so many a thread: of
// two virtual cores one is often slowed down by what else its host runs.
constexpr size_t kPieceBytes = size_t{96} << 10;
constexpr int kMostPieces = 16;

}  // namespace

size_t CpuBackend::workspace_bytes(const ProjectArgs& a) const { return steps_workspace_bytes(a); }

void CpuBackend::project(const ProjectArgs& a) {
  if (live_rows(a.live) > 0) run_steps(a, *this);
}

void CpuBackend::rms_norm(const RmsNormArgs& a) {
  share_out(pool_, kernels_.rms_norm, a, worth_sharing(a.live, a.out.cols));
}
void CpuBackend::quantize(const QuantizeArgs& a) {
  share_out(pool_, kernels_.quantize, a, worth_sharing(a.live, a.x.cols));
}
void CpuBackend::linear(const LinearArgs& args) {
  LinearArgs a = args;
  if (a.accumulate) a.y = a.y.slice(first_row(a.live), a.live.capacity);
  const LinearFn kernel = a.kernel ? function_of(*a.kernel) : kernels_.described_linear;
  const int threads = pool_.threads();
  if (threads == 1) return share_out(pool_, kernel, a, false);
  // As many for each thread: one piece over would keep the others waiting.
  const auto each = static_cast<int64_t>(a.weight.bytes / (kPieceBytes * threads)) + 1;
  const int parts = threads * static_cast<int>(std::min<int64_t>(each, kMostPieces));
  next_piece_ = 0;
  pool_.run([&](int part) { kernel(a, Lane{part, parts, &next_piece_}); });
}
void CpuBackend::rope_append(const RopeAppendArgs& a) {
  share_out(pool_, kernels_.rope_append, a, worth_sharing(a.live, a.qkv.cols));
}
void CpuBackend::gated_act(const GatedActArgs& a) {
  // Each value takes a power and a division.
  share_out(pool_, kernels_.gated_act, a, worth_sharing(a.live, 4 * a.out.cols));
}

}  // namespace stepladder
