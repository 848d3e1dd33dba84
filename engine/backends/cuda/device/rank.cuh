// A token's place in falling order of its value, lower ids first among equals, as one number: the
// order key of the value above the id's complement. 0 is below all of them.
#pragma once

#include "core/noise.h"

namespace stepladder::cuda {

using Rank = unsigned long long;  // what atomicAdd takes

__device__ inline Rank rank_of(float value, int id) {
  const uint32_t key = static_cast<uint32_t>(order_key(value)) ^ 0x80000000u;
  return static_cast<Rank>(key) << 32 | ~static_cast<uint32_t>(id);
}
__device__ inline int id_of(Rank rank) { return static_cast<int>(~static_cast<uint32_t>(rank)); }
__device__ inline float value_of(Rank rank) {
  return from_order_key(static_cast<int32_t>(static_cast<uint32_t>(rank >> 32) ^ 0x80000000u));
}

}  // namespace stepladder::cuda
