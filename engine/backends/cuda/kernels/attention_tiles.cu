// Attention on tensor instructions, for heads of 64 and 128 elements. The query heads that share a
// head of keys, of some tokens, are the 16 rows of an instruction: keys and values are read once
// for all of them.
//
// What is added up, and in which order, follows from a row's position alone:
//
//   step    32 keys, aligned to position: scores, their maximum, powers rounded to 16 bits, and
//           the values' sum from zero
//   slot    `span` steps, folded one after the other; span is the least power of two that covers
//           the position with kSlots slots
//   row     its slots, folded by index
//
// A slot is a thread block's work, the slots of a tile of rows are a cluster, and folded through
// its shared memory; where there are no clusters, through the workspace and a second kernel. Steps
// below all rows' committed positions are taken by all rows together; from there on each token's
// rows take steps of their own, gathered along its path. Where rows are few the warps share a step,
// its keys first and then its elements; else each has rows of its own. An element's sums are the
// same either way.
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/tensor.cuh"
#include "backends/cuda/device/words.cuh"
#include "backends/cuda/kernels.h"
#include "backends/cuda/kv_layout.h"

namespace stepladder::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int kTile = 16;   // rows of an instruction
constexpr int kSlots = 16;  // and blocks of a cluster
constexpr float kLog2e = 1.44269504f, kLowest = -3.40282347e38f;
static_assert(kAttentionStep == kWarp);

struct TileArgs {
  AttentionArgs args;
  int heads;         // of a tile's token: rows that stand together
  int parts;         // pieces that the query heads of a KV head are cut into, each of so many
  int warp_tokens;   // tokens of a tile
  int block_tokens;  // and of a block's tiles, at most a warp
};

/// kRowWarps: tiles of a block; one that all warps share, or one a warp.
template <int kDim_, bool kBf16_, int kRowWarps_>
struct Shape {
  static constexpr int kDim = kDim_, kRowWarps = kRowWarps_;
  static constexpr bool kBf16 = kBf16_, kTogether = kRowWarps == 1;
  static constexpr int kRows = kTile * kRowWarps;
  static constexpr int kPieces = kDim / 8;   // of 16 bytes, of a key
  static constexpr int kPitch = kDim + 8;    // of keys in shared memory: no two rows in one bank
  static constexpr int kPlane = kAttentionStep * kPitch, kStage = 2 * kPlane;
  static constexpr int kStages = kTogether ? 3 : kWarps;
  static constexpr int kColumns = kPieces / (kTogether ? kWarps : 1);  // a warp's, of 8 elements
  static constexpr int kPartial = kDim + 4;  // floats: a row's sum of a slot, maximum, weight
  static constexpr int kScorePitch = 40;     // a step's scores, where the warps share it
  static constexpr int kQBytes = kRows * kPitch * 2, kRingBytes = kStages * kStage * 2;
  static constexpr int kScoreBytes = kTogether ? 2 * kTile * kScorePitch * 4 : 0;
  static constexpr int kSharedBytes = kQBytes + kRingBytes + kScoreBytes;
  static_assert(kRows * kPartial * 4 <= kRingBytes);
};

// ---- folding ---------------------------------------------------------------------------------

/// What a sum so far and the next part of it are multiplied with.
struct Factors {
  float sum, part;
};
__device__ Factors raise(float& most, float part_most) {
  const float top = part_most > most ? part_most : most;
  const Factors f{power_of_2(most - top), power_of_2(part_most - top)};
  most = top;
  return f;
}
__device__ float fold(float sum, Factors f, float part) {
  return fmaf(part, f.part, sum * f.sum);
}

/// Folds the first `slots` slots of four elements of a row and rounds them: elements(slot) and
/// weighs(slot), the row's maximum and weight.
template <class Elements, class Weighs>
__device__ uint2 merged(DType t, int slots, const Elements& elements, const Weighs& weighs) {
  constexpr int kAtOnce = 4;
  float most = kLowest, weight = 0.f;
  float4 sum{};
  for (int first = 0; first < slots; first += kAtOnce) {
    float4 part[kAtOnce];
    float2 own[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      if (first + j < slots) part[j] = elements(first + j), own[j] = weighs(first + j);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (first + j >= slots) break;
      const Factors f = raise(most, own[j].x);
      weight = fold(weight, f, own[j].y);
      sum = {fold(sum.x, f, part[j].x), fold(sum.y, f, part[j].y), fold(sum.z, f, part[j].z),
             fold(sum.w, f, part[j].w)};
    }
  }
  const auto pair = [&](float low, float high) {
    return to_16(t, low / weight) | uint32_t{to_16(t, high / weight)} << 16;
  };
  return {pair(sum.x, sum.y), pair(sum.z, sum.w)};
}

// ---- the tokens of a block -------------------------------------------------------------------

/// A token, one a lane.
struct Token {
  int slot = -1;                // its sequence's; -1 = there is none
  int committed = 0, seen = 0;  // seen: positions it attends to, its own the last
  int span = 1;                 // steps of its slots
  __device__ int steps() const { return (seen + kAttentionStep - 1) / kAttentionStep; }
  __device__ int slots() const { return (steps() + span - 1) / span; }
};
__device__ Token token_of(const Rows& rows, int row) {
  Token t{.slot = rows.slot[row], .committed = rows.committed[row]};
  t.seen = rows.position[row] + 1;
  if (t.steps() > kSlots) t.span = 1 << (kWarp - __clz((t.steps() - 1) / kSlots));
  return t;
}

/// Steps in the order they are taken: those of all rows, then token by token.
struct Cursor {
  static constexpr int kShared = -1, kDone = -2;
  unsigned tokens;  // still to come
  int token, step, end, tail, slot_end;

  /// Goes on where a token's steps are at an end. All lanes call.
  __device__ void settle(const Token& own) {
    while (token != kDone && step >= end) {
      if (tokens == 0) {
        token = kDone;
        return;
      }
      token = __ffs(static_cast<int>(tokens)) - 1, tokens &= tokens - 1;
      step = tail, end = min(__shfl_sync(kAllLanes, own.steps(), token), slot_end);
    }
  }
  __device__ void next(const Token& own) {
    ++step;
    settle(own);
  }
};

// ---- a thread block's work -------------------------------------------------------------------

template <class S>
struct Block {
  const TileArgs& p;
  const Token& own;
  const uint16_t *keys, *values;  // of the sequence and KV head in hand
  int first;                      // row of the round that token 0 is
  int lane, warp;
  uint16_t* ring;
  float* scores;
  const uint16_t* q;  // what the lane loads of the tile's rows
  float sum[S::kColumns][4];
  float most[2], weight[2];  // of rows lane / 4 and 8 more

  /// The entry of a step's key, one a lane, and how many the rows see.
  __device__ int entry(const Cursor& c, int& valid) const {
    const int at = c.step * kAttentionStep + lane;
    valid = kAttentionStep;
    if (c.token < 0) return at;
    const int committed = __shfl_sync(kAllLanes, own.committed, c.token);
    const int seen = __shfl_sync(kAllLanes, own.seen, c.token);
    valid = min(seen - c.step * kAttentionStep, kAttentionStep);
    if (at >= seen) return 0;
    if (at < committed) return at;
    const Rows& rows = p.args.rows;
    const uint16_t slot = rows.path[int64_t{first + c.token} * rows.depth + at - committed];
    return static_cast<int>(entry_of_scratch(p.args.kv.spec, slot));
  }
  /// Puts keys or values on their way, by kCopiers threads; zeros where no key is seen.
  template <int kCopiers>
  __device__ void copy(uint16_t* to, const uint16_t* from, int entry, int valid) const {
    const int thread = kCopiers == kWarp ? lane : static_cast<int>(threadIdx.x);
#pragma unroll 4
    for (int i = 0; i < kAttentionStep * S::kPieces / kCopiers; ++i) {
      const int at = i * kCopiers + thread, key = at / S::kPieces, piece = at % S::kPieces;
      const int e = __shfl_sync(kAllLanes, entry, key);
      copy_16(to + key * S::kPitch + piece * 8, from + int64_t{e} * S::kDim + piece * 8,
              key < valid);
    }
  }

  /// Products of the tile's rows and 8 keys, kCount times.
  template <int kCount>
  __device__ void products(float (&d)[kCount][4], const uint16_t* key) const {
    key += lane % 8 * S::kPitch + lane / 8 * 8;
    for (auto& column : d) column[0] = column[1] = column[2] = column[3] = 0.f;
#pragma unroll
    for (int k = 0; k < S::kDim; k += 32) {
      uint32_t low[4], high[4];
      load_matrices(low, q + k);
      load_matrices(high, q + k + 16);
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        uint32_t b[4];
        load_matrices(b, key + j * 8 * S::kPitch + k);
        add_product<S::kBf16>(d[j], low, b[0], b[1]);
        add_product<S::kBf16>(d[j], high, b[2], b[3]);
      }
    }
  }
  /// A step's scores, as a tensor instruction has its results: 8 keys a column. Where the warps
  /// share the step, each has made a column; `turn` alternates.
  __device__ void score(float (&s)[4][4], const uint16_t* key, int turn) const {
    const float scale = p.args.scale * kLog2e;
    if constexpr (S::kTogether) {
      float d[1][4];
      products(d, key + warp * 8 * S::kPitch);
      float* const at = scores + (turn * kTile + lane / 4) * S::kScorePitch + lane % 4 * 2;
      float* const to = at + warp * 8;
      *reinterpret_cast<float2*>(to) = {d[0][0] * scale, d[0][1] * scale};
      *reinterpret_cast<float2*>(to + 8 * S::kScorePitch) = {d[0][2] * scale, d[0][3] * scale};
      __syncthreads();
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 low = *reinterpret_cast<const float2*>(at + j * 8);
        const float2 high = *reinterpret_cast<const float2*>(at + j * 8 + 8 * S::kScorePitch);
        s[j][0] = low.x, s[j][1] = low.y, s[j][2] = high.x, s[j][3] = high.y;
      }
    } else {
      products(s, key);
      for (auto& column : s)
        for (float& x : column) x = x * scale;
    }
  }
  /// A step's powers as fragments, and what its sums are folded with. Rows that take no part in it
  /// keep what they have.
  struct Powers {
    uint32_t p[2][4];
    Factors f[2];
    bool takes[2];
  };
  __device__ Powers weigh(const Cursor& c, const float (&s)[4][4], int valid) {
    Powers w;
    float top[2] = {kLowest, kLowest};
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (j * 8 + lane % 4 * 2 + i % 2 < valid && s[j][i] > top[i / 2]) top[i / 2] = s[j][i];
#pragma unroll
    for (float& x : top)
      for (int by = 1; by < 4; by *= 2) {
        const float other = __shfl_xor_sync(kAllLanes, x, by);
        x = other > x ? other : x;
      }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float power[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        power[i] =
            j * 8 + lane % 4 * 2 + i % 2 < valid ? power_of_2(s[j][i] - top[i / 2]) : 0.f;
      w.p[j / 2][j % 2 * 2] = rounded_pair<S::kBf16>(power[0], power[1]);
      w.p[j / 2][j % 2 * 2 + 1] = rounded_pair<S::kBf16>(power[2], power[3]);
    }
    constexpr uint32_t kOnes = S::kBf16 ? 0x3f803f80u : 0x3c003c00u;
    float weights[4];
    product<S::kBf16>(weights, w.p[0], kOnes, kOnes);
    add_product<S::kBf16>(weights, w.p[1], kOnes, kOnes);
    const int in_tile = c.token < 0 ? 0 : c.token % p.warp_tokens * p.heads;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane / 4 + half * 8;
      w.takes[half] = c.token < 0 || (row >= in_tile && row < in_tile + p.heads);
      if (!w.takes[half]) continue;
      w.f[half] = raise(most[half], top[half]);
      weight[half] = fold(weight[half], w.f[half], weights[half * 2]);
    }
    return w;
  }
  __device__ void add_values(const Powers& w, const uint16_t* value) {
    value += lane * S::kPitch + (S::kTogether ? warp * S::kColumns * 8 : 0);
#pragma unroll
    for (int n = 0; n < S::kColumns; ++n) {
      if (n % 4 == 0) __syncwarp();  // so that few columns are in registers at once
      uint32_t b[4];
      load_transposed(b, value + n * 8);
      float d[4];
      product<S::kBf16>(d, w.p[0], b[0], b[1]);
      add_product<S::kBf16>(d, w.p[1], b[2], b[3]);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (w.takes[i / 2]) sum[n][i] = fold(sum[n][i], w.f[i / 2], d[i]);
    }
  }

  // Steps that all threads take together, out of a ring of stages.

  Cursor ahead;  // the step to put on its way next
  int filled;    // steps put on their way before the first is taken

  /// Fills the ring; with `limit`, with steps of all rows below that position alone.
  __device__ void fill(int limit) {
    while (filled < S::kStages - 1 && ahead.token != Cursor::kDone &&
           (limit < 0 ||
            (ahead.token < 0 && (ahead.step + 1) * kAttentionStep <= limit)))
      put_ahead(filled++);
  }
  __device__ void put_ahead(int stage) {
    int valid;
    const int e = entry(ahead, valid);
    copy<kThreads>(ring + stage * S::kStage, keys, e, valid);
    copy<kThreads>(ring + stage * S::kStage + S::kPlane, values, e, valid);
    end_group();
    ahead.next(own);
  }
  __device__ void take(Cursor c) {
    for (; filled < S::kStages - 1; ++filled) end_group();
    for (int stage = 0, turn = 0; c.token != Cursor::kDone; c.next(own), turn ^= 1) {
      wait_for_groups<S::kStages - 2>();
      __syncthreads();
      const int free = stage == 0 ? S::kStages - 1 : stage - 1;  // the one taken last
      if (ahead.token != Cursor::kDone)
        put_ahead(free);
      else
        end_group();
      const uint16_t* const keys_here = ring + stage * S::kStage;
      float s[4][4];
      score(s, keys_here, turn);
      int valid = kAttentionStep;
      if (c.token >= 0)
        valid = min(__shfl_sync(kAllLanes, own.seen, c.token) - c.step * kAttentionStep, valid);
      add_values(weigh(c, s, valid), keys_here + S::kPlane);
      stage = stage == S::kStages - 1 ? 0 : stage + 1;
    }
  }
  /// Steps that a warp takes by itself, out of its own stage: the next step's keys come while this
  /// one's values are added, its values while the keys are.
  __device__ void take_alone(Cursor c) {
    uint16_t* const keys_here = ring + warp * S::kStage;
    uint16_t* const values_here = keys_here + S::kPlane;
    int valid = 0, valid_next = 0;
    c.settle(own);
    if (c.token == Cursor::kDone) return;
    int e = entry(c, valid);
    copy<kWarp>(keys_here, keys, e, valid);
    end_group();
    copy<kWarp>(values_here, values, e, valid);
    end_group();
    while (c.token != Cursor::kDone) {
      Cursor after = c;
      after.next(own);
      const bool more = after.token != Cursor::kDone;
      if (more) e = entry(after, valid_next);
      wait_for_groups<1>();
      __syncwarp();
      float s[4][4];
      score(s, keys_here, 0);
      __syncwarp();
      if (more) copy<kWarp>(keys_here, keys, e, valid_next);
      end_group();
      const Powers w = weigh(c, s, valid);
      wait_for_groups<1>();
      __syncwarp();
      add_values(w, values_here);
      __syncwarp();
      if (more) copy<kWarp>(values_here, values, e, valid_next);
      end_group();
      c = after, valid = valid_next;
    }
  }

  __device__ void clear() {
    for (auto& column : sum)
      for (float& x : column) x = 0.f;
    most[0] = most[1] = kLowest, weight[0] = weight[1] = 0.f;
  }
  /// Stores the slot's sums; at(row of the block) is where a row's go, null where they do not.
  template <class At>
  __device__ void store(const At& at) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float* const to = at((S::kTogether ? 0 : warp * kTile) + lane / 4 + half * 8);
      if (!to) continue;
      const int column = S::kTogether ? warp * S::kColumns : 0;
#pragma unroll
      for (int n = 0; n < S::kColumns; ++n)
        *reinterpret_cast<float2*>(to + (column + n) * 8 + lane % 4 * 2) = {sum[n][half * 2],
                                                                          sum[n][half * 2 + 1]};
      if (lane % 4 == 0 && (!S::kTogether || warp == 0))
        *reinterpret_cast<float2*>(to + S::kDim) = {most[half], weight[half]};
    }
  }
};

/// Where the workspace has a row's sums of its slots.
template <int kPartial>
__device__ float* in_workspace(const AttentionArgs& a, int row, int head) {
  return static_cast<float*>(a.workspace) + (int64_t{row} * a.heads + head) * kSlots * kPartial;
}

template <class S>
__global__ void __launch_bounds__(kThreads, S::kTogether ? 3 : 2)
    tiles_kernel(const __grid_constant__ TileArgs p) {
  start_next();
  extern __shared__ __align__(16) std::byte shared[];
  const AttentionArgs& a = p.args;
  const KVSpec& spec = a.kv.spec;
  const int lane = lane_of_thread(), warp = warp_of_thread(), slot = static_cast<int>(blockIdx.x);
  const int kv_head = static_cast<int>(blockIdx.y) / p.parts, group = a.heads / spec.kv_heads;
  const int head_in_group = static_cast<int>(blockIdx.y) % p.parts * p.heads;
  const int heads = min(p.heads, group - head_in_group), head = kv_head * group + head_in_group;
  const int base = static_cast<int>(blockIdx.z) * p.block_tokens;
  const int tokens = min(live_rows(a.live) - base, p.block_tokens);
  if (tokens <= 0) {
    wait_for_inputs();
    return;
  }
  const int first = first_row(a.live) + base;
  Token own;
  int older = INT32_MAX;  // keys that no row of this block of rows has written
  if (lane < tokens) {
    own = token_of(a.rows, first + lane);
    // Rows of its sequence that stand before it in the block are at the positions just below.
    const int from = a.rows.scratch[first + lane] < 0 ? own.seen - 1 : own.committed;
    older = max(0, from - base - lane);
  }

  uint16_t* const q = reinterpret_cast<uint16_t*>(shared);
  uint16_t* const ring = q + S::kQBytes / 2;
  Block<S> block{.p = p, .own = own, .first = first, .lane = lane, .warp = warp, .ring = ring};
  block.q = q + ((S::kTogether ? 0 : warp * kTile) + lane % 16) * S::kPitch + lane / 16 * 8;
  block.scores = reinterpret_cast<float*>(shared + S::kQBytes + S::kRingBytes);
  /// A row of the block's tiles as a token and one of its heads.
  const auto token_of_row = [&](int row) {
    return row / kTile * p.warp_tokens + row % kTile / p.heads;
  };
  const auto is_row = [&](int row) {
    return row % kTile < p.warp_tokens * p.heads && row % kTile % p.heads < heads &&
           token_of_row(row) < tokens;
  };

  // Tokens of one sequence, whose slots have the same span, go together.
  bool waited = false;
  for (unsigned left = __ballot_sync(kAllLanes, own.slot >= 0); left;) {
    const int leader = __ffs(static_cast<int>(left)) - 1;
    const int sequence = __shfl_sync(kAllLanes, own.slot, leader);
    const int span = __shfl_sync(kAllLanes, own.span, leader);
    const unsigned together =
        __ballot_sync(kAllLanes, own.slot == sequence && own.span == span);
    left &= ~together;
    const bool mine = together >> lane & 1;
    const int none = INT32_MAX;
    const int common = __reduce_min_sync(
        kAllLanes, mine ? min(own.committed, own.seen) / kAttentionStep : none);
    block.keys = static_cast<const uint16_t*>(a.kv.data) + keys_at(spec, a.layer, sequence, kv_head);
    block.values = block.keys + kv_plane(spec);
    block.clear();
    Cursor c{.tokens = S::kTogether ? together : 0, .token = Cursor::kShared};
    c.step = slot * span, c.slot_end = c.step + span;
    c.end = min(c.slot_end, common), c.tail = max(c.step, common);
    Cursor alone = c;
    c.settle(own);
    block.ahead = c, block.filled = 0;
    if (!waited) {
      // Keys that no row of this pass has written are there: what came before the kernel that
      // writes them is over when that one lets this one begin.
      block.fill(__reduce_min_sync(kAllLanes, mine ? older : none));
      wait_for_inputs();
      block.fill(-1);
      for (int i = static_cast<int>(threadIdx.x); i < S::kRows * S::kPieces; i += kThreads) {
        const int row = i / S::kPieces, piece = i % S::kPieces;
        uint4 words{};
        if (is_row(row))
          words = *reinterpret_cast<const uint4*>(
              row_of<const uint16_t>(a.q, base + token_of_row(row)) +
              (head + row % kTile % p.heads) * S::kDim + piece * 8);
        *reinterpret_cast<uint4*>(q + row * S::kPitch + piece * 8) = words;
      }
      __syncthreads();
      waited = true;
    } else {
      block.fill(-1);
    }
    block.take(c);
    if constexpr (!S::kTogether) {
      __syncthreads();
      alone.tokens = together & ((1u << p.warp_tokens) - 1) << warp * p.warp_tokens;
      alone.end = alone.step;
      block.take_alone(alone);
    }
    wait_for_groups<0>();
    __syncthreads();

#if __CUDA_ARCH__ >= 900
    float* const partial = reinterpret_cast<float*>(ring);
    block.store([&](int row) { return partial + row * S::kPartial; });
    cluster_sync();
    // Four elements a thread; those of eight threads stand together and go to the blocks by turns.
    constexpr int kFours = S::kDim / 4, kRun = 8;
    const int all = tokens * heads * kFours, run = static_cast<int>(threadIdx.x) / kRun;
    for (int done = 0; done < all; done += kThreads * kSlots) {
      const int i = done + (run * kSlots + slot) * kRun + static_cast<int>(threadIdx.x) % kRun;
      const int of = i / kFours, four = i % kFours, h = of % heads, token = of / heads;
      const int slots = __shfl_sync(kAllLanes, own.slots(), min(token, tokens - 1));
      if (i >= all || !(together >> token & 1)) continue;
      const int row = token / p.warp_tokens * kTile + token % p.warp_tokens * p.heads + h;
      const float* const at = partial + row * S::kPartial;
      const uint2 words = merged(
          a.out.dtype, slots, [&](int from) { return load_four(in_block(at + four * 4, from)); },
          [&](int from) { return load_two(in_block(at + S::kDim, from)); });
      *reinterpret_cast<uint2*>(row_of<uint16_t>(a.out, base + token) + (head + h) * S::kDim +
                                four * 4) = words;
    }
    cluster_sync();
#else
    const unsigned takes = __ballot_sync(kAllLanes, mine && slot < own.slots());
    block.store([&](int row) -> float* {
      if (!is_row(row) || !(takes >> token_of_row(row) & 1)) return nullptr;
      return in_workspace<S::kPartial>(a, base + token_of_row(row), head + row % kTile % p.heads) +
             slot * S::kPartial;
    });
    __syncthreads();
#endif
  }
}

/// The slots of a row and head that a kernel without clusters has left in the workspace.
template <class S>
__global__ void merge_kernel(const __grid_constant__ TileArgs p) {
  begin();
  const AttentionArgs& a = p.args;
  const int row = static_cast<int>(blockIdx.y), head = static_cast<int>(blockIdx.x);
  const int four = static_cast<int>(threadIdx.x);
  if (row >= live_rows(a.live) || four >= S::kDim / 4) return;
  const Token token = token_of(a.rows, first_row(a.live) + row);
  const float* const at = in_workspace<S::kPartial>(a, row, head);
  const uint2 words = merged(
      a.out.dtype, token.slots(),
      [&](int slot) { return reinterpret_cast<const float4*>(at + slot * S::kPartial)[four]; },
      [&](int slot) {
        return *reinterpret_cast<const float2*>(at + slot * S::kPartial + S::kDim);
      });
  *reinterpret_cast<uint2*>(row_of<uint16_t>(a.out, row) + head * S::kDim + four * 4) = words;
}

/// Where clusters are: what runs was compiled for devices that have them.
template <class S>
bool in_clusters() {
  cudaFuncAttributes attributes{};
  must(cudaFuncGetAttributes(&attributes, tiles_kernel<S>), "a kernel's version");
  return attributes.ptxVersion >= 90;
}

template <class S>
void launch_tiles(const TileArgs& p, cudaStream_t stream) {
  const AttentionArgs& a = p.args;
  const auto set = [](cudaFuncAttribute which, int value) {
    must(cudaFuncSetAttribute(tiles_kernel<S>, which, value), "a kernel's limits");
  };
  set(cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes);
  const dim3 grid(kSlots, a.kv.spec.kv_heads * p.parts,
                  (a.live.capacity + p.block_tokens - 1) / p.block_tokens);
  if (in_clusters<S>()) {
    set(cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    return launch_clusters(tiles_kernel<S>, grid, kSlots, kThreads, S::kSharedBytes, stream, p);
  }
  launch_kernel(tiles_kernel<S>, grid, kThreads, S::kSharedBytes, stream, p);
  launch_kernel(merge_kernel<S>, dim3(a.heads, a.live.capacity), kWarp, 0, stream, p);
}

template <int kDim, bool kBf16>
void launch_rows(TileArgs p, cudaStream_t stream) {
  p.warp_tokens = kTile / p.heads;
  if (p.args.live.capacity <= 2 * p.warp_tokens) {
    p.block_tokens = p.warp_tokens;
    return launch_tiles<Shape<kDim, kBf16, 1>>(p, stream);
  }
  p.warp_tokens = min(p.warp_tokens, kWarp / kWarps);  // a lane a token
  p.block_tokens = kWarps * p.warp_tokens;
  launch_tiles<Shape<kDim, kBf16, kWarps>>(p, stream);
}

bool fits(const AttentionArgs& a) {
  const KVSpec& spec = a.kv.spec;
  return (spec.head_dim == 64 || spec.head_dim == 128) && a.q.dtype == spec.dtype;
}

}  // namespace

size_t tiles_workspace_bytes(const AttentionArgs& a) {
  if (!fits(a) || in_clusters<Shape<64, true, 1>>()) return 0;
  return sizeof(float) * a.live.capacity * a.heads * kSlots * (a.kv.spec.head_dim + 4);
}

bool attention_in_tiles(const AttentionArgs& a, cudaStream_t stream) {
  if (!fits(a)) return false;
  const int group = a.heads / a.kv.spec.kv_heads;
  TileArgs p{.args = a};
  p.parts = (group + kTile - 1) / kTile, p.heads = (group + p.parts - 1) / p.parts;
  const bool bf16 = a.q.dtype == DType::bf16;
  if (a.kv.spec.head_dim == 64)
    bf16 ? launch_rows<64, true>(p, stream) : launch_rows<64, false>(p, stream);
  else
    bf16 ? launch_rows<128, true>(p, stream) : launch_rows<128, false>(p, stream);
  return true;
}

}  // namespace stepladder::cuda
