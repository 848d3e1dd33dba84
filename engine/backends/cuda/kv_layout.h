// Where the CUDA backend keeps keys and values, in 16-bit elements from the start of the block:
//
//   for each layer, for each sequence:
//     keys      [kv_head][entry][head_dim]
//     values    [kv_head][entry][head_dim]
//   for each sequence, where entries carry features:
//     features  [entry][feature][width]
//
// Entry p is position p of the region; behind its positions come the scratch slots.
#pragma once

#include "backends/tables.h"

namespace stepladder::cuda {

/// Entries a sequence has in all.
SL_INLINE int64_t entries_of(const KVSpec& s) { return int64_t{s.positions} + s.scratch; }
SL_INLINE int64_t entry_of_scratch(const KVSpec& s, int slot) {
  return int64_t{s.positions} + slot;
}

/// Elements of the keys, or the values, of one sequence in one layer.
SL_INLINE int64_t kv_plane(const KVSpec& s) { return s.kv_heads * entries_of(s) * s.head_dim; }
/// First key of a head of a sequence in a layer; its values begin kv_plane() later.
SL_INLINE int64_t keys_at(const KVSpec& s, int layer, int slot, int kv_head) {
  return (int64_t{layer} * s.sequences + slot) * 2 * kv_plane(s) +
         kv_head * entries_of(s) * s.head_dim;
}

/// Elements the features of an entry take, and where those of an entry are.
SL_INLINE int64_t feature_size(const KVSpec& s) {
  return int64_t{s.features.count} * s.features.width;
}
SL_INLINE int64_t features_at(const KVSpec& s, int slot, int64_t entry) {
  return keys_at(s, s.layers, 0, 0) + (slot * entries_of(s) + entry) * feature_size(s);
}
/// Elements of all of it.
SL_INLINE int64_t kv_elements(const KVSpec& s) { return features_at(s, s.sequences, 0); }

}  // namespace stepladder::cuda
