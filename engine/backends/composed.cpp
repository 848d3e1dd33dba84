#include "backends/composed.h"

#include <cstdint>
#include <variant>

#include "core/arena.h"

namespace stepladder {
namespace {

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

size_t steps_workspace_bytes(const ProjectArgs& a) { return Between(a, Arena()).bytes; }

void run_steps(const ProjectArgs& a, ProjectSteps& steps) {
  Between between(a, Arena(a.workspace, SIZE_MAX));
  if (a.input.norm)
    steps.rms_norm({a.live, a.input.x, a.input.pick, a.input.norm, a.input.eps, between.x});
  if (a.weight.mode.act == Act::a8) steps.quantize(between.x8);
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
    product.y = add->residual;
    product.accumulate = true;
  }
  steps.linear(product);
  if (const auto* rope = std::get_if<RopeAppend>(&a.result))
    steps.rope_append({a.live, between.y, *rope});
  else if (const auto* gate = std::get_if<Gate>(&a.result))
    steps.gated_act({a.live, between.y, gate->out});
}

}  // namespace stepladder
