// The tables of one level-round in host memory, filled with random plans and trees: what the
// choosing and accepting operators read, without a model around them.
#pragma once

#include <algorithm>
#include <random>
#include <vector>

#include "backends/backend.h"
#include "stepladder/engine.h"

namespace stepladder {

class RoundTables {
 public:
  RoundTables(int sequences, int capacity)
      : capacity_(capacity),
        entries_(sequences),
        tree_count_(sequences),
        tree_token_(size_t(sequences) * capacity),
        tree_parent_(size_t(sequences) * capacity),
        tentative_(sequences) {}

  void set_tree(int s, const std::vector<Token>& tokens, const std::vector<int>& parents) {
    tree_count_[s] = static_cast<int32_t>(tokens.size());
    std::copy(tokens.begin(), tokens.end(), tree_token_.begin() + size_t(s) * capacity_);
    std::copy(parents.begin(), parents.end(), tree_parent_.begin() + size_t(s) * capacity_);
    rebuild();
  }
  /// A chain of `nodes` nodes that repeat the token 0.
  void make_chain(int s, int nodes) {
    std::vector<int> parents(nodes);
    for (int i = 0; i < nodes; ++i) parents[i] = i - 1;
    set_tree(s, std::vector<Token>(nodes, 0), parents);
  }
  void set_tentative(int s, std::vector<Token> tokens) {
    tentative_[s] = std::move(tokens);
    rebuild();
  }
  void set_root_position(int s, int position) {
    entries_[s].root_position = position;
    rebuild();
  }
  void set_missing(int s, int missing) {
    entries_[s].missing = missing;
    rebuild();
  }
  /// Empty rules for every sequence; the rule of sequence s is row sequences - 1 - s.
  void set_rules(int vocab) {
    vocab_ = vocab;
    params_.assign(entries_.size(), {});
    counts_.assign(entries_.size() * vocab, 0);
    bias_.assign(entries_.size() * vocab, 0.f);
    for (size_t s = 0; s < entries_.size(); ++s)
      entries_[s].rule = static_cast<int32_t>(entries_.size() - 1 - s);
  }
  /// Fills row `rule` of the rule table.
  void set_rule(int rule, const RuleParams& params, const std::vector<uint32_t>& counts,
                const std::vector<float>& bias) {
    params_[rule] = params;
    std::copy(counts.begin(), counts.end(), counts_.begin() + size_t(rule) * vocab_);
    std::copy(bias.begin(), bias.end(), bias_.begin() + size_t(rule) * vocab_);
  }

  int nodes() const { return node_count_; }
  Token token(int s, int node) const { return tree_token_[size_t(s) * capacity_ + node]; }
  int parent(int s, int node) const { return tree_parent_[size_t(s) * capacity_ + node]; }
  std::vector<int> children(int s, int node) const {
    std::vector<int> out;
    for (int x = node + 1; x < tree_count_[s]; ++x)
      if (parent(s, x) == node) out.push_back(x);
    return out;
  }
  int position(int s, int node) const {
    int depth = 0;
    for (int at = node; at > 0; at = parent(s, at)) ++depth;
    return entries_[s].root_position + depth;
  }
  const std::vector<Token>& tentative(int s) const { return tentative_[s]; }
  /// Tokens of the node's path below the root, in any order.
  std::vector<Token> path_tokens(int s, int node) const {
    std::vector<Token> out;
    for (int at = node; at > 0; at = parent(s, at)) out.push_back(token(s, at));
    return out;
  }

  Plan plan() {
    return {static_cast<int>(entries_.size()), &sequence_count_, entries_.data(), tokens_.data()};
  }
  TreeView trees() {
    return {static_cast<int>(entries_.size()), capacity_, tree_count_.data(), tree_token_.data(),
            tree_parent_.data()};
  }
  /// Only what choosing reads: positions and the node tables.
  Rows rows() {
    Rows r;
    r.capacity = static_cast<int>(position_.size()), r.depth = capacity_;
    r.count = &row_count_, r.position = position_.data(), r.node_count = &node_count_;
    r.node_row = node_row_.data(), r.node_sequence = node_sequence_.data();
    r.node_index = node_index_.data(), r.sequences = sequence_count_;
    r.sequence_node = sequence_node_.data();
    return r;
  }
  RuleView rules() {
    return {static_cast<int>(params_.size()), vocab_, params_.data(), counts_.data(), bias_.data()};
  }
  ChoiceView choices() { return {choice_.data(), choice_logit_.data()}; }

 private:
  void rebuild() {
    sequence_count_ = static_cast<int32_t>(entries_.size());
    tokens_.clear(), position_.clear(), node_row_.clear();
    node_sequence_.clear(), node_index_.clear(), sequence_node_.assign(1, 0);
    for (int s = 0; s < sequence_count_; ++s) {
      PlanEntry& e = entries_[s];
      e.slot = s, e.first_missing = static_cast<int32_t>(tokens_.size());
      for (int i = 0; i < e.missing; ++i) {
        position_.push_back(e.root_position - e.missing + i);
        tokens_.push_back(-7);
      }
      e.tentative = static_cast<int32_t>(tentative_[s].size());
      e.first_tentative = static_cast<int32_t>(tokens_.size());
      tokens_.insert(tokens_.end(), tentative_[s].begin(), tentative_[s].end());
      for (int x = 0; x < tree_count_[s]; ++x) {
        node_row_.push_back(static_cast<int32_t>(position_.size()));
        node_sequence_.push_back(s), node_index_.push_back(x);
        position_.push_back(position(s, x));
      }
      sequence_node_.push_back(static_cast<int32_t>(node_row_.size()));
    }
    row_count_ = static_cast<int32_t>(position_.size());
    node_count_ = static_cast<int32_t>(node_row_.size());
    choice_.assign(node_count_, -1), choice_logit_.assign(node_count_, 0.f);
  }

  int capacity_, vocab_ = 0;
  std::vector<PlanEntry> entries_;
  std::vector<int32_t> tree_count_, tree_token_, tree_parent_;
  std::vector<std::vector<Token>> tentative_;
  std::vector<int32_t> tokens_, position_, node_row_, node_sequence_, node_index_, choice_,
      sequence_node_;
  std::vector<float> choice_logit_;
  std::vector<RuleParams> params_;
  std::vector<uint32_t> counts_;
  std::vector<float> bias_;
  int32_t sequence_count_ = 0, row_count_ = 0, node_count_ = 0;
};

/// Random trees of 1 to `most` nodes, now and then none in a batch, with catch-up rows and
/// tentative tokens around them.
inline RoundTables random_round(std::mt19937& rng, int sequences, int most, int vocab) {
  RoundTables t(sequences, std::max(most, 64));
  for (int s = 0; s < sequences; ++s) {
    const int nodes = sequences > 1 && rng() % 8 == 0
                          ? 0
                          : 1 + static_cast<int>(rng() % static_cast<uint32_t>(most));
    std::vector<Token> tokens, tentative;
    std::vector<int> parents;
    const bool chain = rng() % 2;
    for (int x = 0; x < nodes; ++x) {
      tokens.push_back(static_cast<Token>(rng() % vocab));
      parents.push_back(x == 0 ? -1 : chain ? x - 1 : static_cast<int>(rng() % x));
    }
    for (uint32_t i = rng() % 6; i > 0; --i) tentative.push_back(static_cast<Token>(rng() % vocab));
    t.set_tree(s, tokens, parents);
    t.set_tentative(s, tentative);
    t.set_root_position(s, static_cast<int>(10 + rng() % 5000));
    t.set_missing(s, static_cast<int>(rng() % 4));
  }
  return t;
}

}  // namespace stepladder
