#include "spec/round.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "backends/memory.h"
#include "core/error.h"
#include "core/round_up.h"

namespace stepladder {
namespace {

constexpr int kHeader = 16;  // words: the number of sequences, the log-probabilities asked for
constexpr size_t kEntryWords = sizeof(PlanEntry) / sizeof(int32_t);

}  // namespace

int RoundLimits::rows() const {
  return round_up(std::max(block, sequences * (tree + catch_up)), block);
}

Round::Round(const RoundLimits& limits, Arena& arena) : limits_(limits) {
  const int B = limits.sequences, R = limits.rows();
  const size_t nodes = size_t(B) * limits.tree;
  const size_t tokens = std::max<size_t>(limits.block, size_t(B) * limits.catch_up) +
                        size_t(B) * (limits.ahead + kMaxEmitted);
  // The trees come last, so that a round whose trees are on the backend leaves them out.
  const size_t head = kHeader + B * kEntryWords + tokens, words = head + B + 2 * nodes;
  up_ = arena.take_array<int32_t>(words);
  up_bytes_ = words * sizeof(int32_t), bytes_without_trees_ = head * sizeof(int32_t);
  const auto cut = [&](int32_t* p) {
    const auto piece = [&p](size_t n) { return std::exchange(p, p + n); };
    int32_t* const header = piece(kHeader);
    auto* const entries = reinterpret_cast<PlanEntry*>(piece(B * kEntryWords));
    int32_t* const list = piece(tokens);
    int32_t* const count = piece(B);
    int32_t* const token = piece(nodes);
    return std::tuple{header, entries, list, TreeView{B, limits_.tree, count, token, piece(nodes)}};
  };
  const auto [header, entries, list, trees] = cut(up_);
  asked_ = header + 1, plan_ = {B, header, entries, list}, trees_ = trees;
  if (!arena.measuring()) {
    image_.resize(words);
    const auto [host_header, host_entries, host_list, host_trees] = cut(image_.data());
    count_ = host_header, entries_ = host_entries, tokens_ = host_list, host_trees_ = host_trees;
  }

  rows_ = take_rows(arena, R, limits.tree, B);
}

FollowArgs Round::follow(const RoundResult* result, RoundResult* out, int context,
                         bool first) const {
  return {.count = plan_.count,
          .capacity = limits_.sequences,
          .entries = const_cast<PlanEntry*>(plan_.entries),
          .tokens = const_cast<int32_t*>(plan_.tokens),
          .trees = trees_,
          .result = result,
          .out = out,
          .context = context,
          .first = first};
}

// ---- recordings ------------------------------------------------------------------------------

void Round::queue_nodes(Backend& backend, RoundBody& body, int most) {
  const int block = limits_.node_block();
  for (int done = 0; done < most; done += block) {
    if (done > 0) backend.advance({rows_.block_node, block});
    body.nodes({rows_.node_count, rows_.block_node, std::min(block, most - done)});
  }
}

void Round::record(Backend& backend, RoundBody& body) {
  const ExpandArgs expand{plan_, trees_, rows_};
  const int block = limits_.block;
  std::vector<int> buckets;
  for (const int n : backend.row_buckets())
    if (n < block) buckets.push_back(n);
  buckets.push_back(block);
  for (const int n : buckets) {
    Shape shape{n};
    shape.read = backend.record([=, this, &backend, &body] {
      backend.expand(expand);
      body.rows({rows_.count, nullptr, n});
    });
    shape.verify = backend.record([=, this, &backend, &body] {
      backend.expand(expand);
      body.rows({rows_.count, nullptr, n});
      queue_nodes(backend, body, std::min(n, limits_.nodes()));
      body.finish();
    });
    shapes_.push_back(std::move(shape));
  }
  if (limits_.rows() == block) return;
  expand_ = backend.record([=, this, &backend, &body] { backend.expand(expand); });
  block_ = backend.record([=, this, &backend, &body] {
    body.rows({rows_.count, rows_.block_row, block});
    backend.advance({rows_.block_row, block});
  });
  node_block_ = backend.record([=, this, &backend, &body] {
    body.nodes({rows_.node_count, rows_.block_node, limits_.node_block()});
    backend.advance({rows_.block_node, limits_.node_block()});
  });
  finish_ = backend.record([=, this, &backend, &body] { body.finish(); });
}

int Round::recordings() const { return 2 * static_cast<int>(shapes_.size()) + (expand_ ? 4 : 0); }

const Round::Shape& Round::shape_of(int rows) const {
  return *std::find_if(shapes_.begin(), shapes_.end(),
                       [rows](const Shape& s) { return rows <= s.rows; });
}

// ---- a round ---------------------------------------------------------------------------------

void Round::begin(int asked) {
  count_[0] = 0, count_[1] = asked;
  planned_rows_ = planned_nodes_ = planned_tokens_ = 0;
}

void Round::add(const Part& part) {
  check(count_[0] < limits_.sequences, Code::internal, "a round of more than ", count_[0],
        " sequences");
  check(static_cast<int>(part.tentative.size()) <= limits_.ahead, Code::internal,
        "a level guessed ", part.tentative.size(), " tokens ahead, of at most ", limits_.ahead);
  const auto put = [&](std::span<const Token> tokens) {
    std::copy(tokens.begin(), tokens.end(), tokens_ + planned_tokens_);
    return std::exchange(planned_tokens_, planned_tokens_ + static_cast<int>(tokens.size()));
  };
  const int i = count_[0]++;
  const int missing = static_cast<int>(part.missing.size());
  const int first_missing = put(part.missing), first_tentative = put(part.tentative);
  entries_[i] = {.slot = part.slot,
                 .rule = part.slot,
                 .root_position = part.root_position,
                 .missing = missing,
                 .first_missing = first_missing,
                 .tentative = static_cast<int32_t>(part.tentative.size()),
                 .first_tentative = first_tentative,
                 .wanted = part.wanted};
  if (part.wanted > 0) planned_tokens_ += kMaxEmitted;
  host_trees_.count[i] = 0;
  planned_rows_ += missing;
}

void Round::add_tree(const DraftTrees& trees, int i) {
  const int at = count_[0] - 1, nodes = trees.count[i];
  check(nodes <= limits_.tree, Code::internal, "a tree of ", nodes, " nodes, of at most ",
        limits_.tree);
  const size_t from = size_t(i) * trees.capacity, to = size_t(at) * limits_.tree;
  host_trees_.count[at] = nodes;
  std::copy_n(trees.token.data() + from, nodes, host_trees_.token + to);
  std::copy_n(trees.parent.data() + from, nodes, host_trees_.parent + to);
  planned_rows_ += nodes, planned_nodes_ += nodes;
}

void Round::run(Backend& backend, bool trees_on_backend) {
  check(planned_rows_ <= limits_.rows(), Code::internal, "a round of ", planned_rows_, " rows");
  backend.upload(up_, image_.data(), trees_on_backend ? bytes_without_trees_ : up_bytes_);
  if (planned_rows_ <= limits_.block) {
    const Shape& shape = shape_of(planned_rows_);
    (planned_nodes_ > 0 ? shape.verify : shape.read)->replay();
    return;
  }
  expand_->replay();
  for (int done = 0; done < planned_rows_; done += limits_.block) block_->replay();
  for (int done = 0; done < planned_nodes_; done += limits_.node_block()) node_block_->replay();
  if (planned_nodes_ > 0) finish_->replay();
}

void Round::run_again(int rows) { shape_of(rows).verify->replay(); }

}  // namespace stepladder
