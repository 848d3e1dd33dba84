// The operators as a table of functions, one table per instruction set. The bodies live in
// kernels/*.cpp, which are compiled once per instruction set in a namespace of that name; they use
// no inline function with external linkage, so the linker can never mix two sets.
#pragma once

#include "backends/composed.h"

namespace stepladder {

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
  void (*narrow)(const NarrowArgs&, Lane);
  void (*join)(const JoinArgs&, Lane);
  void (*top)(const TopArgs&, Lane);
  void (*grow)(const GrowArgs&, Lane);
  void (*prune)(const PruneArgs&, Lane);
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
  void narrow(const NarrowArgs&, Lane);                                                          \
  void join(const JoinArgs&, Lane);                                                              \
  void top(const TopArgs&, Lane);                                                                \
  void grow(const GrowArgs&, Lane);                                                              \
  void prune(const PruneArgs&, Lane);                                                            \
  inline constexpr CpuKernels kernels{                                                           \
      #isa,      expand, embed,    rms_norm, quantize, described_linear, rope_append, attention, \
      gated_act, choose, logprobs, feature,  follow,   accept,           keep,        count,     \
      narrow,    join,   top,      grow,     prune};                                             \
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
