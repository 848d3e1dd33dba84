// Where the CPU backend keeps keys and values, in 16-bit elements from the start of the block:
//
//   for each layer, for each sequence:
//     keys of the region     [kv_head][position / 16][head_dim / 2][position % 16][2]
//     values of the region   [kv_head][position][head_dim]
//     keys of the scratch    [slot][kv_head][head_dim]
//     values of the scratch  [slot][kv_head][head_dim]
//   for each sequence, where entries carry features:
//     of the region          [position][feature][width]
//     of the scratch         [slot][feature][width]
//
// Keys of the region lie in blocks of 16 positions so that one 64-byte load holds two elements of
// 16 keys, which is what a bf16 dot-product instruction takes. Each part begins on a 64-byte
// border.
#pragma once

#include "backends/backend.h"

namespace stepladder {

constexpr int kKeyBlock = 16;
static_assert(kAttentionStep == 2 * kKeyBlock);

struct KVLayout {
  size_t head_dim, kv_heads, positions, sequences, layers;
  size_t region;          // elements of the keys (or the values) of one region
  size_t scratch;         // elements of the keys (or the values) of one scratch area
  size_t feature, width;  // elements of all features of an entry; of one
  size_t feature_region, feature_scratch;  // elements of those of a region; of a scratch area
};

SL_INLINE KVLayout kv_layout(const KVSpec& s) {
  KVLayout l;
  l.head_dim = static_cast<size_t>(s.head_dim), l.kv_heads = static_cast<size_t>(s.kv_heads);
  l.positions = static_cast<size_t>(s.positions), l.sequences = static_cast<size_t>(s.sequences);
  l.region = l.kv_heads * l.positions * l.head_dim;
  l.layers = static_cast<size_t>(s.layers);
  const size_t slots = static_cast<size_t>(s.scratch);
  l.scratch = (slots * l.kv_heads * l.head_dim + 31) / 32 * 32;
  l.width = static_cast<size_t>(s.features.width);
  l.feature = static_cast<size_t>(s.features.count) * l.width;
  l.feature_region = (l.positions * l.feature + 31) / 32 * 32;
  l.feature_scratch = (slots * l.feature + 31) / 32 * 32;
  return l;
}

/// Elements one sequence takes in one layer.
SL_INLINE size_t kv_stride(const KVLayout& l) { return 2 * (l.region + l.scratch); }

/// First element of a sequence in a layer.
SL_INLINE size_t kv_base(const KVLayout& l, int layer, int slot) {
  return (static_cast<size_t>(layer) * l.sequences + static_cast<size_t>(slot)) * kv_stride(l);
}

/// From kv_base: the key block of a head that holds `position`; [head_dim / 2][16][2].
SL_INLINE size_t key_block(const KVLayout& l, int kv_head, int position) {
  return (static_cast<size_t>(kv_head) * l.positions +
          static_cast<size_t>(position) / kKeyBlock * kKeyBlock) *
         l.head_dim;
}

/// From a key block: element d of the key in column `column`.
SL_INLINE size_t in_key_block(int column, int d) {
  return static_cast<size_t>(d / 2) * (2 * kKeyBlock) + static_cast<size_t>(column) * 2 +
         static_cast<size_t>(d % 2);
}

/// From kv_base: the value of a position, [head_dim].
SL_INLINE size_t value_at(const KVLayout& l, int kv_head, int position) {
  return l.region +
         (static_cast<size_t>(kv_head) * l.positions + static_cast<size_t>(position)) * l.head_dim;
}

/// From kv_base: the key and the value in a scratch slot, [head_dim].
SL_INLINE size_t scratch_key(const KVLayout& l, int slot, int kv_head) {
  return 2 * l.region +
         (static_cast<size_t>(slot) * l.kv_heads + static_cast<size_t>(kv_head)) * l.head_dim;
}
SL_INLINE size_t scratch_value(const KVLayout& l, int slot, int kv_head) {
  return scratch_key(l, slot, kv_head) + l.scratch;
}

/// Elements the features of one sequence take, and the first of them.
SL_INLINE size_t feature_stride(const KVLayout& l) { return l.feature_region + l.feature_scratch; }
SL_INLINE size_t feature_base(const KVLayout& l, int slot) {
  return kv_base(l, static_cast<int>(l.layers), 0) + static_cast<size_t>(slot) * feature_stride(l);
}
/// The features [count][width] of a position, and of a scratch slot.
SL_INLINE size_t feature_at(const KVLayout& l, int slot, int position) {
  return feature_base(l, slot) + static_cast<size_t>(position) * l.feature;
}
SL_INLINE size_t scratch_feature(const KVLayout& l, int slot, int node) {
  return feature_base(l, slot) + l.feature_region + static_cast<size_t>(node) * l.feature;
}

/// Copies a key [head_dim] into its column of a key block.
SL_INLINE void put_key(uint16_t* block, int column, const uint16_t* key, int head_dim) {
  for (int i = 0; i < head_dim / 2; ++i)
    __builtin_memcpy(block + in_key_block(column, 2 * i), key + 2 * i, 4);
}

}  // namespace stepladder
