// The product of one row, which also norms it: the sums of product.cuh, bit for bit.
//
// What a round of one token takes is what its kernels do before, between and behind their reads of
// weights. So activations wait in shared memory, what results are put together with is sent for
// before the product, and a block's warps meet once, behind all of its tiles.
#pragma once

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/norm.cuh"
#include "formats/cuda/finish.cuh"
#include "formats/cuda/stream.cuh"

namespace stepladder::cuda {

static_assert(kProductThreads == kNormThreads);

/// A warp's units of a row that is 16-bit already, through a ring of its own.
template <class P>
class RowStream {
 public:
  static constexpr int kUnits = 8, kUnitBytes = P::kUnit * 2;
  static constexpr int kBytes = kSegments * kUnits * kUnitBytes;  // of a block
  // A unit is sent for in one group of copies with the weights that are taken kStages - 1 later.
  static_assert(kUnits >= P::kStages);

  __device__ RowStream(const TileRun& run, const uint16_t* x, uint16_t* rings)
      : run_(run),
        x_(x),
        ring_(rings + warp_of_thread() * kUnits * P::kUnit),
        unit_(run.first_unit) {}

  /// How many stand in the ring at once: all there are, which then stay, or as many as it has.
  __device__ int held() const { return min(run_.units_end - run_.first_unit, kUnits); }
  __device__ uint32_t begin() const { return shared_address(ring_); }
  __device__ void send_first() {
    const int units = run_.units_end - run_.first_unit;
    for (int i = 0; i < min(units, kUnits - (units > kUnits)); ++i) send_unit();
  }
  /// Sends for one more, if they do not stay. Past the end of k stand zeros. All lanes call.
  __device__ void send() {
    if (run_.units_end - run_.first_unit > kUnits) send_unit();
  }

 private:
  __device__ void send_unit() {
    const int lane = lane_of_thread(), from = unit_ * P::kUnit + lane * 8;
    const bool there = from < run_.p.weight.k;
    if (lane < P::kUnit / 8) copy_16(ring_ + at_ + lane * 8, x_ + (there ? from : 0), there);
    at_ = at_ + P::kUnit == kUnits * P::kUnit ? 0 : at_ + P::kUnit;
    unit_ = unit_ + 1 == run_.units_end ? run_.first_unit : unit_ + 1;
  }

  const TileRun& run_;
  const uint16_t* x_;
  uint16_t* ring_;
  int unit_, at_ = 0;
};

/// Bytes of a block's activations, in front of its sums.
template <class P>
int row_bytes(const ProductArgs& p) {
  return p.input.norm ? p.layout.units * P::kUnit * 2 : RowStream<P>::kBytes;
}
/// Bytes of a tile's sums.
constexpr int kTileSums = kSegments * kTileRows * static_cast<int>(sizeof(float));

template <class P>
__global__ void __maxnreg__(kRegistersBeside) one_row_kernel(const __grid_constant__ ProductArgs p) {
  if (threadIdx.x >= kProductThreads) return;
  extern __shared__ __align__(128) std::byte shared[];
  constexpr int kBlocks = P::kBlocks, kTogether = P::kTogether;
  if (p.finish != Finish::rope_append) start_next();  // as in product.cuh
  const int warp = warp_of_thread(), lane = lane_of_thread();
  const TileRun run(p);
  uint32_t* const begins = reinterpret_cast<uint32_t*>(shared);
  run.list(begins, kTogether, P::kUnitBytes);
  std::byte* const rings = shared + list_bytes(p.most_tiles);
  WeightStream<P> weights(run, begins, rings);
#pragma unroll 1
  for (int i = 0; i < P::kStages - 1; ++i) {
    if (i > 0) end_group();
    weights.send();
  }

  uint16_t* const row = reinterpret_cast<uint16_t*>(rings + kSegments * P::Stages::kRingBytes);
  float* const sums = reinterpret_cast<float*>(
      row + (p.input.norm ? p.layout.units * P::kUnit : RowStream<P>::kBytes / 2));
  RowStream<P> x(run, static_cast<const uint16_t*>(p.input.x.data), row);
  RowPlace at_row;
  bool live;
  int held;         // units that stand one behind the other
  uint32_t x_from;  // shared address of the warp's first
  if (p.input.norm) {
    norm_even_row(
        P::kBf16 ? DType::bf16 : DType::f16,
        [&] {
          wait_for_inputs();
          at_row = row_place(p, 0), live = live_rows(p.live) > 0;
          const int i = first_row(p.live);
          return row_of<const float>(p.input.x, p.input.pick ? p.input.pick[i] : i);
        },
        p.input.norm, p.input.eps, p.weight.k, row);
    for (int i = p.weight.k + static_cast<int>(threadIdx.x); i < p.layout.units * P::kUnit;
         i += kProductThreads)
      row[i] = 0;
    __syncthreads();
    end_group();
    held = run.units_end - run.first_unit;
    x_from = shared_address(row + run.first_unit * P::kUnit);
  } else {
    wait_for_inputs();
    x.send_first();
    end_group();
    at_row = row_place(p, 0), live = live_rows(p.live) > 0;
    held = x.held(), x_from = x.begin();
  }
  if (p.finish == Finish::rope_append) start_next();
  const uint32_t x_end = x_from + held * P::kUnit * 2;
  uint32_t x_at = x_from;

  // The output that the thread finishes first.
  const auto output = [&](int i) {
    return run.tile(i / kTileRows << run.twice) * kTileRows + i % kTileRows;
  };
  const auto outputs = [&](int tiles) { return (tiles >> run.twice) * kTileRows; };
  const int thread = static_cast<int>(threadIdx.x);
  Place first;
  if (live && thread < outputs(run.tiles) && output(thread) < p.weight.n)
    first = place_of(p, at_row, output(thread));
  if (!p.input.norm) {
    wait_for_groups<0>();
    __syncwarp();
  }

  for (int batch = 0; batch < run.tiles; batch += p.batch_tiles) {
    const int end = min(batch + p.batch_tiles, run.tiles);
    for (int at = batch; at < end; at += kTogether) {
      float sum[kTogether][1][4] = {};
      for (int unit = run.first_unit; unit < run.units_end; ++unit) {
        const uint32_t stage = weights.take();
        if (!p.input.norm) x.send();
        weights.send(), end_group();
        uint4 xs[kBlocks][1];
#pragma unroll
        for (int block = 0; block < kBlocks; ++block)
          xs[block][0] = load_shared<uint4>(x_at + block * kBlock * 2 + lane % 4 * 16);
        x_at = x_at + P::kUnit * 2 == x_end ? x_from : x_at + P::kUnit * 2;
        multiply_unit<P>(stage, xs, sum);
      }
      // [tile][segment][16]
      float* const own = sums + ((at - batch) * kSegments + warp) * kTileRows + lane / 4;
      if (lane % 4 == 0)
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          own[i * kSegments * kTileRows] = sum[i][0][0];
          own[i * kSegments * kTileRows + 8] = sum[i][0][2];
        }
    }
    __syncthreads();
    const auto total = [&](int tile, int in_tile, int n) {
      const float* from = sums + tile * kSegments * kTileRows + in_tile;
      float y = from[0];
#pragma unroll
      for (int s = 1; s < kSegments; ++s) y = y + from[s * kTileRows];
      return with_scale_and_bias(p, y * (1.f / P::Codes::kOne), n);
    };
    for (int i = thread; live && i < outputs(end - batch); i += kProductThreads) {
      const int tile = i / kTileRows << run.twice, in_tile = i % kTileRows;
      const int n = output(outputs(batch) + i);
      if (n >= p.weight.n) continue;
      const Place place = batch == 0 && i == thread ? first : place_of(p, at_row, n);
      if (run.twice)
        put_pair(p, place, total(tile, in_tile, n),
                 total(tile + 1, in_tile, run.tile(batch + tile + 1) * kTileRows + in_tile));
      else
        put(p, place, total(tile, in_tile, n));
    }
    if (end < run.tiles) __syncthreads();
  }
}

}  // namespace stepladder::cuda
