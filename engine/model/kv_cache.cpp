#include "model/kv_cache.h"

#include <algorithm>

#include "core/round_up.h"

namespace stepladder {

KVSpec kv_spec(const ModelConfig& c, int context, int scratch, int sequences,
               const FeatureSpec& features) {
  return {.layers = c.layers,
          .kv_heads = c.kv_heads,
          .head_dim = c.head_dim,
          .positions = round_up(context, kAttentionStep),
          .scratch = scratch,
          .sequences = sequences,
          .dtype = c.dtype,
          .features = features};
}

KVCache::KVCache(Backend& backend, const KVSpec& spec)
    : spec_(spec),
      memory_(allocate_buffer(backend, backend.kv_bytes(spec))),
      slots_(spec.sequences) {
  for (auto& slot : slots_) slot.reserve(spec.positions);
}

int KVCache::usable(int slot, std::span<const int32_t> tokens, LevelId me) const {
  const auto& held = slots_[slot];
  const size_t n = std::min(held.size(), tokens.size());
  size_t i = 0;
  while (i < n && held[i].token == tokens[i] && held[i].writer <= me) ++i;
  return static_cast<int>(i);
}

void KVCache::write(int slot, int position, int32_t token, LevelId writer) {
  auto& held = slots_[slot];
  check(position >= 0 && position <= static_cast<int>(held.size()) && position < spec_.positions,
        Code::internal, "cache: entry ", position, " written behind ", held.size(), " entries");
  held.resize(position);
  held.push_back({token, writer});
}

}  // namespace stepladder
