#include <cuda_runtime.h>

#include <algorithm>

#include "backends/cuda/device/tensor.cuh"
#include "backends/cuda/device/words.cuh"
#include "backends/cuda/staging.h"
#include "tests/support/cuda/kernels.h"
#include "tests/support/cuda/wgmma.cuh"

namespace stepladder::cuda::bits {
namespace {

/// Device memory of one call.
template <class T>
class Array {
 public:
  explicit Array(size_t count) : count_(count) {
    must(cudaMalloc(&data_, count * sizeof(T)), "device memory");
    must(cudaMemset(data_, 0, count * sizeof(T)), "clearing memory");
  }
  explicit Array(const std::vector<T>& v) : Array(v.size()) {
    must(cudaMemcpy(data_, v.data(), count_ * sizeof(T), cudaMemcpyHostToDevice), "an upload");
  }
  ~Array() { cudaFree(data_); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  T* data() { return data_; }
  std::vector<T> get() {
    std::vector<T> v(count_);
    must(cudaGetLastError(), "a kernel");
    must(cudaMemcpy(v.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), "a read");
    return v;
  }

 private:
  size_t count_;
  T* data_ = nullptr;
};

__global__ void sum_kernel(Fixed function, unsigned long long* sums) {
  constexpr uint32_t kPart = (uint64_t{1} << 32) / kFixedParts;
  const uint32_t first = blockIdx.y * kPart;
  uint64_t sum = 0;
  for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < kPart; i += gridDim.x * blockDim.x)
    sum += mixed(function, first + i);
  sum = warp_sum(sum);
  if (lane_of_thread() == 0) atomicAdd(sums + blockIdx.y, static_cast<unsigned long long>(sum));
}

/// Elements c, c + 1 of a row of 16-bit values.
__device__ uint32_t word_at(const uint16_t* row, int c) {
  return row[c] | uint32_t{row[c + 1]} << 16;
}

/// A warp a product.
template <bool kBf16>
__global__ void chains_kernel(int k, const uint16_t* a, const uint16_t* b, float* out) {
  const int g = lane_of_thread() / 4, t = lane_of_thread() % 4;
  const uint16_t* row = a + (int64_t{blockIdx.x} * 16 + g) * k;
  const uint16_t* column = b + (int64_t{blockIdx.x} * 8 + g) * k;
  float d[4] = {};
  for (int c = 2 * t; c < k; c += 16) {
    const uint32_t fragment[4] = {word_at(row, c), word_at(row + 8 * k, c), word_at(row, c + 8),
                                  word_at(row + 8 * k, c + 8)};
    add_product<kBf16>(d, fragment, word_at(column, c), word_at(column, c + 8));
  }
  float* to = out + (int64_t{blockIdx.x} * 16 + g) * 8 + 2 * t;
  to[0] = d[0], to[1] = d[1], to[64] = d[2], to[65] = d[3];
}

/// A 16-bit value of the seed: of A in matrix 0, of B in matrix 1.
template <bool kBf16>
__device__ uint32_t value(uint32_t seed, int matrix, int row, int c, int spread) {
  uint32_t h = seed ^ (uint32_t(row) * 0x9e3779b1u) ^ (uint32_t(2 * c + matrix) * 0x85ebca77u);
  h = (h ^ h >> 16) * 0x7feb352du, h = (h ^ h >> 15) * 0x846ca68bu, h ^= h >> 16;
  const int exponent = static_cast<int>((h >> 16) % (2 * spread + 1)) - spread;
  return kBf16 ? (h & 0x807fu) | uint32_t(127 + exponent) << 7
               : (h & 0x83ffu) | uint32_t(15 + exponent) << 10;
}
template <bool kBf16>
__device__ uint32_t pair(uint32_t seed, int matrix, int row, int c, int spread) {
  return value<kBf16>(seed, matrix, row, c, spread) | value<kBf16>(seed, matrix, row, c + 1, spread)
                                                          << 16;
}

#if SL_HAS_WGMMA
/// The fragments of k-step c of a warp's 16 rows of A, for mma.sync and wgmma alike.
template <bool kBf16>
__device__ void fragment_of_a(uint32_t (&a)[4], uint32_t seed, int c, int spread) {
  const int g = threadIdx.x / 4 % 8 + warp_of_thread() * 16, t = threadIdx.x % 4;
  for (int i = 0; i < 4; ++i)
    a[i] = pair<kBf16>(seed, 0, g + i % 2 * 8, c + 2 * t + i / 2 * 8, spread);
}
#endif

/// A block of four warps a tile: 64 rows of A by kN columns of B.
template <bool kBf16, int kN>
__global__ void __launch_bounds__(128)
    compare_kernel(int k, int spread, uint32_t seed, float* results, unsigned long long* counts) {
#if SL_HAS_WGMMA
  __shared__ __align__(128) uint16_t b[16 * kN];
  seed += blockIdx.x * 0x632be5abu;
  float* mine = results + (int64_t{blockIdx.x} * 128 + threadIdx.x) * (kN / 2);
  uint32_t a[4];
  {
    float d[kN / 2];
#pragma unroll
    for (float& x : d) x = 0.f;
    for (int c = 0; c < k; c += 16) {
      __syncthreads();
      // Pieces of eight columns by eight k, those of two halves of k side by side.
      for (int i = threadIdx.x; i < 16 * kN; i += 128)
        b[i] = static_cast<uint16_t>(
            value<kBf16>(seed, 1, i / 128 * 8 + i / 8 % 8, c + i / 64 % 2 * 8 + i % 8, spread));
      fragment_of_a<kBf16>(a, seed, c, spread);
      add_wide_product<kBf16>(d, a, b);
    }
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) mine[i] = d[i];
  }
  unsigned different = 0;
  const int g = threadIdx.x / 4 % 8, t = threadIdx.x % 4;
  for (int j = 0; j < kN / 8; ++j) {
    float d[4] = {};
    for (int c = 0; c < k; c += 16) {
      fragment_of_a<kBf16>(a, seed, c, spread);
      add_product<kBf16>(d, a, pair<kBf16>(seed, 1, 8 * j + g, c + 2 * t, spread),
                         pair<kBf16>(seed, 1, 8 * j + g, c + 2 * t + 8, spread));
    }
    for (int i = 0; i < 4; ++i)
      different += __float_as_uint(d[i]) != __float_as_uint(mine[4 * j + i]);
  }
  atomicAdd(counts, static_cast<unsigned long long>(kN / 2));
  atomicAdd(counts + 1, static_cast<unsigned long long>(different));
#endif
}

template <bool kBf16, int kN>
Compared compare(int k, int spread, int tiles, uint32_t seed) {
  Array<float> results(size_t(tiles) * 64 * kN);
  Array<unsigned long long> counts(2);
  compare_kernel<kBf16, kN><<<tiles, 128>>>(k, spread, seed, results.data(), counts.data());
  const auto found = counts.get();
  return {found[0], found[1]};
}

template <bool kBf16>
Compared compare(int n, int k, int spread, int tiles, uint32_t seed) {
  switch (n) {
    case 8:
      return compare<kBf16, 8>(k, spread, tiles, seed);
    case 16:
      return compare<kBf16, 16>(k, spread, tiles, seed);
    case 32:
      return compare<kBf16, 32>(k, spread, tiles, seed);
    case 64:
      return compare<kBf16, 64>(k, spread, tiles, seed);
    case 128:
      return compare<kBf16, 128>(k, spread, tiles, seed);
    default:
      return compare<kBf16, 256>(k, spread, tiles, seed);
  }
}

}  // namespace

std::vector<uint64_t> sums_over_words(Fixed function) {
  Array<unsigned long long> sums(kFixedParts);
  sum_kernel<<<dim3(16, kFixedParts), 256>>>(function, sums.data());
  const auto all = sums.get();
  return {all.begin(), all.end()};
}

std::vector<float> chains(bool bf16, int count, int k, const std::vector<uint16_t>& a,
                          const std::vector<uint16_t>& b) {
  Array<uint16_t> left(a), right(b);
  Array<float> out(size_t(count) * 16 * 8);
  (bf16 ? chains_kernel<true> : chains_kernel<false>)<<<count, kWarp>>>(k, left.data(),
                                                                        right.data(), out.data());
  return out.get();
}

Compared compare_wgmma(bool bf16, int n, int k, int spread, int tiles, uint32_t seed) {
  return bf16 ? compare<true>(n, k, spread, tiles, seed)
              : compare<false>(n, k, spread, tiles, seed);
}

}  // namespace stepladder::cuda::bits
