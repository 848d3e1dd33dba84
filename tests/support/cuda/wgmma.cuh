// wgmma with A from registers, of every width that the bits are compared for.
#pragma once

#include <cstdint>

#include "backends/cuda/device/tensor.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SL_HAS_WGMMA 1

// Operands by number: those of the sums, then the four words of A and where B is.
#define SL_TEN(t) \
  "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7,%" #t "8,%" #t "9,"
#define SL_4 "%0,%1,%2,%3"
#define SL_8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define SL_UP_TO_9 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,"
#define SL_16 SL_UP_TO_9 "%10,%11,%12,%13,%14,%15"
#define SL_32 SL_UP_TO_9 SL_TEN(1) SL_TEN(2) "%30,%31"
#define SL_64 SL_UP_TO_9 SL_TEN(1) SL_TEN(2) SL_TEN(3) SL_TEN(4) SL_TEN(5) "%60,%61,%62,%63"
#define SL_128                                                                               \
  SL_UP_TO_9 SL_TEN(1) SL_TEN(2) SL_TEN(3) SL_TEN(4) SL_TEN(5) SL_TEN(6) SL_TEN(7) SL_TEN(8) \
      SL_TEN(9) SL_TEN(10) SL_TEN(11) "%120,%121,%122,%123,%124,%125,%126,%127"

#define SL_SUMS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SL_SUMS_8(i) SL_SUMS_4(i), SL_SUMS_4(i + 4)
#define SL_SUMS_16(i) SL_SUMS_8(i), SL_SUMS_8(i + 8)
#define SL_SUMS_32(i) SL_SUMS_16(i), SL_SUMS_16(i + 16)
#define SL_SUMS_64(i) SL_SUMS_32(i), SL_SUMS_32(i + 32)
#define SL_SUMS_128(i) SL_SUMS_64(i), SL_SUMS_64(i + 64)

#define SL_WGMMA_OF(type, n, sums, a0, a1, a2, a3, at)                               \
  asm volatile(                                                                      \
      "{.reg .pred p;setp.eq.u32 p, 0, 0;"                                           \
      "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" SL_##sums \
      "}, {%" #a0 ",%" #a1 ",%" #a2 ",%" #a3 "}, %" #at ", p, 1, 1, 0;}"             \
      : SL_SUMS_##sums(0)                                                            \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(at_b))
#define SL_WGMMA(n, ...)                   \
  if constexpr (kSums == n / 2) {          \
    if constexpr (kBf16)                   \
      SL_WGMMA_OF("bf16", n, __VA_ARGS__); \
    else                                   \
      SL_WGMMA_OF("f16", n, __VA_ARGS__);  \
  }

namespace stepladder::cuda::bits {

/// d += a b by a group of four warps: 64 rows of 16 times 16 of 2 * kSums columns. b lies in shared
/// memory in pieces of eight columns by eight k, the two halves of k side by side, and was written
/// by the threads of the group just now. Of d, a lane has what add_product() gives it of eight
/// columns at a time.
template <bool kBf16, int kSums>
__device__ inline void add_wide_product(float (&d)[kSums], const uint32_t (&a)[4],
                                        const uint16_t* b) {
  // Bytes between pieces along k, and along the columns; both counted in 16.
  constexpr uint64_t kAlongK = 128 / 16, kAlongN = 256 / 16;
  const uint64_t at_b = (shared_address(b) & 0x3ffffu) >> 4 | kAlongK << 16 | kAlongN << 32;
  asm volatile("fence.proxy.async;" ::: "memory");
  __syncthreads();
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  SL_WGMMA(8, 4, 4, 5, 6, 7, 8)
  SL_WGMMA(16, 8, 8, 9, 10, 11, 12)
  SL_WGMMA(32, 16, 16, 17, 18, 19, 20)
  SL_WGMMA(64, 32, 32, 33, 34, 35, 36)
  SL_WGMMA(128, 64, 64, 65, 66, 67, 68)
  SL_WGMMA(256, 128, 128, 129, 130, 131, 132)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

}  // namespace stepladder::cuda::bits

#undef SL_WGMMA
#undef SL_WGMMA_OF
#else
#define SL_HAS_WGMMA 0
#endif
