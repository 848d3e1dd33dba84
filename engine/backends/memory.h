// Memory of a backend: buffers that go back to it, and the arrays of a round's tables.
#pragma once

#include "backends/backend.h"
#include "core/arena.h"

namespace stepladder {

/// Memory from a backend that goes back to it; the backend must outlive the buffer.
inline Buffer allocate_buffer(Backend& backend, size_t bytes) {
  void* const memory = backend.allocate(bytes);
  return Buffer(memory, bytes, [&backend](void* p, size_t n) { backend.release(p, n); });
}

/// Taken from an arena over backend memory.
inline Rows take_rows(Arena& arena, int capacity, int depth, int sequences) {
  const auto ints = [&](int n) { return arena.take_array<int32_t>(n); };
  return {.capacity = capacity,
          .depth = depth,
          .sequences = sequences,
          .count = ints(1),
          .token = ints(capacity),
          .position = ints(capacity),
          .slot = ints(capacity),
          .committed = ints(capacity),
          .scratch = ints(capacity),
          .path = arena.take_array<uint16_t>(size_t(capacity) * depth),
          .node_count = ints(1),
          .node_row = ints(capacity),
          .node_sequence = ints(capacity),
          .node_index = ints(capacity),
          .sequence_row = ints(sequences + 1),
          .sequence_node = ints(sequences + 1),
          .block_row = ints(1),
          .block_node = ints(1)};
}

/// What a backend's cache can hold.
struct KVLimits {
  const char* backend;  // for messages
  int head_dim;
};
/// Throws Error naming what of a cache's shape is wrong or more than the backend can hold.
void check_kv_shape(const KVSpec&, const KVLimits&);

}  // namespace stepladder
