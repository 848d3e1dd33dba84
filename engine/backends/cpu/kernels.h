// The operators as a table of functions, one table per instruction set. The bodies live in
// kernels/*.cpp, which are compiled once per instruction set in a namespace of that name; they use
// no inline function with external linkage, so the linker can never mix two sets.
#pragma once

#include "backends/backend.h"

namespace stepladder {

// ---- what Backend::project is composed of ----------------------------------------------------

struct RmsNormArgs {
  Live live;
  Tensor x;             // [rows of the round, width] f32
  const int32_t* pick;  // the row of x for a row of the round; null = itself
  const float* weight;  // [width]
  float eps;
  Tensor out;  // [capacity, width] 16-bit
};
/// int8 activations: q = round(x / scale) with scale = amax / 127 over each group of k, ties to
/// even; a group of zeros has scale 0, one with a NaN has scale NaN. `sum` holds the sums of q over
/// groups that may be smaller.
struct QuantizeArgs {
  Live live;
  Tensor x;       // [capacity, k] 16-bit
  int group;      // k per scale; k itself when per token
  int sum_group;  // k per sum; divides `group`
  int8_t* q;      // [capacity, k]
  float* scale;   // [capacity, k / group]
  int32_t* sum;   // [capacity, k / sum_group]
};
/// y = x W^T (+ bias), or y += when `accumulate`.
struct LinearArgs {
  Live live;
  Tensor y;         // [capacity, n] f32
  Tensor x;         // [capacity, k] 16-bit
  QuantizeArgs x8;  // the quantized x when act is a8
  Act act;
  PackedWeight weight;
  bool accumulate;
  const FastKernel* kernel;  // null: the generic path
};
struct RopeAppendArgs {
  Live live;
  Tensor qkv;  // [capacity, (heads + 2 kv_heads) * head_dim] f32
  RopeAppend to;
};
struct GatedActArgs {
  Live live;
  Tensor gate_up;  // [capacity, 2 * width] f32
  Tensor out;      // [capacity, width] 16-bit
};

/// Which share of an operator's outputs a thread computes. With a counter, a lane takes whichever
/// part is next until none is left, so that a thread that is held up holds nobody up.
struct Lane {
  int part = 0, parts = 1;
  int32_t* next = nullptr;
};
using LinearFn = void (*)(const LinearArgs&, Lane);
/// A format's fast product on a CPU.
struct CpuKernel : FastKernel {
  LinearFn run;
};
SL_INLINE LinearFn function_of(const FastKernel& kernel) {
  return static_cast<const CpuKernel&>(kernel).run;
}

struct CpuKernels {
  const char* isa;
  void (*expand)(const ExpandArgs&, Lane);
  void (*embed)(const EmbedArgs&, Lane);
  void (*rms_norm)(const RmsNormArgs&, Lane);
  void (*quantize)(const QuantizeArgs&, Lane);
  void (*described_linear)(const LinearArgs&, Lane);
  void (*rope_append)(const RopeAppendArgs&, Lane);
  void (*attention)(const AttentionArgs&, Lane);
  void (*gated_act)(const GatedActArgs&, Lane);
  void (*choose)(const ChooseArgs&, Lane);
  void (*logprobs)(const LogprobArgs&, Lane);
  void (*feature)(const FeatureArgs&, Lane);
  void (*follow)(const FollowArgs&, Lane);
  void (*accept)(const AcceptArgs&, Lane);
  void (*keep)(const KeepArgs&, Lane);
  void (*count)(const CountArgs&, Lane);
};

#define SL_DECLARE_KERNELS(isa)                                                                  \
  namespace isa {                                                                                \
  void expand(const ExpandArgs&, Lane);                                                          \
  void embed(const EmbedArgs&, Lane);                                                            \
  void rms_norm(const RmsNormArgs&, Lane);                                                       \
  void quantize(const QuantizeArgs&, Lane);                                                      \
  void described_linear(const LinearArgs&, Lane);                                                \
  void rope_append(const RopeAppendArgs&, Lane);                                                 \
  void attention(const AttentionArgs&, Lane);                                                    \
  void gated_act(const GatedActArgs&, Lane);                                                     \
  void choose(const ChooseArgs&, Lane);                                                          \
  void logprobs(const LogprobArgs&, Lane);                                                       \
  void feature(const FeatureArgs&, Lane);                                                        \
  void follow(const FollowArgs&, Lane);                                                          \
  void accept(const AcceptArgs&, Lane);                                                          \
  void keep(const KeepArgs&, Lane);                                                              \
  void count(const CountArgs&, Lane);                                                            \
  inline constexpr CpuKernels kernels{                                                           \
      #isa,      expand, embed,    rms_norm, quantize, described_linear, rope_append, attention, \
      gated_act, choose, logprobs, feature,  follow,   accept,           keep,        count};    \
  }

/// The block's first row in the round.
SL_INLINE int first_row(const Live& live) { return live.first ? *live.first : 0; }
/// Rows of the block that are live now.
SL_INLINE int live_rows(const Live& live) {
  const int n = *live.total - first_row(live);
  return n < 0 ? 0 : n > live.capacity ? live.capacity : n;
}

/// [begin, end) of this lane's share of n items, in granules of `grain`.
struct Share {
  int begin, end;
};
SL_INLINE Share share(int n, Lane lane, int grain = 1) {
  const int granules = (n + grain - 1) / grain;
  const int b = static_cast<int>(int64_t{granules} * lane.part / lane.parts) * grain;
  const int e = static_cast<int>(int64_t{granules} * (lane.part + 1) / lane.parts) * grain;
  return {b < n ? b : n, e < n ? e : n};
}

/// The parts a lane computes, `rounds` times over: its own, or whichever is next. Use as
/// for (int at = first_part(lane); at < rounds * lane.parts; at = next_part(lane, at)), where
/// part_of(lane, at) is the share of round at / lane.parts.
SL_INLINE int first_part(const Lane& lane) {
  return lane.next ? __atomic_fetch_add(lane.next, 1, __ATOMIC_RELAXED) : lane.part;
}
SL_INLINE int next_part(const Lane& lane, int at) {
  return lane.next ? __atomic_fetch_add(lane.next, 1, __ATOMIC_RELAXED) : at + lane.parts;
}
SL_INLINE Lane part_of(const Lane& lane, int at) { return {at % lane.parts, lane.parts}; }

}  // namespace stepladder
