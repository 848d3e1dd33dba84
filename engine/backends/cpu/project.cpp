// A projection on the CPU: the kernels it is composed of run one after the other, over pieces of
// the operator's workspace.
#include <algorithm>
#include <cstdint>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/share_out.h"
#include "core/arena.h"

namespace stepladder {
namespace {

// Weights are dealt out in pieces that take some microseconds to read, at most so many a thread: of
// two virtual cores one is often slowed down by what else its host runs.
constexpr size_t kPieceBytes = size_t{96} << 10;
constexpr int kMostPieces = 16;

/// What stands between the kernels; each is there when the projection has that step.
struct Between {
  Tensor x;         // [rows, k] 16-bit: the normed input
  QuantizeArgs x8;  // int8 activations
  Tensor y;         // [rows, n] f32: what goes on to another kernel

  Between(const ProjectArgs& a, Arena arena) : x(a.input.x), x8{}, y{} {
    const int rows = a.live.capacity, k = a.weight.packed.k, n = a.weight.packed.n;
    if (a.input.norm) x = arena.take_tensor(a.input.type, rows, k);
    if (a.weight.mode.act == Act::a8) {
      const int weight_group = a.weight.packed.desc.group ? a.weight.packed.desc.group : k;
      const int group = a.weight.mode.per == Per::group ? weight_group : k;
      x8 = {.live = a.live,
            .x = x,
            .group = group,
            .sum_group = weight_group,
            .q = arena.take_array<int8_t>(size_t(rows) * k),
            .scale = arena.take_array<float>(size_t(rows) * (k / group)),
            .sum = arena.take_array<int32_t>(size_t(rows) * (k / weight_group))};
    }
    if (std::holds_alternative<RopeAppend>(a.result) || std::holds_alternative<Gate>(a.result))
      y = arena.take_tensor(DType::f32, rows, n);
    bytes = arena.peak();
  }
  size_t bytes = 0;
};

}  // namespace

size_t CpuBackend::workspace_bytes(const ProjectArgs& a) const { return Between(a, Arena()).bytes; }

void CpuBackend::project(const ProjectArgs& a) {
  if (live_rows(a.live) == 0) return;
  Between between(a, Arena(a.workspace, SIZE_MAX));
  if (a.input.norm)
    rms_norm({a.live, a.input.x, a.input.pick, a.input.norm, a.input.eps, between.x});
  if (a.weight.mode.act == Act::a8) quantize(between.x8);
  LinearArgs product{.live = a.live,
                     .y = between.y,
                     .x = between.x,
                     .x8 = between.x8,
                     .act = a.weight.mode.act,
                     .weight = a.weight.packed,
                     .accumulate = false,
                     .kernel = a.weight.kernel};
  if (const auto* store = std::get_if<Store>(&a.result)) {
    product.y = store->y;
  } else if (const auto* add = std::get_if<AddTo>(&a.result)) {
    product.y = add->residual.slice(first_row(a.live), a.live.capacity);
    product.accumulate = true;
  }
  linear(product);
  if (const auto* rope = std::get_if<RopeAppend>(&a.result))
    rope_append({a.live, between.y, *rope});
  else if (const auto* gate = std::get_if<Gate>(&a.result))
    gated_act({a.live, between.y, gate->out});
}

void CpuBackend::rms_norm(const RmsNormArgs& a) {
  share_out(pool_, kernels_.rms_norm, a, worth_sharing(a.live, a.out.cols));
}
void CpuBackend::quantize(const QuantizeArgs& a) {
  share_out(pool_, kernels_.quantize, a, worth_sharing(a.live, a.x.cols));
}
void CpuBackend::linear(const LinearArgs& a) {
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
