#include "formats/cuda/projection.h"

#include <cstdint>

#include "backends/cuda/kernels.h"
#include "core/arena.h"

namespace stepladder::cuda {
namespace {

bool halves_of_heads_are_tiles(const RopeAppend& r) {
  return r.kv.spec.head_dim % (2 * kTileRows) == 0 && !r.q_norm && !r.k_norm;
}

}  // namespace

void queue_projection(const ProjectArgs& a, const ProductKernel& kernel, cudaStream_t stream) {
  const PackedWeight& w = a.weight.packed;
  const int rows = a.live.capacity;
  Arena arena(a.workspace, SIZE_MAX);
  ProductArgs p{.live = a.live,
                .weight = w,
                .layout = fragment_layout(w.desc, w.n, w.k),
                .input = a.input,
                .finish = Finish::store,
                .out = {},
                .rope = {}};
  if (a.input.norm && !(kernel.norms && kernel.norms(rows, w.k))) {
    const Tensor x = arena.take_tensor(a.input.type, rows, w.k);
    rms_norm({a.live, a.input.x, a.input.pick, a.input.norm, a.input.eps, x}, stream);
    p.input = {.x = x, .type = a.input.type};
  }
  if (const auto* store = std::get_if<Store>(&a.result)) {
    p.out = store->y;
    return kernel.product(p, stream);
  }
  if (const auto* add = std::get_if<AddTo>(&a.result)) {
    p.finish = Finish::add, p.out = add->residual;
    return kernel.product(p, stream);
  }
  const auto* gate = std::get_if<Gate>(&a.result);
  if (gate && kernel.pairs && w.n % (2 * kTileRows) == 0) {
    p.finish = Finish::gate, p.out = gate->out;
    return kernel.product(p, stream);
  }
  const auto* rope = std::get_if<RopeAppend>(&a.result);
  if (rope && kernel.pairs && halves_of_heads_are_tiles(*rope)) {
    p.finish = Finish::rope_append, p.rope = *rope;
    return kernel.product(p, stream);
  }
  p.out = arena.take_tensor(DType::f32, rows, w.n);
  kernel.product(p, stream);
  if (gate)
    gated_act({a.live, p.out, gate->out}, stream);
  else
    rope_append({a.live, p.out, *rope}, stream);
}

}  // namespace stepladder::cuda
