#include "backends/memory.h"

#include "core/error.h"

namespace stepladder {

namespace {

constexpr int kMaxScratch = 65535;  // a path holds slots in 16 bits

}  // namespace

void check_kv_shape(const KVSpec& s, const KVLimits& most) {
  check(s.layers > 0 && s.kv_heads > 0 && s.sequences > 0 && s.scratch >= 0 && s.positions > 0,
        Code::invalid_argument, "kv cache: layers=", s.layers, " kv_heads=", s.kv_heads,
        " sequences=", s.sequences, " scratch=", s.scratch, " positions=", s.positions,
        ": all must be positive");
  check(s.positions % kAttentionStep == 0, Code::invalid_argument,
        "kv cache: positions=", s.positions, " is not a multiple of ", kAttentionStep);
  check(s.head_dim > 0 && s.head_dim % 2 == 0 && s.head_dim <= most.head_dim, Code::unsupported,
        "kv cache: head_dim=", s.head_dim, "; the ", most.backend,
        " backend takes even ones up to ", most.head_dim);
  check(s.scratch <= kMaxScratch, Code::unsupported, "kv cache: a tree of ", s.scratch,
        " nodes; the ", most.backend, " backend takes up to ", kMaxScratch);
  check(s.dtype == DType::bf16 || s.dtype == DType::f16, Code::unsupported, "kv cache: dtype ",
        name(s.dtype), "; the ", most.backend, " backend keeps bf16 or f16");
  const FeatureSpec& f = s.features;
  check(
      f.count >= 0 && f.count <= static_cast<int>(f.layer.size()) && (f.count == 0 || f.width > 0),
      Code::invalid_argument, "kv cache: ", f.count, " feature rows of width ", f.width,
      " an entry; there can be 0 to ", f.layer.size());
}

}  // namespace stepladder
