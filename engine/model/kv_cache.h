// The key/value cache of one model: backend memory for all sequences, and on the host the token and
// the writing level of every entry. Levels that share a model may share one cache.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backends/memory.h"
#include "model/config.h"

namespace stepladder {

/// 0 = the target; a level drafts for the one above it and counts one more.
using LevelId = uint8_t;

class KVCache {
 public:
  /// Allocates for `spec`; throws Error(out_of_memory) with the numbers.
  KVCache(Backend&, const KVSpec& spec);

  const KVSpec& spec() const { return spec_; }
  KVView view() const { return {spec_, memory_.data()}; }
  size_t bytes() const { return memory_.bytes(); }
  /// Host memory that a cache of this shape comes to use for its entries' tokens.
  static size_t host_bytes(const KVSpec& s) {
    return size_t(s.sequences) * s.positions * sizeof(Entry);
  }

  /// Entries of the slot that `me` may use for `tokens`: the common prefix of what is held and
  /// what is wanted, up to the first entry that neither `me` nor a level above it wrote.
  int usable(int slot, std::span<const int32_t> tokens, LevelId me) const;
  /// Entry `position` now belongs to `token`, written by `writer`; whatever stood at or behind it
  /// is gone, for all sharers. `position` is at most entries(slot).
  void write(int slot, int position, int32_t token, LevelId writer);
  int entries(int slot) const { return static_cast<int>(slots_[slot].size()); }
  void clear(int slot) { slots_[slot].clear(); }

 private:
  struct Entry {
    int32_t token;
    LevelId writer;
  };
  KVSpec spec_;
  Buffer memory_;
  std::vector<std::vector<Entry>> slots_;
};

/// The cache of a model for `context` tokens a sequence and trees of `scratch` nodes.
KVSpec kv_spec(const ModelConfig&, int context, int scratch, int sequences,
               const FeatureSpec& features = {});

}  // namespace stepladder
