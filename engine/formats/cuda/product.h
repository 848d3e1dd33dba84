// A projection as the products of fragments run it: norm, product, bias and what becomes of it.
#pragma once

#include <cuda_runtime_api.h>

#include "backends/operators.h"
#include "formats/cuda/fragments.h"

namespace stepladder::cuda {

enum class Finish { store, add, rope_append, gate };

struct ProductArgs {
  Live live;
  PackedWeight weight;
  FragmentLayout layout;
  ProjectInput input;
  Finish finish;
  Tensor out;          // of store, add and gate
  RopeAppend rope;     // of rope_append
  int most_tiles = 0;   // of a thread block, rounded up to whole stages
  int batch_tiles = 0;  // of one row: whose sums are kept until all are there; even
};

/// Whether tiles come in pairs whose rows belong together: gate and up, halves of a head.
SL_INLINE bool paired(Finish f) { return f == Finish::gate || f == Finish::rope_append; }
/// Tiles, or pairs of them.
SL_INLINE int items_of(const ProductArgs& p) {
  return paired(p.finish) ? p.layout.tiles / 2 : p.layout.tiles;
}
/// The tile of an item, or one of its two.
SL_INLINE int tile_of(const ProductArgs& p, int item, int which) {
  if (p.finish == Finish::gate) return item + which * (p.layout.tiles / 2);
  if (p.finish != Finish::rope_append) return item;
  const int half = p.rope.kv.spec.head_dim / (2 * kTileRows);  // tiles
  return item / half * 2 * half + item % half + which * half;
}

}  // namespace stepladder::cuda
