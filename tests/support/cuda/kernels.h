// Kernels of the tests' own: ones that break a rule of exactness on purpose, and ones that ask a
// chip for the bits that the others rely on. What takes no stream returns when the device is done;
// errors of the device are thrown as by cuda::must().
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "backends/operators.h"
#include "core/noise.h"

namespace stepladder::cuda::control {

/// Attention by a plain tree mask: keys in the order of their slots, the region first and then the
/// scratch up to the row's own slot, those that are not on its path weighing 0.
void masked_slots(const AttentionArgs&, cudaStream_t);
/// Copies the rows of x, [rows, k] 16-bit, with the first or the second half of k as zeros.
void half_of_k(const Tensor& x, bool second, uint16_t* to, cudaStream_t);
/// Nodes of the block whose entries go to one scratch slot are sent to another.
void send_nodes(const Live&, const Rows&, int32_t from, int32_t to, cudaStream_t);
/// Writes where no memory is: the device's context is lost to the process.
void break_device(cudaStream_t);

}  // namespace stepladder::cuda::control

namespace stepladder::cuda::bits {

/// Functions of a word that host and device must agree on.
enum class Fixed { gumbel, exp };
constexpr int kFixedParts = 256;
/// What a word and the function's bits come to; the sum over many words is the same in any order.
SL_INLINE uint64_t mixed(Fixed function, uint32_t word) {
  // An exponent is at most zero, so its word says the rest.
  const float y = function == Fixed::gumbel
                      ? gumbel(word)
                      : fixed_exp(__builtin_bit_cast(float, word | 0x80000000u));
  uint64_t h = (uint64_t{word} << 32 | __builtin_bit_cast(uint32_t, y)) * 0x9e3779b97f4a7c15u;
  h = (h ^ h >> 32) * 0xd6e8feb86659fd93u;
  return h ^ h >> 32;
}
/// Sums over all 2^32 words, each kFixedParts-th of them apart.
std::vector<uint64_t> sums_over_words(Fixed);

/// Products of 16 x k by k x 8 with one instruction after the other, `count` of them:
/// a [count, 16, k], b [count, 8, k] 16-bit, out [count, 16, 8]; k a multiple of 16.
std::vector<float> chains(bool bf16, int count, int k, const std::vector<uint16_t>& a,
                          const std::vector<uint16_t>& b);

/// How many sums of k products were compared between mma.sync and a wgmma of n columns, A from
/// registers, and how many differ. None are where the build or the chip has no wgmma.
struct Compared {
  uint64_t sums = 0, different = 0;
};
constexpr int kWgmmaColumns[] = {8, 16, 32, 64, 128, 256};
/// `spread`: exponents lie so far below and above that of 1. Random data of the seed, 64 rows a
/// tile.
Compared compare_wgmma(bool bf16, int n, int k, int spread, int tiles, uint32_t seed);

}  // namespace stepladder::cuda::bits
