// Steps of attention on tensor instructions, for heads of 64 and 128 elements. The query heads that
// share a head of keys, of some tokens, are the 16 rows of an instruction, a tile: keys and values
// are read once for all of them. Four warps are a team: they share a step of one tile, its keys
// first and then its elements, or have a tile each. A row's sums are the same either way:
//
//   step    32 keys, aligned to position: scores, their maximum, powers rounded to 16 bits, and
//           the values' sum from zero
//   slot    `span` steps, folded one after the other; as few as cover all steps but the row's last
//           with kSlots slots
//   row     its slots, folded by index, and its last step, the one that it stands in itself
//
// All that follows from the row's position. Steps below the committed positions of all rows are
// taken by all of them together; from there on a token's rows take steps of their own, gathered
// along its path.
#pragma once

#include "backends/cuda/device/tensor.cuh"
#include "backends/cuda/device/words.cuh"
#include "backends/cuda/kv_layout.h"
#include "backends/operators.h"

namespace stepladder::cuda {

constexpr int kTeamWarps = 4, kTeam = kTeamWarps * kWarp;
constexpr int kTile = 16;   // rows of an instruction
constexpr int kSlots = 32;  // at most
constexpr float kLog2e = 1.44269504f, kLowest = -3.40282347e38f;
static_assert(kAttentionStep == kWarp && kSlots == kWarp);

struct TileArgs {
  AttentionArgs args;
  int heads;         // of a token's tile: rows that stand together
  int parts;         // pieces that the query heads of a KV head are cut into, each of so many
  int warp_tokens;   // tokens of a tile
  int block_tokens;  // and of a block's tiles, at most a warp
  bool whole;        // blocks take short rows from end to end
};

template <int kDim_, bool kBf16_, bool kTogether_>
struct TileShape {
  static constexpr int kDim = kDim_;
  static constexpr bool kBf16 = kBf16_, kTogether = kTogether_;  // one tile, or one a warp
  static constexpr int kRows = kTile * (kTogether ? 1 : kTeamWarps);
  static constexpr int kPieces = kDim / 8;  // of 16 bytes, of a key
  static constexpr int kPitch = kDim + 8;   // of keys in shared memory: no two rows in one bank
  static constexpr int kPlane = kAttentionStep * kPitch, kStage = 2 * kPlane;
  static constexpr int kStages = kTogether ? 2 : kTeamWarps;
  static constexpr int kColumns = kPieces / (kTogether ? kTeamWarps : 1);  // a warp's, of 8
  static constexpr int kScorePitch = 40;  // a step's scores, where the warps share it
  static constexpr int kQBytes = kRows * kPitch * 2, kRingBytes = kStages * kStage * 2;
  static constexpr int kScoreBytes = kTogether ? 2 * kTile * kScorePitch * 4 : 0;
};

// ---- folding ---------------------------------------------------------------------------------

/// What a sum so far and the next part of it are multiplied with.
struct Factors {
  float sum, part;
};
__device__ inline Factors raise(float& most, float part_most) {
  const float top = part_most > most ? part_most : most;
  const Factors f{power_of_2(most - top), power_of_2(part_most - top)};
  most = top;
  return f;
}
__device__ inline float fold(float sum, Factors f, float part) {
  return fmaf(part, f.part, sum * f.sum);
}

/// Elements of a row.
template <int kCount>
struct alignas(4 * kCount) Elements {
  float of[kCount];
};

/// Elements of a row: its slots' parts(0) to parts(slots - 1), then its last step's, divided by the
/// row's weight. `slot` is the maximum and weight of slot `lane`, `last` of the last step. All lanes
/// call. kAtOnce: parts that are loaded at once.
template <int kAtOnce, int kCount, class Parts>
__device__ Elements<kCount> merged(int slots, float2 slot, const Parts& parts, float2 last,
                                   const Elements<kCount>& last_part) {
  const int lane = lane_of_thread();
  float most = lane < slots ? slot.x : kLowest;
  const float own = most;
#pragma unroll
  for (int by = 1; by < kWarp; by *= 2) {
    const float before = __shfl_up_sync(kAllLanes, most, by);
    most = lane >= by && before > most ? before : most;
  }
  float before = __shfl_up_sync(kAllLanes, most, 1);
  if (lane == 0) before = kLowest;
  const Factors of_lane{power_of_2(before - most), power_of_2(own - most)};
  Elements<kCount> sum{};
  float weight = 0.f;
  const auto add = [&](Factors f, const Elements<kCount>& part) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum.of[i] = fold(sum.of[i], f, part.of[i]);
  };
#pragma unroll kAtOnce
  for (int s = 0; s < slots; ++s) {
    const Factors f{__shfl_sync(kAllLanes, of_lane.sum, s),
                    __shfl_sync(kAllLanes, of_lane.part, s)};
    add(f, parts(s));
    weight = fold(weight, f, __shfl_sync(kAllLanes, slot.y, s));
  }
  most = __shfl_sync(kAllLanes, most, kWarp - 1);
  const Factors f = raise(most, last.x);
  add(f, last_part);
  weight = fold(weight, f, last.y);
#pragma unroll
  for (int i = 0; i < kCount; ++i) sum.of[i] = sum.of[i] / weight;
  return sum;
}

// ---- tokens and their steps ------------------------------------------------------------------

/// A token of a block, one a lane.
struct Token {
  int slot = -1;                // its sequence's; -1 = there is none
  int committed = 0, seen = 0;  // seen: positions it attends to, its own the last
  int span = 1;                 // steps of its slots
  /// Steps but the last.
  __device__ int body() const { return (seen - 1) / kAttentionStep; }
  __device__ int slots() const { return (body() + span - 1) / span; }
};
__device__ inline Token token_of(const Rows& rows, int row) {
  Token t{.slot = rows.slot[row], .committed = rows.committed[row]};
  t.seen = rows.position[row] + 1;
  t.span = max(1, (t.body() + kSlots - 1) / kSlots);
  return t;
}

/// Steps in the order they are taken: those of all rows, then token by token.
struct Cursor {
  static constexpr int kShared = -1, kDone = -2;
  unsigned tokens = 0;  // still to come
  int token = kShared, step = 0, end = 0;
  int own_from = 0,
      own_to = 0;  // the steps that tokens take on their own, as far as they have them
  int last = 0;    // 1: a token's last step is one of them

  /// Goes on where a token's steps are at an end. All lanes call.
  __device__ void settle(const Token& own) {
    while (token != kDone && step >= end) {
      if (tokens == 0) {
        token = kDone;
        return;
      }
      token = __ffs(static_cast<int>(tokens)) - 1, tokens &= tokens - 1;
      step = own_from, end = min(__shfl_sync(kAllLanes, own.body(), token) + last, own_to);
    }
  }
  __device__ void next(const Token& own) {
    ++step;
    settle(own);
  }
};
/// The last step of a token alone. All lanes call.
__device__ inline Cursor last_of(const Token& own, int token) {
  Cursor c;
  c.token = token, c.step = __shfl_sync(kAllLanes, own.body(), token), c.end = c.step + 1;
  return c;
}

// ---- a team's work ---------------------------------------------------------------------------

template <class S>
struct Team {
  const TileArgs& p;
  const Token& own;
  const uint16_t *keys = nullptr, *values = nullptr;  // of the sequence and KV head in hand
  int first;                                          // row of the round that token 0 is
  int lane, warp;
  uint16_t* ring;
  float* scores;
  const uint16_t* q;  // what the lane loads of the tile's rows

  float sum[S::kColumns][4];
  float most[2], weight[2];  // of rows lane / 4 and 8 more
  Cursor ahead;              // the step to put on its way next
  int filled;                // steps put on their way before the first is taken

  /// By a barrier of the block that is the team's own.
  __device__ void sync() const {
    asm volatile("bar.sync %0, %1;" ::"r"(1 + threadIdx.x / kTeam), "n"(kTeam) : "memory");
  }

  /// Puts keys or values of a step that all rows take on their way.
  __device__ void copy_shared(uint16_t* to, const uint16_t* from) const {
    const int thread = warp * kWarp + lane;
    to += thread / S::kPieces * S::kPitch + thread % S::kPieces * 8, from += thread * 8;
#pragma unroll
    for (int i = 0; i < kAttentionStep * S::kPieces / kTeam; ++i)
      copy_16(to + i * (kTeam / S::kPieces) * S::kPitch, from + i * kTeam * 8, true);
  }
  /// The entry of key `lane` of a token's own step, and how many the token sees.
  __device__ int entry(const Cursor& c, int& valid) const {
    const int at = c.step * kAttentionStep + lane;
    const int committed = __shfl_sync(kAllLanes, own.committed, c.token);
    const int seen = __shfl_sync(kAllLanes, own.seen, c.token);
    valid = min(seen - c.step * kAttentionStep, kAttentionStep);
    if (at >= seen) return 0;
    if (at < committed) return at;
    const Rows& rows = p.args.rows;
    const uint16_t slot = rows.path[int64_t{first + c.token} * rows.depth + at - committed];
    return static_cast<int>(entry_of_scratch(p.args.kv.spec, slot));
  }
  /// The same of those entries, by kCopiers threads; zeros where no key is seen.
  template <int kCopiers>
  __device__ void copy(uint16_t* to, const uint16_t* from, int entry, int valid) const {
    const int thread = kCopiers == kWarp ? lane : warp * kWarp + lane;
#pragma unroll(S::kTogether ? 2 : 4)
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
      sync();
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
  template <bool kAll>
  __device__ Powers weigh(int token, const float (&s)[4][4], int valid) {
    Powers w;
    float top[2] = {kLowest, kLowest};
    const auto seen = [&](int j, int i) { return kAll || j * 8 + lane % 4 * 2 + i % 2 < valid; };
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (seen(j, i) && s[j][i] > top[i / 2]) top[i / 2] = s[j][i];
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
      for (int i = 0; i < 4; ++i) power[i] = seen(j, i) ? power_of_2(s[j][i] - top[i / 2]) : 0.f;
      w.p[j / 2][j % 2 * 2] = rounded_pair<S::kBf16>(power[0], power[1]);
      w.p[j / 2][j % 2 * 2 + 1] = rounded_pair<S::kBf16>(power[2], power[3]);
    }
    constexpr uint32_t kOnes = S::kBf16 ? 0x3f803f80u : 0x3c003c00u;
    float weights[4];
    product<S::kBf16>(weights, w.p[0], kOnes, kOnes);
    add_product<S::kBf16>(weights, w.p[1], kOnes, kOnes);
    const int in_tile = kAll ? 0 : token % p.warp_tokens * p.heads;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane / 4 + half * 8;
      w.takes[half] = kAll || (row >= in_tile && row < in_tile + p.heads);
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

  /// Before steps that sum up to something of their own.
  __device__ void begin(const Cursor& c) {
    for (auto& column : sum)
      for (float& x : column) x = 0.f;
    most[0] = most[1] = kLowest, weight[0] = weight[1] = 0.f;
    ahead = c, filled = 0;
  }
  /// Fills the ring; with steps of all rows below a position alone, where there is one.
  __device__ void fill(int limit = INT32_MAX) {
    while (filled < S::kStages - 1 && ahead.token != Cursor::kDone &&
           (limit == INT32_MAX || (ahead.token < 0 && (ahead.step + 1) * kAttentionStep <= limit)))
      put_ahead(filled++);
  }
  __device__ void put_ahead(int stage) {
    uint16_t* const to = ring + stage * S::kStage;
    if (ahead.token < 0) {
      const int64_t from = int64_t{ahead.step} * kAttentionStep * S::kDim;
      copy_shared(to, keys + from);
      copy_shared(to + S::kPlane, values + from);
    } else {
      int valid;
      const int e = entry(ahead, valid);
      copy<kTeam>(to, keys, e, valid);
      copy<kTeam>(to + S::kPlane, values, e, valid);
    }
    end_group();
    ahead.next(own);
  }
  /// The steps that begin() was given, by the whole team; fill() may have been called.
  __device__ void take(Cursor c) {
    fill();
    for (; filled < S::kStages - 1; ++filled) end_group();
    for (int stage = 0, turn = 0; c.token != Cursor::kDone; c.next(own), turn ^= 1) {
      wait_for_groups<S::kStages - 2>();
      sync();
      const int free = stage == 0 ? S::kStages - 1 : stage - 1;  // the one taken last
      if (ahead.token != Cursor::kDone)
        put_ahead(free);
      else
        end_group();
      const uint16_t* const keys_here = ring + stage * S::kStage;
      float s[4][4];
      score(s, keys_here, turn);
      if (c.token < 0) {
        add_values(weigh<true>(c.token, s, kAttentionStep), keys_here + S::kPlane);
      } else if constexpr (S::kTogether) {
        const int seen = __shfl_sync(kAllLanes, own.seen, c.token);
        add_values(weigh<false>(c.token, s, seen - c.step * kAttentionStep), keys_here + S::kPlane);
      }
      stage = stage == S::kStages - 1 ? 0 : stage + 1;
    }
    wait_for_groups<0>();
    sync();
  }
  /// Steps that a warp takes by itself, out of its own stage: the next step's keys come while this
  /// one's values are added, its values while the keys are.
  __device__ void take_alone(Cursor c) {
    uint16_t* const keys_here = ring + warp * S::kStage;
    uint16_t* const values_here = keys_here + S::kPlane;
    c.settle(own);
    if (c.token == Cursor::kDone) return;
    int valid, valid_next = 0, e = entry(c, valid);
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
      const Powers w = weigh<false>(c.token, s, valid);
      wait_for_groups<1>();
      __syncwarp();
      add_values(w, values_here);
      __syncwarp();
      if (more) copy<kWarp>(values_here, values, e, valid_next);
      end_group();
      c = after, valid = valid_next;
    }
    wait_for_groups<0>();
  }
};

}  // namespace stepladder::cuda
