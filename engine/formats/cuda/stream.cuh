// The weights of a thread block on their way to it. There is a block a multiprocessor, which has a
// run of tiles; its warps share out k.
#pragma once

#include "core/round_up.h"
#include "formats/cuda/product.h"
#include "formats/cuda/unit.cuh"

namespace stepladder::cuda {

/// The tiles of a block, and the units of each that are a warp's.
struct TileRun {
  const ProductArgs& p;
  int item, tiles, twice;  // twice: 1 where tiles come in pairs
  int first_unit, units_end;

  __device__ explicit TileRun(const ProductArgs& p) : p(p) {
    const auto share = [&](unsigned block) {
      return static_cast<int>(int64_t{block} * items_of(p) / gridDim.x);
    };
    item = share(blockIdx.x), twice = paired(p.finish) ? 1 : 0;
    tiles = (share(blockIdx.x + 1) - item) << twice;
    const int warp = warp_of_thread(), units = p.layout.units;
    first_unit = warp * units / kSegments, units_end = (warp + 1) * units / kSegments;
  }
  /// The i-th tile of the block.
  __device__ int tile(int i) const { return tile_of(p, item + (i >> twice), i & twice); }
  /// Where the tiles begin, in pieces of 16 bytes, into `begins`; the last one again where one of
  /// `together` is missing. All threads call.
  __device__ void list(uint32_t* begins, int together, uint32_t unit_bytes) const {
    const int listed = round_up(tiles, together);
    for (int i = static_cast<int>(threadIdx.x); i < listed && tiles > 0; i += kProductThreads)
      begins[i] = tile(min(i, tiles - 1)) * p.layout.units * (unit_bytes / 16u);
    __syncthreads();
  }
};

/// Bytes of a block's list of its tiles, which stands before the rings.
SL_INLINE int list_bytes(int tiles) { return round_up(tiles * 4, 128); }

/// A warp's weights. Stages are a unit of tiles that are computed together: all of a group, all
/// units, all groups.
template <class P>
class WeightStream {
 public:
  __device__ WeightStream(const TileRun& run, const uint32_t* begins, std::byte* rings)
      : run_(run),
        begins_(begins),
        ring_(rings + warp_of_thread() * P::Stages::kRingBytes),
        unit_(run.first_unit),
        more_(run.tiles > 0 && run.first_unit < run.units_end) {}

  /// Sends for the next stage, as far as there is one. All lanes call.
  __device__ void send() {
    const std::byte* pieces[P::kTogether] = {};
    if (!more_) return ring_.send_for(pieces);
    const std::byte* const from = static_cast<const std::byte*>(run_.p.weight.data) +
                                  static_cast<uint32_t>(unit_ * P::kUnitBytes);
#pragma unroll
    for (int i = 0; i < P::kTogether; ++i) pieces[i] = from + uint64_t{begins_[tile_ + i]} * 16;
    ring_.send_for(pieces);
    tile_ += P::kTogether;
    if (tile_ < min(group_ + P::kTiles, run_.tiles)) return;
    tile_ = group_;
    if (++unit_ < run_.units_end) return;
    unit_ = run_.first_unit, group_ += P::kTiles, tile_ = group_;
    more_ = group_ < run_.tiles;
  }
  /// Shared address of the next stage, once it is there. All lanes call.
  __device__ uint32_t take() { return ring_.take(); }

 private:
  const TileRun& run_;
  const uint32_t* begins_;
  typename P::Stages ring_;
  int group_ = 0, tile_ = 0, unit_;
  bool more_;
};

}  // namespace stepladder::cuda
