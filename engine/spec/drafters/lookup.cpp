#include "spec/drafters/lookup.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <utility>

#include "core/error.h"
#include "spec/drafter_kind.h"
#include "spec/planner.h"

namespace stepladder {

namespace {

constexpr int kLongest = 16;  // ngram_max at most
constexpr int kTries = 32;    // positions looked at for one match: others share its hash by chance
constexpr float kMemory = 0.95f;  // what a record keeps of itself with every guess it adds

// Matches are trusted by class: 1, 2, 3, 4, 5 to 8, 9 to 16, and more tokens. A guess lengthens the
// match of the next one, so trust grows along a draft. The shares of right guesses are only where
// a sequence's own record starts, as if kPrior guesses had been seen.
constexpr float kFirstShare[] = {0.25f, 0.5f, 0.65f, 0.75f, 0.85f, 0.92f, 0.95f};
constexpr int kClasses = 7;
constexpr float kPrior = 4;

int class_of(int length) {
  return length <= 4 ? length - 1 : length <= 8 ? 4 : length <= 16 ? 5 : 6;
}

uint32_t hash_of(const Token* tokens, int n) {
  uint64_t h = static_cast<uint64_t>(n);
  for (int i = 0; i < n; ++i) h = (h ^ static_cast<uint32_t>(tokens[i])) * 0x9E3779B97F4A7C15u;
  return static_cast<uint32_t>(h >> 32);
}

}  // namespace

/// What one slot knows: its tokens, where their n-grams occurred, and how far to trust a match.
class Lookup::Index {
 public:
  static uint32_t buckets(const LookupOptions& o) {
    return std::bit_ceil(static_cast<uint32_t>(2 * o.context));
  }
  explicit Index(const LookupOptions& o) : options_(o), mask_(buckets(o) - 1) {
    tokens_.reserve(o.context);
    for (int n = o.ngram_min; n <= o.ngram_max; ++n)
      chains_.push_back(
          {std::vector<int32_t>(size_t(mask_) + 1, -1), std::vector<int32_t>(o.context)});
    forget();
  }

  void forget() {
    watched_ = {};
    for (int c = 0; c < kClasses; ++c) trust_[c] = {kFirstShare[c] * kPrior, kPrior};
  }

  void sync(const std::vector<Token>& now) {
    if (now.size() > static_cast<size_t>(options_.context)) return;  // draft() declines as well
    const auto [mine, theirs] =
        std::mismatch(tokens_.begin(), tokens_.end(), now.begin(), now.end());
    const size_t common = static_cast<size_t>(mine - tokens_.begin());
    learn(now, common);
    // The last token's n-grams stay out until something has followed them.
    const size_t indexable = now.empty() ? 0 : now.size() - 1;
    while (indexed_ > std::min(common, indexable)) take_back();
    tokens_.erase(mine, tokens_.end());
    tokens_.insert(tokens_.end(), theirs, now.end());
    while (indexed_ < indexable) add();
  }

  /// Guesses how the sequence goes on; `most` at most. Returns how many there are.
  int draft(const std::vector<Token>& now, int most, const GuessCost& cost,
            std::span<Token> guesses) {
    if (now.size() > static_cast<size_t>(options_.context)) return 0;
    const Match match = find();
    if (match.length == 0) return 0;
    watched_ = {match, tokens_.size()};
    const int count = worth(match.length, most, cost).guesses;
    for (int i = 0; i < count; ++i) {
      // A match that overlaps the end goes on into its own guesses: the text has a period.
      const size_t from = match.next + static_cast<size_t>(i);
      guesses[i] = from < tokens_.size() ? tokens_[from] : guesses[from - tokens_.size()];
    }
    return count;
  }

  /// What draft() would bring.
  Forecast forecast(const std::vector<Token>& now, int most, const GuessCost& cost) const {
    if (now.size() > static_cast<size_t>(options_.context)) return {};
    const Match match = find();
    return match.length == 0 ? Forecast{} : worth(match.length, most, cost);
  }

 private:
  struct Match {
    int length = 0;
    size_t next = 0;  // position of the token that followed
  };
  struct Chain {
    std::vector<int32_t> latest;    // [mask + 1] last position whose n-gram ends there
    std::vector<int32_t> previous;  // [context] the one before, of the same hash
  };
  struct Watched {
    Match match;
    size_t at = 0;  // tokens there were when it was made; 0 = none
  };
  struct Trust {
    float right, seen;
  };

  uint32_t bucket(size_t end, int n) const { return hash_of(&tokens_[end + 1 - n], n) & mask_; }

  void add() {
    const size_t end = indexed_++;
    for (int n = options_.ngram_min; n <= options_.ngram_max; ++n) {
      if (end + 1 < static_cast<size_t>(n)) break;
      Chain& c = chains_[n - options_.ngram_min];
      int32_t& latest = c.latest[bucket(end, n)];
      c.previous[end] = latest;
      latest = static_cast<int32_t>(end);
    }
  }
  void take_back() {
    const size_t end = --indexed_;
    for (int n = options_.ngram_min; n <= options_.ngram_max; ++n) {
      if (end + 1 < static_cast<size_t>(n)) break;
      Chain& c = chains_[n - options_.ngram_min];
      c.latest[bucket(end, n)] = c.previous[end];
    }
  }

  Match find() const {
    const size_t size = tokens_.size();
    for (int n = std::min<int>(options_.ngram_max, static_cast<int>(size)); n >= options_.ngram_min;
         --n) {
      const Token* suffix = &tokens_[size - n];
      const Chain& c = chains_[n - options_.ngram_min];
      int32_t end = c.latest[bucket(size - 1, n)];
      for (int tries = 0; end >= 0 && tries < kTries; ++tries, end = c.previous[end])
        if (std::equal(suffix, suffix + n, &tokens_[end + 1 - n])) return longer(n, end);
    }
    return {};
  }

  // How far back the match really goes: that many tokens tell more than the n it was found by.
  Match longer(int n, int32_t end) const {
    int length = n;
    while (length <= kLongest && end >= length &&
           tokens_[end - length] == tokens_[tokens_.size() - 1 - length])
      ++length;
    return {length, static_cast<size_t>(end) + 1};
  }

  // Tokens worth proposing after a match of this length, and how many of them will be right.
  Forecast worth(int length, int most, const GuessCost& cost) const {
    float reached = 1, brings[kMaxEmitted] = {};
    const int guesses = worth_guessing(std::min(most, options_.tokens), cost, 0, [&](int d) {
      const Trust& t = trust_[class_of(length + d - 1)];
      reached *= t.right / t.seen;
      brings[d] = brings[d - 1] + reached;
      return reached;
    });
    return {guesses, brings[guesses]};
  }

  // Compares the last guess, made or only watched, with what came instead.
  void learn(const std::vector<Token>& now, size_t common) {
    const Watched w = std::exchange(watched_, {});
    if (w.at == 0) return;
    if (common < w.at || now.size() <= w.at) {  // the text it spoke of is gone, or nothing came yet
      if (common >= w.at) watched_ = w;
      return;
    }
    const size_t came = std::min(now.size() - w.at, static_cast<size_t>(options_.tokens));
    for (size_t i = 0; i < came; ++i) {
      const bool right = now[w.match.next + i] == now[w.at + i];
      Trust& t = trust_[class_of(w.match.length + static_cast<int>(i))];
      t.right = t.right * kMemory + (right ? 1.f : 0.f);
      t.seen = t.seen * kMemory + 1.f;
      if (!right) break;
    }
  }

  LookupOptions options_;
  uint32_t mask_;
  std::vector<Token> tokens_;
  size_t indexed_ = 0;  // positions whose n-grams are in the chains
  std::vector<Chain> chains_;
  Watched watched_;
  Trust trust_[kClasses];
};

Lookup::Lookup(const LookupOptions& options) : options_(options) {
  RowCost(options.row_cost).fill(1, cost_);
  check(options.tokens >= 1 && options.tokens < kMaxEmitted, Code::invalid_argument,
        "lookup: tokens=", options.tokens, " must be 1 to ", kMaxEmitted - 1);
  check(options.ngram_min >= 1 && options.ngram_min <= options.ngram_max &&
            options.ngram_max <= kLongest,
        Code::invalid_argument, "lookup: matches of min=", options.ngram_min,
        " to max=", options.ngram_max, " tokens; they must satisfy 1 <= min <= max <= ", kLongest);
  check(options.context >= 1 && options.sequences >= 1, Code::internal,
        "lookup: no context or no slots");
  index_.reserve(options.sequences);
  for (int slot = 0; slot < options.sequences; ++slot) index_.emplace_back(options_);
}

Lookup::~Lookup() = default;

size_t Lookup::bytes(const LookupOptions& o) {
  const size_t context = static_cast<size_t>(o.context), lengths = o.ngram_max - o.ngram_min + 1;
  return o.sequences * (sizeof(Index) + context * sizeof(Token) +
                        lengths * (Index::buckets(o) + context) * sizeof(int32_t));
}

void Lookup::sync(Batch batch) {
  for (const Sequence* s : batch) index_[s->slot].sync(s->tokens);
}

void Lookup::draft(Batch batch, std::span<const Budget> budgets, DraftTrees& out) {
  const auto started = std::chrono::steady_clock::now();
  Token guesses[kMaxEmitted];
  for (size_t i = 0; i < batch.size(); ++i) {
    const int sequence = static_cast<int>(i), most = std::min(budgets[i].at_most, budgets[i].nodes);
    if (most < 1) continue;
    const std::vector<Token>& tokens = batch[i]->tokens;
    out.reset(sequence, tokens.back());
    const int count = index_[batch[i]->slot].draft(tokens, most, cost_, guesses);
    for (int d = 0; d < count; ++d)
      if (out.add(sequence, d, guesses[d]) < 0) break;
  }
  ms_ =
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - started).count();
}

void Lookup::weigh_rows(const GuessCost& cost) {
  for (int n = 0; n <= cost_.most(); ++n) cost_[n] = cost[n];
}

Forecast Lookup::forecast(const Sequence& s, int most) const {
  return index_[s.slot].forecast(s.tokens, most, cost_);
}

void Lookup::forget(int slot) { index_[slot].forget(); }

// ---- as an entry of the list -----------------------------------------------------------------

namespace {

constexpr DrafterOption kOptions[] = {
    {"max", "most tokens that must agree; 0 = 4, or min where that is more", 1, kLongest, 0},
    {"min", "fewest tokens that must agree", 1, kLongest, LookupOptions{}.ngram_min}};

LookupOptions options_of(const DrafterSetup& s) {
  LookupOptions o;
  o.tokens = s.tokens, o.context = s.context, o.sequences = s.sequences;
  o.ngram_min = s.option("min");
  o.ngram_max = s.option("max") ? s.option("max") : std::max(o.ngram_max, o.ngram_min);
  return o;
}

void check_matches(const DrafterSetup& s) {
  const int max = s.option("max"), min = s.option("min");
  check(max == 0 || min <= max, Code::invalid_argument, "min=", min, " is above max=", max);
}

DrafterNeed memory_of(const DrafterSetup& s, const Backend&) {
  return {.host = Lookup::bytes(options_of(s))};
}

std::unique_ptr<Drafter> make(const DrafterSetup& s, const DrafterSite& site) {
  LookupOptions options = options_of(s);
  options.row_cost = site.row_cost;
  return std::make_unique<Lookup>(options);
}

}  // namespace

namespace drafter {
extern const DrafterKind lookup{
    .word = "lookup",
    .about = "what followed the last tokens where they occurred before in the text",
    .argument = nullptr,
    .tokens = 10,  // free but for its rows, and it knows when to hold back
    .forecasts = true,
    .options = kOptions,
    .check = check_matches,
    .nodes = nullptr,
    .features = nullptr,
    .memory = memory_of,
    .make = make};
}  // namespace drafter

}  // namespace stepladder
