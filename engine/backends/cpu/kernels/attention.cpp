// Softmax attention by logical position. A row takes its keys in steps of 32 aligned to absolute
// position, so what a step adds depends on the tokens before the row and on nothing else:
//
//   positions   0 ........ 32 ........ 64 .. committed .... row
//               | region   | region    | region |  the row's own path, out of scratch slots
//               |  step 0  |  step 1   |  step 2: the tail, gathered into the same layout
//
// Steps wholly below the last boundary under `committed` read the region; from there on keys are
// gathered, and the same step function runs over them. Values are read where they lie, and only
// those of keys the row may see.
#include "backends/cpu/kv_layout.h"
#if defined(SL_ISA_avx512)
#include "backends/cpu/attention_step_avx512.h"
#else
#include "backends/cpu/attention_step_plain.h"
#endif

namespace stepladder::SL_ISA {
namespace {

constexpr int kTileRows = 8;     // rows that take a step of the region while it is in the L1 cache
constexpr int kTailBuffers = 4;  // gathered steps kept for the next row
constexpr float kLog2e = 1.44269504f;

/// Values of the region: rows one after the other.
struct InRegion {
  const uint16_t* first;
  int dim;
  const uint16_t* operator()(int j) const { return first + j * dim; }
};
/// Values of the tail: anywhere.
struct Anywhere {
  const uint16_t* const* row;
  const uint16_t* operator()(int j) const { return row[j]; }
};

template <class Value>
SL_INLINE void step_heads(int heads, DType t, const uint16_t* const* q, const uint16_t* k0,
                          const uint16_t* k1, Value value, int valid, int dim, float scale,
                          Running& run, float* sum) {
  switch (heads) {
    case 1:
      return step<1>(t, q, k0, k1, value, valid, dim, scale, run, sum);
    case 2:
      return step<2>(t, q, k0, k1, value, valid, dim, scale, run, sum);
    case 3:
      return step<3>(t, q, k0, k1, value, valid, dim, scale, run, sum);
    case 4:
      return step<4>(t, q, k0, k1, value, valid, dim, scale, run, sum);
  }
}

/// Key blocks of gathered steps. Rows of one sequence share the committed part of the tail, and
/// rows of a chain share their paths as well: a column is gathered only where the buffer does not
/// hold that very key already.
class Tail {
 public:
  /// Forgets what the buffers hold unless they belong to this head of this sequence and these
  /// committed keys.
  void open(const KVLayout& l, const uint16_t* base, int kv_head, int committed) {
    if (base == base_ && kv_head == kv_head_ && committed == committed_) return;
    base_ = base, kv_head_ = kv_head, committed_ = committed;
    for (int b = 0; b < kTailBuffers; ++b) first_[b] = -1;
  }

  /// Keys of positions first .. first+valid-1 of the row with this path, as two blocks.
  void gather(const KVLayout& l, const uint16_t* path, int first, int valid,
              const uint16_t* (&k)[2]) {
    const int dim = static_cast<int>(l.head_dim), b = first / kAttentionStep % kTailBuffers;
    uint16_t* const buffer = keys_ + static_cast<size_t>(b) * kAttentionStep * l.head_dim;
    if (first_[b] != first) {
      first_[b] = first;
      for (int j = 0; j < kAttentionStep; ++j) holds_[b][j] = -1;
      for (int half = 0; half < 2; ++half) copied_[b][half] = false;
    }
    for (int half = 0; half < 2; ++half) {
      const int from = first + half * kKeyBlock;
      const int seen = valid - half * kKeyBlock < kKeyBlock ? valid - half * kKeyBlock : kKeyBlock;
      const uint16_t* region = base_ + key_block(l, kv_head_, from);
      const int own = committed_ - from < 0 ? 0 : committed_ - from;  // columns before the path
      k[half] = region;
      if (own >= seen) continue;  // all committed (or nothing to see): read it where it lies
      uint16_t* const block = buffer + half * kKeyBlock * l.head_dim;
      k[half] = block;
      if (own > 0 && !copied_[b][half]) {
        __builtin_memcpy(block, region, kKeyBlock * l.head_dim * sizeof(uint16_t));
        copied_[b][half] = true;
      }
      for (int j = own; j < seen; ++j) {
        const int node = path[from + j - committed_];
        int32_t& holds = holds_[b][half * kKeyBlock + j];
        if (holds == node) continue;
        put_key(block, j, base_ + scratch_key(l, node, kv_head_), dim);
        holds = node;
      }
    }
  }

 private:
  const uint16_t* base_ = nullptr;
  int kv_head_ = -1, committed_ = -1;
  int first_[kTailBuffers];                      // position of a buffer's first key; -1 = unused
  bool copied_[kTailBuffers][2];                 // its committed columns are there
  int32_t holds_[kTailBuffers][kAttentionStep];  // scratch slot in each path column; -1 = none
  alignas(64) uint16_t keys_[kTailBuffers * kAttentionStep * kMaxHeadDim];
};

/// A row's share of one chunk of query heads.
struct Job {
  int row, head, heads;  // query heads [head, head + heads)
  int committed, steps;  // steps that read the region
  const uint16_t* base;  // of the row's sequence in this layer
  const uint16_t* q[kHeads];
};

class Lanework {
 public:
  explicit Lanework(const AttentionArgs& a)
      : a_(a),
        l_(kv_layout(a.kv.spec)),
        dim_(a.kv.spec.head_dim),
        padded_(padded_dim(a.kv.spec.head_dim)),
        type_(a.kv.spec.dtype),
        scale_(a.scale * kLog2e),
        first_(first_row(a.live)) {}

  /// Query heads [from.head..) of row from.row up to, not including, head to.head of row to.row.
  struct Place {
    int row, head;
  };
  void run(Place from, Place to) {
    const int group = a_.heads / a_.kv.spec.kv_heads;
    const int rows = to.head > 0 ? to.row + 1 : to.row;
    for (int kv_head = 0; kv_head < a_.kv.spec.kv_heads; ++kv_head)
      for (int c = 0; c < group; c += kHeads) {
        const int first = kv_head * group + c;
        const int last = first + (group - c < kHeads ? group - c : kHeads);
        jobs_ = 0;
        for (int row = from.row; row < rows; ++row) {
          const int lo = row == from.row && from.head > first ? from.head : first;
          const int hi = row == to.row && to.head < last ? to.head : last;
          if (lo < hi) add(row, lo, hi - lo);
          if (jobs_ == kTileRows || (row + 1 == rows && jobs_ > 0)) tile(kv_head);
        }
      }
  }

 private:
  void add(int row, int head, int heads) {
    Job& j = job_[jobs_];
    j.row = row, j.head = head, j.heads = heads;
    j.committed = a_.rows.committed[first_ + row];
    j.steps = j.committed / kAttentionStep;
    j.base = static_cast<const uint16_t*>(a_.kv.data) +
             kv_base(l_, a_.layer, a_.rows.slot[first_ + row]);
    for (int h = 0; h < heads; ++h)
      j.q[h] = row_of<uint16_t>(a_.q, row) + static_cast<int64_t>(head + h) * dim_;
    for (int h = 0; h < kHeads; ++h) {
      run_[jobs_].largest[h] = -3.40282347e38f;
      for (int i = 0; i < kLanes; ++i) run_[jobs_].weight[h][i] = 0.f;
    }
    for (int i = 0; i < heads * padded_; ++i) sum_of(jobs_)[i] = 0.f;
    ++jobs_;
  }

  void tile(int kv_head) {
    int most = 0;
    for (int i = 0; i < jobs_; ++i) most = job_[i].steps > most ? job_[i].steps : most;
    for (int s = 0; s < most; ++s)
      for (int i = 0; i < jobs_; ++i) {
        const Job& j = job_[i];
        if (s >= j.steps) continue;
        const int first = s * kAttentionStep;
        const uint16_t* k = j.base + key_block(l_, kv_head, first);
        const InRegion value{j.base + value_at(l_, kv_head, first), dim_};
        step_heads(j.heads, type_, j.q, k, k + kKeyBlock * l_.head_dim, value, kAttentionStep, dim_,
                   scale_, run_[i], sum_of(i));
      }
    for (int i = 0; i < jobs_; ++i) {
      tail(job_[i], kv_head, run_[i], sum_of(i));
      for (int h = 0; h < job_[i].heads; ++h)
        finish(
            type_, run_[i], h, sum_of(i) + h * padded_, dim_,
            row_of<uint16_t>(a_.out, job_[i].row) + static_cast<int64_t>(job_[i].head + h) * dim_);
    }
    jobs_ = 0;
  }

  void tail(const Job& j, int kv_head, Running& run, float* sum) {
    const uint16_t* path = a_.rows.path + static_cast<int64_t>(first_ + j.row) * a_.rows.depth;
    const int keys = a_.rows.position[first_ + j.row] + 1;  // the row sees itself
    tail_.open(l_, j.base, kv_head, j.committed);
    for (int first = j.steps * kAttentionStep; first < keys; first += kAttentionStep) {
      const int valid = keys - first < kAttentionStep ? keys - first : kAttentionStep;
      const uint16_t* k[2];
      tail_.gather(l_, path, first, valid, k);
      const uint16_t* value[kAttentionStep];
      for (int i = 0; i < valid; ++i)
        value[i] = j.base + (first + i < j.committed
                                 ? value_at(l_, kv_head, first + i)
                                 : scratch_value(l_, path[first + i - j.committed], kv_head));
      step_heads(j.heads, type_, j.q, k[0], k[1], Anywhere{value}, valid, dim_, scale_, run, sum);
    }
  }

  /// The weighted sums of job i. They lie close together: at a fixed distance of a power of two
  /// they would fall on each other in the L1 cache.
  float* sum_of(int i) { return sum_ + i * (kHeads * padded_ + kLanes); }

  const AttentionArgs& a_;
  const KVLayout l_;
  const int dim_, padded_;
  const DType type_;
  const float scale_;
  const int first_;  // the block's first row in the round
  int jobs_ = 0;
  Job job_[kTileRows];
  Running run_[kTileRows];
  alignas(64) float sum_[kTileRows * (kHeads * kMaxHeadDim + kLanes)];
  Tail tail_;
};

/// Work of a row, in keys; the constant stands for what a row costs however few it sees.
SL_INLINE int64_t work_of(const AttentionArgs& a, int row) {
  return a.rows.position[first_row(a.live) + row] + 64;
}

/// Where share number `part` begins when rows and heads are dealt out by their work.
SL_INLINE Lanework::Place border(const AttentionArgs& a, int rows, int part, int parts) {
  int64_t total = 0;
  for (int i = 0; i < rows; ++i) total += work_of(a, i) * a.heads;
  int64_t left = total * part / parts;
  int row = 0;
  while (row < rows && left >= work_of(a, row) * a.heads) left -= work_of(a, row++) * a.heads;
  return {row, row < rows ? static_cast<int>(left / work_of(a, row)) : 0};
}

}  // namespace

void attention(const AttentionArgs& a, Lane lane) {
  const int rows = live_rows(a.live);
  const Lanework::Place from = border(a, rows, lane.part, lane.parts);
  const Lanework::Place to = border(a, rows, lane.part + 1, lane.parts);
  Lanework work(a);
  work.run(from, to);
}

}  // namespace stepladder::SL_ISA
