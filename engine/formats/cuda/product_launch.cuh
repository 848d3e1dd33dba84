// Which of the product's kernels runs for a format's scales and a number of rows.
#pragma once

#include "formats/cuda/one_row.cuh"
#include "formats/cuda/product.cuh"
#include "formats/cuda/projection.h"

namespace stepladder::cuda {

/// What of the current device shapes a launch.
struct DeviceShape {
  int multiprocessors, shared;  // bytes of one multiprocessor

  static DeviceShape current() {
    return {device_attribute(cudaDevAttrMultiProcessorCount),
            device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor)};
  }
};

/// What adds to the residual stands between attention, a gate and a rotation.
inline Side side_of(Finish f) { return paired(f) ? Side::shared : Side::registers; }

/// A launch's block a multiprocessor, for its tiles.
inline dim3 grid_of(ProductArgs& p, const DeviceShape& d, int together, int rows) {
  const int blocks = d.multiprocessors, items = items_of(p);
  p.most_tiles =
      round_up((items + blocks - 1) / blocks * (paired(p.finish) ? 2 : 1), together);
  return dim3(blocks, (p.live.capacity + rows - 1) / rows);
}

template <class P>
void launch_product(ProductArgs p, cudaStream_t stream) {
  const DeviceShape device = DeviceShape::current();
  const dim3 grid = grid_of(p, device, P::kTogether, P::kTokens * 8);
  const int rows = std::min(p.live.capacity, P::kTokens * 8);
  const int sums = P::kTiles * kSegments * rows * kTileRows * static_cast<int>(sizeof(float));
  launch_beside(product_kernel<P>, P::kResident == 2 ? side_of(p.finish) : Side::shared, grid,
                list_bytes(p.most_tiles) + kSegments * P::Stages::kRingBytes + sums, stream, p);
}

template <class P>
void launch_one_row(ProductArgs p, cudaStream_t stream) {
  const DeviceShape device = DeviceShape::current();
  const dim3 grid = grid_of(p, device, P::kTogether, 1);
  const int shared =
      list_bytes(p.most_tiles) + kSegments * P::Stages::kRingBytes + row_bytes<P>(p);
  const int room = (shared_beside(device.shared) - shared) / kTileSums / 2 * 2;
  p.batch_tiles = std::clamp(room, 2, round_up(p.most_tiles, 2));
  launch_beside(one_row_kernel<P>, side_of(p.finish), grid, shared + p.batch_tiles * kTileSums,
                stream, p);
}

/// As measured; the more scales a unit has, the fewer tiles and rows there are registers for.
template <class Codes, bool kBf16, int kSpans, DType kScale>
void product_of_rows(const ProductArgs& p, cudaStream_t stream) {
  constexpr bool kFew = kSpans > 2;
  if (p.live.capacity == 1) {
    constexpr int kTiles = together<Codes>(1, kSpans);
    return launch_one_row<Product<Codes, kBf16, kSpans, kScale, 1, kTiles, 2>>(p, stream);
  }
  if (p.live.capacity <= 8)
    return launch_product<Product<Codes, kBf16, kSpans, kScale, 1, (kSpans > 1 ? 2 : 4), 2>>(p, stream);
  if (p.live.capacity <= 16 || kFew)
    return launch_product<Product<Codes, kBf16, kSpans, kScale, 2, (kSpans > 1 ? 4 : 8), 1>>(
        p, stream);
  if constexpr (!kFew) launch_product<Product<Codes, kBf16, kSpans, kScale, 4, 2, 1>>(p, stream);
}

template <class Codes, bool kBf16, DType kScale>
void product_of_groups(const ProductArgs& p, cudaStream_t stream) {
  switch (p.layout.spans) {
    case 1:
      return product_of_rows<Codes, kBf16, 1, kScale>(p, stream);
    case 2:
      return product_of_rows<Codes, kBf16, 2, kScale>(p, stream);
    default:
      return product_of_rows<Codes, kBf16, 4, kScale>(p, stream);
  }
}

/// With 16-bit scales in groups, or any one a row.
template <class Codes, bool kBf16>
void product_in_groups(const ProductArgs& p, cudaStream_t stream) {
  if (p.layout.spans == 0) return product_of_rows<Codes, kBf16, 0, DType::f32>(p, stream);
  p.weight.desc.scale == DType::bf16 ? product_of_groups<Codes, kBf16, DType::bf16>(p, stream)
                                     : product_of_groups<Codes, kBf16, DType::f16>(p, stream);
}

/// A format's projection. Body<kBf16>::run is its product with tokens of bf16, or f16.
template <template <bool kBf16> class Body>
struct Products {
  static void queue(const ProductArgs& p, cudaStream_t stream) {
    p.input.type == DType::bf16 ? Body<true>::run(p, stream) : Body<false>::run(p, stream);
  }
  /// One row is normalized where it is multiplied, by every thread block for itself.
  static bool norms(int rows, int k) { return rows == 1 && even_row(k); }
  static void project(const ProjectArgs& a, cudaStream_t stream) {
    queue_projection(a, {.product = queue, .norms = norms, .pairs = true}, stream);
  }
};

}  // namespace stepladder::cuda
