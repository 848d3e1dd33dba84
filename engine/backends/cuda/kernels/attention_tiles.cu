// Attention on tensor instructions, for heads of 64 and 128 elements: how the steps of
// device/attention_steps.cuh are shared out.
//
// Few rows: blocks of two teams share a tile; a slot is a team's work, as is the last step of a
// token. What they sum up goes to the workspace, and the last of them that is through folds it.
// Else a block has a tile a warp. It takes its rows from end to end where blocks enough are busy
// with that and slots are one step each, so that they need not be kept apart; or one slot of
// theirs, which goes to the workspace, and a second kernel folds them.
#include <algorithm>

#include "backends/cuda/device/attention_steps.cuh"
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/kernels.h"

namespace stepladder::cuda {
namespace {

/// Of a thread, where few rows are taken: what is left beside a kernel on the other side.
constexpr int kRegisters = 112;
constexpr int kTeams = 2, kCrew = kSlots / kTeams;  // blocks that share a tile
constexpr int kEntries = kSlots + 1;  // of a row: its slots and its last step

template <int kDim, bool kBf16>
struct FewRows : TileShape<kDim, kBf16, true> {
  using T = TileShape<kDim, kBf16, true>;
  static constexpr int kScores = T::kQBytes + kTeams * T::kRingBytes;
  static constexpr int kSharedBytes = kScores + kTeams * T::kScoreBytes;
};
template <int kDim, bool kBf16>
struct ManyRows : TileShape<kDim, kBf16, false> {
  using T = TileShape<kDim, kBf16, false>;
  static constexpr int kSharedBytes = T::kQBytes + T::kRingBytes;
};

/// What a block has to do with: its tokens and heads.
struct Place {
  int kv_head, head, heads;  // the first query head of its rows, and how many
  int base, tokens, first;   // token 0 as a row of the block of rows; of the round

  __device__ static Place of(const TileArgs& p, unsigned tile) {
    const AttentionArgs& a = p.args;
    const int group = a.heads / a.kv.spec.kv_heads;
    const int part = static_cast<int>(blockIdx.y) % p.parts * p.heads;
    Place x;
    x.kv_head = static_cast<int>(blockIdx.y) / p.parts;
    x.head = x.kv_head * group + part, x.heads = min(p.heads, group - part);
    x.base = static_cast<int>(tile) * p.block_tokens;
    x.tokens = min(live_rows(a.live) - x.base, p.block_tokens);
    x.first = first_row(a.live) + x.base;
    return x;
  }
};
/// A row of a block's tiles as a token and one of its heads.
struct RowOf {
  int token, head;
  bool there;
  __device__ RowOf(const TileArgs& p, const Place& place, int row) {
    const int in_tile = row % kTile;
    token = row / kTile * p.warp_tokens + in_tile / p.heads, head = in_tile % p.heads;
    there = in_tile < p.warp_tokens * p.heads && head < place.heads && token < place.tokens;
  }
};

/// Tokens of one sequence, whose slots have the same span, go together: those of `left` that the
/// first of them leads. All lanes call.
struct Together {
  unsigned tokens;
  int sequence, span, common, body, older;  // common: steps below all committed positions
  __device__ Together(unsigned left, const Token& own, int lane_older) {
    const int leader = __ffs(static_cast<int>(left)) - 1;
    sequence = __shfl_sync(kAllLanes, own.slot, leader);
    span = __shfl_sync(kAllLanes, own.span, leader);
    const bool in = own.slot == sequence && own.span == span;
    tokens = __ballot_sync(kAllLanes, in);
    common = __reduce_min_sync(kAllLanes,
                               in ? min(own.committed / kAttentionStep, own.body()) : INT32_MAX);
    body = __reduce_max_sync(kAllLanes, in ? own.body() : 0);
    older = __reduce_min_sync(kAllLanes, in ? lane_older : INT32_MAX);
  }
  /// The steps of slots from `slot` on, up to `slots` of them, as far as they are no last ones.
  __device__ Cursor body_of(int slot, int slots) const {
    Cursor c;
    c.step = slot * span, c.own_to = c.step + slots * span;
    c.end = min(c.own_to, common), c.own_from = max(c.step, common);
    return c;
  }
};
/// Keys of a token's sequence that no row of this block of rows has written. What came before the
/// kernel that writes those is over when that one lets this one begin.
__device__ int older_keys(const Rows& rows, const Token& own, int row, int in_block) {
  // Rows of its sequence that stand before it in the block are at the positions just below.
  return max(0, (rows.scratch[row] < 0 ? own.seen - 1 : own.committed) - in_block);
}
/// The lane's token, where the block has so many, and its older keys.
__device__ Token token_of_lane(const Rows& rows, const Place& place, int& older) {
  const int lane = lane_of_thread(), row = place.first + lane;
  if (lane >= place.tokens) return {};
  const Token own = token_of(rows, row);
  older = older_keys(rows, own, row, place.base + lane);
  return own;
}

template <class S>
__device__ void open(Team<S>& team, const AttentionArgs& a, int sequence, int kv_head) {
  team.keys =
      static_cast<const uint16_t*>(a.kv.data) + keys_at(a.kv.spec, a.layer, sequence, kv_head);
  team.values = team.keys + kv_plane(a.kv.spec);
}
/// Puts the queries of a block's rows on their way; zeros where there is no row.
template <class S>
__device__ void copy_queries(const TileArgs& p, const Place& place, uint16_t* q) {
  for (int i = static_cast<int>(threadIdx.x); i < S::kRows * S::kPieces;
       i += static_cast<int>(blockDim.x)) {
    const int row = i / S::kPieces, piece = i % S::kPieces;
    const RowOf r(p, place, row);
    const uint16_t* const from =
        row_of<const uint16_t>(p.args.q, place.base + (r.there ? r.token : 0)) +
        (place.head + r.head) * S::kDim + piece * 8;
    copy_16(q + row * S::kPitch + piece * 8, from, r.there);
  }
  end_group();
}

// ---- what is folded --------------------------------------------------------------------------

/// Where the workspace has what a row's entry sums up: elements, then maximum and weight.
template <int kDim>
__device__ float* in_workspace(const AttentionArgs& a, int row, int head, int entry) {
  return static_cast<float*>(a.workspace) + kCounters +
         ((int64_t{row} * a.heads + head) * kEntries + entry) * (kDim + 4);
}

/// Stores neighbouring elements of a row, from c on, folded from its entries, which are in shared
/// memory or, one element at a time, in the workspace. All lanes call.
template <int kDim, bool kShared>
__device__ void merge_row(const AttentionArgs& a, const float* entries, int row, int head, int slots,
                          int last, int c) {
  constexpr int kCount = kShared ? 2 : 1, kAtOnce = kShared ? 1 : 8;
  using Some = Elements<kCount>;
  const auto load = [](auto* from) {
    if constexpr (kShared)
      return *from;
    else
      return __ldcg(from);  // other multiprocessors have written it
  };
  const auto part = [&](int e) {
    const float* const from = entries + e * (kDim + 4) + c;
    if constexpr (kShared)
      return *reinterpret_cast<const Some*>(from);
    else
      return Some{{load(from)}};
  };
  const auto weighs = [&](int e) {
    return load(reinterpret_cast<const float2*>(entries + e * (kDim + 4) + kDim));
  };
  const int lane = lane_of_thread();
  const float2 slot = lane < slots ? weighs(lane) : float2{kLowest, 0.f};
  const Some y = merged<kAtOnce>(slots, slot, part, weighs(last), part(last));
#pragma unroll
  for (int i = 0; i < kCount; ++i)
    row_of<uint16_t>(a.out, row)[head * kDim + c + i] = to_16(a.out.dtype, y.of[i]);
}

// ---- few rows --------------------------------------------------------------------------------

/// Stores what a team has summed up of tokens' rows.
template <class S>
__device__ void store_entry(const Team<S>& team, const Place& place, unsigned tokens, int entry) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const RowOf r(team.p, place, team.lane / 4 + half * 8);
    if (!r.there || !(tokens >> r.token & 1)) continue;
    float* const to = in_workspace<S::kDim>(team.p.args, place.base + r.token,
                                            place.head + r.head, entry);
#pragma unroll
    for (int n = 0; n < S::kColumns; ++n)
      *reinterpret_cast<float2*>(to + (team.warp * S::kColumns + n) * 8 + team.lane % 4 * 2) = {
          team.sum[n][half * 2], team.sum[n][half * 2 + 1]};
    if (team.warp == 0 && team.lane % 4 == 0)
      *reinterpret_cast<float2*>(to + S::kDim) = {team.most[half], team.weight[half]};
  }
}

/// Whether this block of a tile's is the last one to be through. All threads call.
__device__ bool last_through(const AttentionArgs& a) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    auto* const through =
        static_cast<unsigned*>(a.workspace) + blockIdx.z * gridDim.y + blockIdx.y;
    last = atomicAdd(through, 1u) == gridDim.x - 1;
    if (last) *through = 0;
    __threadfence();
  }
  __syncthreads();
  return last;
}

/// What a tile's row is when it is folded: row of the block, head, and slots; -1: none.
struct Folded {
  int row, head, slots;
};
/// Folds what the blocks of a tile have in the workspace, by way of shared memory: short code, as
/// a multiprocessor seldom has it at hand. All threads call.
template <class S>
__device__ void merge_tile(const TileArgs& p, const Folded* rows, std::byte* shared) {
  const AttentionArgs& a = p.args;
  constexpr int kPieces = S::kDim / 4 + 1, kEntry = S::kDim + 4;
  constexpr int kAtOnce = 4;  // rows
  static_assert(kAtOnce * kEntries * kEntry * 4 <= S::kSharedBytes);
  float* const held = reinterpret_cast<float*>(shared);
  for (int first = 0; first < p.warp_tokens * p.heads; first += kAtOnce) {
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < kAtOnce; ++i) {
      const Folded r = rows[first + i];
      if (r.slots < 0) continue;
      const float* const from = in_workspace<S::kDim>(a, r.row, r.head, 0);
      float* const to = held + i * kEntries * kEntry;
#pragma unroll 1
      for (int j = static_cast<int>(threadIdx.x); j < (r.slots + 1) * kPieces; j += kTeams * kTeam) {
        const int e = j / kPieces;
        copy_16(to + j * 4, from + j * 4 + (e == r.slots ? (kSlots - r.slots) * kEntry : 0), true);
      }
    }
    end_group();
    wait_for_groups<0>();
    __syncthreads();
    constexpr int kRun = 2 * kWarp;
#pragma unroll 1
    for (int i = warp_of_thread(); i < kAtOnce * S::kDim / kRun; i += kTeams * kTeamWarps) {
      const Folded r = rows[first + i % kAtOnce];
      if (r.slots < 0) continue;
      merge_row<S::kDim, true>(a, held + i % kAtOnce * kEntries * kEntry, r.row, r.head, r.slots,
                               r.slots, i / kAtOnce * kRun + lane_of_thread() * 2);
    }
  }
}

template <class S>
__global__ void __maxnreg__(kRegisters) few_rows_kernel(const __grid_constant__ TileArgs p) {
  if (threadIdx.x >= kTeams * kTeam) return;
  start_next();
  extern __shared__ __align__(16) std::byte shared[];
  const AttentionArgs& a = p.args;
  const int lane = lane_of_thread();
  const int in_block = warp_of_thread(), team_index = in_block / kTeamWarps;
  __shared__ Place place;  // there, for want of registers
  if (threadIdx.x == 0) place = Place::of(p, blockIdx.z);
  __syncthreads();
  if (place.tokens <= 0) return wait_for_inputs();
  int older = INT32_MAX;
  const Token own = token_of_lane(a.rows, place, older);
  __shared__ Folded folded[kTile];
  if (in_block == 0) {
    const RowOf r(p, place, lane % kTile);
    const int slots = __shfl_sync(kAllLanes, own.slots(), r.token % kWarp);
    if (lane < kTile)
      folded[lane] = {place.base + r.token, place.head + r.head, r.there ? slots : -1};
  }
  uint16_t* const q = reinterpret_cast<uint16_t*>(shared);
  Team<S> team{.p = p, .own = own, .first = place.first, .lane = lane};
  team.warp = in_block % kTeamWarps;
  team.ring = q + (S::kQBytes + team_index * S::kRingBytes) / 2;
  team.scores = reinterpret_cast<float*>(shared + S::kScores + team_index * S::kScoreBytes);
  team.q = q + lane % 16 * S::kPitch + lane / 16 * 8;
  const int slot = team_index * kCrew + static_cast<int>(blockIdx.x);  // slots go to all blocks before a second team

  unsigned left = __ballot_sync(kAllLanes, own.slot >= 0);
  for (bool waited = false; left;) {
    const Together group(left, own, older);
    left &= ~group.tokens;
    open(team, a, group.sequence, place.kv_head);
    // The team's work: a slot, if there is one so high, and last steps, of which those teams get
    // the first that have none.
    const int slots = (group.body + group.span - 1) / group.span;
    Cursor c = group.body_of(slot, 1);
    c.tokens = group.tokens;
    unsigned lasts = 0;
    for (unsigned rest = group.tokens, i = slots; rest; rest &= rest - 1, ++i)
      if (static_cast<int>(i % kSlots) == slot) lasts |= rest & -rest;
    int entry = slot;
    const auto next = [&] {
      entry = lasts ? kSlots : kEntries;
      if (!lasts) return;
      c = last_of(own, __ffs(static_cast<int>(lasts)) - 1);
      lasts &= lasts - 1;
    };
    if (slot >= slots) next();
    if (entry < kEntries) {
      c.settle(own);
      team.begin(c);
    }
    if (!waited) {
#pragma unroll 1
      for (bool there = false;; there = true) {  // all that is attended to; first, older keys
        if (entry < (there ? kEntries : kSlots)) team.fill(there ? INT32_MAX : group.older);
        if (there) break;
        wait_for_inputs();
        copy_queries<S>(p, place, q);
      }
      wait_for_groups<0>();
      __syncthreads();
      waited = true;
    }
    while (entry < kEntries) {
      const unsigned tokens = entry == kSlots ? 1u << c.token : group.tokens;
      team.take(c);
      store_entry(team, place, tokens, entry);
      next();
      if (entry < kEntries) {
        c.settle(own);
        team.begin(c);
      }
    }
  }
  if (!last_through(a)) return;
  merge_tile<S>(p, folded, shared);
}

// ---- many rows -------------------------------------------------------------------------------

template <class S>
__global__ void __launch_bounds__(kTeam, 2) many_rows_kernel(const __grid_constant__ TileArgs p) {
  start_next();
  extern __shared__ __align__(16) std::byte shared[];
  const AttentionArgs& a = p.args;
  const int slot = static_cast<int>(blockIdx.z), lane = lane_of_thread(), warp = warp_of_thread();
  const Place place = Place::of(p, blockIdx.x);
  if (place.tokens <= 0) return wait_for_inputs();
  int older = INT32_MAX;
  const Token own = token_of_lane(a.rows, place, older);
  uint16_t* const q = reinterpret_cast<uint16_t*>(shared);
  Team<S> team{.p = p, .own = own, .first = place.first, .lane = lane, .warp = warp};
  team.ring = q + S::kQBytes / 2;
  team.q = q + (warp * kTile + lane % 16) * S::kPitch + lane / 16 * 8;
  const unsigned in_warp = ((1u << p.warp_tokens) - 1) << warp * p.warp_tokens;
  // Stores what rows of tokens have summed up: in their entry, or whole where that is negative.
  const auto store = [&](unsigned tokens, int entry) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const RowOf r(p, place, warp * kTile + lane / 4 + half * 8);
      if (!r.there || !(tokens >> r.token & 1)) continue;
      const int row = place.base + r.token, head = place.head + r.head;
      const float weight = team.weight[half];
      if (entry < 0) {
        uint16_t* const to = row_of<uint16_t>(a.out, row) + head * S::kDim + lane % 4 * 2;
        const auto word = [&](int n, int i) {
          return uint32_t{to_16(a.out.dtype, team.sum[n][half * 2 + i] / weight)} << 16 * i;
        };
#pragma unroll
        for (int n = 0; n < S::kColumns; ++n)
          *reinterpret_cast<uint32_t*>(to + n * 8) = word(n, 0) | word(n, 1);
        continue;
      }
      float* const to = in_workspace<S::kDim>(a, row, head, entry);
#pragma unroll
      for (int n = 0; n < S::kColumns; ++n)
        *reinterpret_cast<float2*>(to + n * 8 + lane % 4 * 2) = {team.sum[n][half * 2],
                                                                 team.sum[n][half * 2 + 1]};
      if (lane % 4 == 0) *reinterpret_cast<float2*>(to + S::kDim) = {team.most[half], weight};
    }
  };

  bool waited = false;
  for (unsigned left = __ballot_sync(kAllLanes, own.slot >= 0); left;) {
    const Together group(left, own, older);
    left &= ~group.tokens;
    const bool whole = p.whole && group.span == 1;
    if (whole ? slot > 0 : slot * group.span >= group.body && slot >= p.warp_tokens) continue;
    open(team, a, group.sequence, place.kv_head);
    Cursor c = whole ? group.body_of(0, kEntries) : group.body_of(slot, 1);
    Cursor alone = c;
    alone.tokens = group.tokens & in_warp, alone.end = alone.step, alone.last = whole;
    c.settle(own);
    team.begin(c);
    if (!waited) {
      team.fill(group.older);
      wait_for_inputs();
      copy_queries<S>(p, place, q);
      wait_for_groups<0>();
      __syncthreads();
      waited = true;
    }
    team.take(c);
    team.take_alone(alone);
    if (whole) {
      store(group.tokens, -1);
    } else {
      const bool has_slot = lane < place.tokens && slot < own.slots();
      store(group.tokens & __ballot_sync(kAllLanes, has_slot), slot);
      const int token = warp * p.warp_tokens + slot;  // whose last step the warp takes
      if (slot < p.warp_tokens && group.tokens >> token & 1) {
        c = last_of(own, token);
        team.begin(c);
        team.take_alone(c);
        store(1u << token, kSlots);
      }
    }
    __syncthreads();
  }
  if (!waited) wait_for_inputs();
}

/// Folds what rows that were not taken whole have in the workspace: a block a row and head.
template <int kDim>
__global__ void merge_kernel(const __grid_constant__ TileArgs p) {
  begin();
  const AttentionArgs& a = p.args;
  const int row = static_cast<int>(blockIdx.y), head = static_cast<int>(blockIdx.x);
  if (row >= live_rows(a.live)) return;
  const Token token = token_of(a.rows, first_row(a.live) + row);
  if (p.whole && token.span == 1) return;
  merge_row<kDim, false>(a, in_workspace<kDim>(a, row, head, 0), row, head, token.slots(), kSlots,
                        static_cast<int>(threadIdx.x));
}

// ---- the host's side -------------------------------------------------------------------------

template <int kDim, bool kBf16>
void launch_tiles(TileArgs p, cudaStream_t stream) {
  const AttentionArgs& a = p.args;
  const unsigned rows = a.live.capacity, heads = a.kv.spec.kv_heads * p.parts;
  const auto tiles = [&] { return (rows + p.block_tokens - 1) / p.block_tokens; };
  p.warp_tokens = p.block_tokens = kTile / p.heads;
  if (tiles() <= 2 && tiles() * heads <= kCounters)
    return launch_beside(few_rows_kernel<FewRows<kDim, kBf16>>, Side::shared, dim3(kCrew, heads, tiles()),
                         FewRows<kDim, kBf16>::kSharedBytes, stream, p);
  constexpr int kBusy = 64;  // blocks
  using S = ManyRows<kDim, kBf16>;
  const auto kernel = many_rows_kernel<S>;
  p.warp_tokens = std::min(p.warp_tokens, kWarp / kTeamWarps);  // a lane a token
  p.block_tokens = kTeamWarps * p.warp_tokens;
  p.whole = tiles() * heads >= kBusy;
  must(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes),
       "shared memory");
  // Slots last: where the blocks of the first one take all, the others are gone meanwhile.
  launch_kernel(kernel, dim3(tiles(), heads, kSlots), kTeam, S::kSharedBytes, stream, p);
  launch_kernel(merge_kernel<kDim>, dim3(a.heads, rows), kDim, 0, stream, p);
}

bool fits(const AttentionArgs& a) {
  const KVSpec& spec = a.kv.spec;
  return (spec.head_dim == 64 || spec.head_dim == 128) && a.q.dtype == spec.dtype;
}

}  // namespace

size_t tiles_workspace_bytes(const AttentionArgs& a) {
  if (!fits(a)) return 0;
  return sizeof(float) * kCounters + sizeof(float) * a.live.capacity * a.heads * kEntries * (a.kv.spec.head_dim + 4);
}

bool attention_in_tiles(const AttentionArgs& a, cudaStream_t stream) {
  if (!fits(a)) return false;
  const int group = a.heads / a.kv.spec.kv_heads;
  TileArgs p{.args = a};
  p.parts = (group + kTile - 1) / kTile, p.heads = (group + p.parts - 1) / p.parts;
  const bool bf16 = a.q.dtype == DType::bf16;
  if (a.kv.spec.head_dim == 64)
    bf16 ? launch_tiles<64, true>(p, stream) : launch_tiles<64, false>(p, stream);
  else
    bf16 ? launch_tiles<128, true>(p, stream) : launch_tiles<128, false>(p, stream);
  return true;
}

}  // namespace stepladder::cuda
