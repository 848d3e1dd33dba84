// A language model of five words whose logits are a hash of what its cache holds, as a Verifier:
// the whole recursion runs on it in microseconds, and it refuses whatever breaks a verifier's
// contract. Several fakes disagree now and then, and a cheap fake's cache entry spoils what a
// better one reads from it, as a real one would.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "core/error.h"
#include "spec/choose.h"
#include "spec/drafter.h"
#include "spec/verifier.h"

namespace stepladder::fake {

constexpr int kVocab = 5;

inline uint64_t mix(uint64_t a, uint64_t b) {
  uint64_t x = (a ^ (b + 0x9E3779B97F4A7C15u + (a << 6) + (a >> 2))) * 0xBF58476D1CE4E5B9u;
  return (x ^ (x >> 29)) * 0x94D049BB133111EBu ^ (x >> 32);
}

/// One cache entry: its token, who wrote it, what the tokens so far amount to, and which levels'
/// arithmetic went into it (0: the target's alone).
struct Entry {
  Token token = 0;
  int writer = 0;
  uint64_t text = 0, taint = 0;
};

/// How one level computes. agree: share of places where its logits are the target's, when anything
/// but the target's arithmetic went into what it reads.
struct Model {
  uint64_t seed = 0;  // of the language; the same for all levels of a hierarchy
  int level = 0;
  double agree = 0.5;
  double spread = 2;

  Entry step(const Entry* before, Token token) const {
    const uint64_t text = before ? before->text : 0, taint = before ? before->taint : 0;
    return {token, level, mix(text, static_cast<uint64_t>(token) + 11),
            level == 0 && taint == 0 ? 0 : mix(taint, static_cast<uint64_t>(level) + 1)};
  }
  std::vector<float> logits(const Entry& at) const {
    uint64_t state = mix(seed, at.text);
    const bool own_way =
        at.taint != 0 &&
        mix(mix(state, at.taint), static_cast<uint64_t>(level)) % 1000 >= agree * 1000;
    if (own_way) state = mix(state, static_cast<uint64_t>(level) + 77);
    std::vector<float> out(kVocab);
    for (int t = 0; t < kVocab; ++t)
      out[t] = static_cast<float>(spread * (mix(state, static_cast<uint64_t>(t)) % 1024) / 256.0);
    return out;
  }
};

/// Entries of every slot; several verifiers may share one.
struct Cache {
  explicit Cache(int slots) : entries(slots) {}
  std::vector<std::vector<Entry>> entries;
};

/// Every slot's rule, as the engine's rule table holds it.
struct Rules {
  explicit Rules(int slots)
      : params(slots),
        counts(slots, std::vector<uint32_t>(kVocab)),
        bias(slots, std::vector<float>(kVocab)) {}
  void begin(int slot, const RuleParams& rule, std::span<const Token> prompt) {
    params[slot] = rule;
    std::fill(counts[slot].begin(), counts[slot].end(), 0u);
    for (Token t : prompt) counts[slot][t] |= 0x80000000u;
  }
  std::vector<RuleParams> params;
  std::vector<std::vector<uint32_t>> counts;
  std::vector<std::vector<float>> bias;
};

/// Ways to be wrong on purpose: the tests must notice each of them.
enum class Flaw { none, accepts_unchecked, walks_to_any_child, forgets_path_counts, trusts_all };

struct VerifierOptions {
  Model model;
  int context = 0, catch_up = 4, tree_capacity = 64;
  Flaw flaw = Flaw::none;
  int ahead = 64;
  // Milliseconds of a round: so many, and so many for each row. 0 = nothing is measured.
  double ms = 0, row_ms = 0;
  std::optional<double> idle_ms = std::nullopt;  // before a round
};

class FakeVerifier final : public Verifier {
 public:
  FakeVerifier(VerifierOptions options, std::shared_ptr<Cache> cache, std::shared_ptr<Rules> rules)
      : o_(options),
        cache_(std::move(cache)),
        rules_(std::move(rules)),
        usable_(cache_->entries.size()) {}

  void sync(Batch batch) override {
    for (const Sequence* s : batch) {
      check(room(*s) >= 1, Code::internal, "sync: a sequence beyond the context");
      const std::vector<Entry>& held = cache_->entries[s->slot];
      size_t n = 0;
      while (n < held.size() && n + 1 < s->tokens.size() && held[n].token == s->tokens[n] &&
             (held[n].writer <= o_.model.level || o_.flaw == Flaw::trusts_all))
        ++n;
      usable_[s->slot] = static_cast<int>(n);
    }
  }
  int lacking(const Sequence& s) const override {
    return static_cast<int>(s.tokens.size()) - 1 - usable_[s.slot];
  }
  int catch_up() const override { return o_.catch_up; }
  int room(const Sequence& s) const override {
    return o_.context - static_cast<int>(s.tokens.size()) + 1;
  }
  void read(Batch batch, int rows) override {
    for (const Sequence* s : batch) {
      const int n = std::min(rows, lacking(*s));
      feed(*s, n);
      rows -= n;
    }
  }
  void verify(Batch batch, const DraftTrees& trees, std::span<RoundResult> out) override {
    ++rounds;
    ms_ = o_.ms;
    for (size_t i = 0; i < batch.size(); ++i) {
      const int tree = static_cast<int>(i);
      ms_ += o_.row_ms * (lacking(*batch[i]) + trees.count[tree]);
      largest_tree = std::max(largest_tree, trees.count[tree]);
      verify_one(*batch[i], trees, tree, out[i]);
    }
    spent += ms_;
  }
  std::optional<double> last_ms() const override {
    return o_.ms > 0 ? std::optional(ms_) : std::nullopt;
  }
  std::optional<double> last_idle_ms() const override { return o_.idle_ms; }

  void extend(Batch batch, std::span<const int> wanted, std::span<RoundResult> out) override {
    ms_ = 0;
    int longest = 0;
    for (size_t i = 0; i < batch.size(); ++i) {
      Sequence s = *batch[i];
      Sequence* const one[] = {&s};
      ms_ += o_.row_ms * lacking(s);
      DraftTrees root(1, 2);
      RoundResult all, said;
      while (all.emitted < wanted[i] && room(s) >= 1) {
        ++rounds;
        if (all.emitted > 0) sync(one);
        root.reset(0, s.tokens.back());
        verify_one(s, root, 0, said);
        s.tokens.push_back(said.token[0]);
        all.token[all.emitted] = said.token[0], all.logit[all.emitted++] = said.logit[0];
      }
      usable_[s.slot] = static_cast<int>(batch[i]->tokens.size()) - 1;
      ms_ += o_.row_ms * all.emitted;
      longest = std::max(longest, all.emitted);
      out[i] = all;
    }
    ms_ += o_.ms * longest;
    spent += ms_;
  }

  /// The clock of the part goes so many times as fast from now on.
  void slow_down(double times) { o_.ms *= times, o_.row_ms *= times; }

  int rounds = 0, largest_tree = 0;
  double spent = 0;  // milliseconds in all rounds

 private:
  void feed(const Sequence& s, int rows) {
    std::vector<Entry>& held = cache_->entries[s.slot];
    int& usable = usable_[s.slot];
    for (int i = 0; i < rows; ++i, ++usable) {
      held.resize(usable);
      held.push_back(o_.model.step(usable ? &held[usable - 1] : nullptr, s.tokens[usable]));
    }
  }
  void check_round(const Sequence& s, const DraftTrees& trees, int i) const {
    const int nodes = trees.count[i];
    check(room(s) >= 1, Code::internal, "verify: no room");
    check(lacking(s) >= 0 && lacking(s) <= o_.catch_up, Code::internal, "verify: lacks ",
          lacking(s));
    check(nodes >= 1 && nodes <= o_.tree_capacity, Code::internal, "verify: ", nodes, " nodes");
    check(trees.token_at(i, 0) == s.tokens.back(), Code::internal, "verify: another root");
    check(static_cast<int>(s.tokens.size() - s.committed) <= o_.ahead, Code::internal,
          "verify: too many tentative tokens");
    for (int x = 1; x < nodes; ++x) {
      check(trees.token_at(i, x) >= 0 && trees.token_at(i, x) < kVocab, Code::internal,
            "verify: token");
      check(trees.parent_at(i, x) >= 0 && trees.parent_at(i, x) < x, Code::internal,
            "verify: order");
      check(trees.depth_at(i, x) < std::min(room(s), kMaxEmitted), Code::internal,
            "verify: too deep");
    }
    for (int p = 0; p < usable_[s.slot]; ++p)
      check(cache_->entries[s.slot][p].token == s.tokens[p], Code::internal, "verify: not synced");
  }
  void verify_one(const Sequence& s, const DraftTrees& trees, int i, RoundResult& out) {
    check_round(s, trees, i);
    feed(s, lacking(s));
    std::vector<Entry>& held = cache_->entries[s.slot];
    held.resize(usable_[s.slot]);
    const int nodes = trees.count[i], root = static_cast<int>(s.tokens.size()) - 1;
    std::vector<Entry> entry(nodes);
    std::vector<Chosen> choice(nodes);
    for (int x = 0; x < nodes; ++x) {
      const int parent = trees.parent_at(i, x);
      const Entry* before = parent >= 0 ? &entry[parent] : held.empty() ? nullptr : &held.back();
      entry[x] = o_.model.step(before, trees.token_at(i, x));
      std::vector<Token> extra(s.tokens.begin() + static_cast<int64_t>(s.committed),
                               s.tokens.end());
      if (o_.flaw != Flaw::forgets_path_counts)
        for (int at = x; at > 0; at = trees.parent_at(i, at))
          extra.push_back(trees.token_at(i, at));
      const std::vector<float> logits = o_.model.logits(entry[x]);
      choice[x] =
          choose_token({logits, rules_->params[s.slot], rules_->counts[s.slot].data(),
                        rules_->bias[s.slot].data(), extra, root + trees.depth_at(i, x) + 1});
    }
    out = {};
    for (int at = 0; at >= 0;) {
      held.push_back(entry[at]);
      int next = -1;
      for (int x = at + 1; x < nodes && next < 0; ++x)
        if (trees.parent_at(i, x) == at &&
            (trees.token_at(i, x) == choice[at].token || o_.flaw == Flaw::walks_to_any_child ||
             (o_.flaw == Flaw::accepts_unchecked && x == 1)))
          next = x;
      const bool unchecked = next > 0 && o_.flaw == Flaw::accepts_unchecked;
      out.token[out.emitted] = unchecked ? trees.token_at(i, next) : choice[at].token;
      out.logit[out.emitted++] = choice[at].logit;
      at = next;
    }
    if (o_.model.level == 0)
      for (int d = 0; d < out.emitted; ++d) ++rules_->counts[s.slot][out.token[d]];
    usable_[s.slot] = root;
  }

  VerifierOptions o_;
  std::shared_ptr<Cache> cache_;
  std::shared_ptr<Rules> rules_;
  std::vector<int> usable_;
  double ms_ = 0;
};

/// Guesses random trees or chains, often along a model's own greedy continuation; now and then it
/// is not ready. Refuses to draft for a sequence it was not synced to, and leaves other drafters'
/// trees alone.
class FakeDrafter final : public Drafter {
 public:
  /// `ms`: of each level of depth it draws; none = nothing is measured.
  FakeDrafter(Model model, int slots, bool chains, uint32_t seed,
              std::optional<double> ms = std::nullopt)
      : model_(model), chains_(chains), rng_(seed), synced_(slots), each_(ms) {}

  void sync(Batch batch) override {
    for (const Sequence* s : batch) synced_[s->slot] = s->tokens;
  }
  bool read(Batch, int) override { return rng_() % 3 != 0; }
  bool ready(const Sequence&) const override { return rng_() % 8 != 0; }
  void draft(Batch batch, std::span<const Budget> budgets, DraftTrees& out) override {
    double ms = 0;
    for (size_t i = 0; i < batch.size(); ++i) {
      const Sequence& s = *batch[i];
      const Budget& budget = budgets[i];
      const int tree = static_cast<int>(i);
      if (budget.at_most == 0) continue;
      out.reset(tree, s.tokens.back());
      check(synced_[s.slot] == s.tokens, Code::internal, "draft: not synced");
      check(budget.at_least <= budget.at_most && budget.nodes >= 1, Code::internal,
            "draft: budget");
      check(!chains_ || budget.nodes == budget.at_most, Code::internal, "draft: a chain's nodes");
      std::vector<Entry> entry(1);
      for (size_t p = 0; p < s.tokens.size(); ++p)
        entry[0] = model_.step(p ? &entry[0] : nullptr, s.tokens[p]);
      const int guesses = static_cast<int>(rng_() % (static_cast<uint32_t>(budget.nodes) + 1));
      for (int x = 1; x <= guesses; ++x) {
        int parent = chains_ || rng_() % 2 ? x - 1 : static_cast<int>(rng_() % x);
        while (out.depth_at(tree, parent) >= budget.at_most) parent = out.parent_at(tree, parent);
        const std::vector<float> logits = model_.logits(entry[parent]);
        Token guess =
            static_cast<Token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
        if (rng_() % 3 == 0) guess = static_cast<Token>(rng_() % kVocab);
        out.add(tree, parent, guess);
        entry.push_back(model_.step(&entry[parent], guess));
      }
      largest_tree = std::max(largest_tree, out.count[tree]);
      ms += each_.value_or(0) * out.depth[tree];
    }
    if (each_) ms_ = ms;
  }
  std::optional<double> last_ms() const override { return ms_; }
  bool branches() const override { return !chains_; }
  void forget(int slot) override { synced_[slot].clear(); }

  int largest_tree = 0;

 private:
  Model model_;
  bool chains_;
  mutable std::mt19937 rng_;
  std::vector<std::vector<Token>> synced_;
  std::optional<double> each_, ms_;
};

/// What plain decoding gives: the target alone, token by token, by the choice rule.
inline std::vector<Token> plain_decoding(const Model& target, const RuleParams& rule,
                                         const std::vector<Token>& prompt, int tokens) {
  Rules rules(1);
  rules.begin(0, rule, prompt);
  std::vector<Token> text = prompt;
  Entry at;
  for (size_t p = 0; p < prompt.size(); ++p) at = target.step(p ? &at : nullptr, prompt[p]);
  for (int i = 0; i < tokens; ++i) {
    const std::vector<float> logits = target.logits(at);
    const Token next = choose_token({logits,
                                     rule,
                                     rules.counts[0].data(),
                                     rules.bias[0].data(),
                                     {},
                                     static_cast<int32_t>(text.size())})
                           .token;
    ++rules.counts[0][next];
    text.push_back(next);
    at = target.step(&at, next);
  }
  return text;
}

}  // namespace stepladder::fake
