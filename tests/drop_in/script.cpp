// A drafter that no other file knows: it reads a text from a file of token ids and guesses that the
// sequence goes on like it. Some of its guesses are wrong on purpose, if it is asked for that, and
// it can be made to take as much of the backend's memory as one likes.
#include <algorithm>
#include <fstream>
#include <vector>

#include "core/arena.h"
#include "core/error.h"
#include "model/kv_cache.h"
#include "spec/drafter_kind.h"
#include "spec/model_verifier.h"

namespace stepladder {
namespace {

constexpr DrafterOption kOptions[] = {
    {"wrong", "guesses beside the first one that are wrong", 0, 8, 0},
    {"kilobytes", "of the backend's memory, for nothing", 0, 1 << 30, 4}};

size_t waste(const DrafterSetup& s) { return size_t(s.option("kilobytes")) << 10; }

class Script final : public Drafter {
 public:
  Script(const DrafterSetup& setup, const DrafterSite& site)
      : wrong_(setup.option("wrong")),
        vocab_(setup.vocab),
        memory_(allocate_buffer(site.backend, waste(setup))) {
    std::ifstream file(setup.argument);
    check(file.good(), Code::io, "script: ", setup.argument, " cannot be read");
    for (Token t; int(text_.size()) < setup.context && file >> t;) text_.push_back(t);
    const FeatureSpec& features = site.above.cache().spec().features;
    check(site.above.options().level + 1 == setup.level, Code::internal, "script: whose level?");
    check(features.count == 1 && features.width == setup.above->width, Code::internal,
          "script: the cache above carries no features");
  }

  void sync(Batch) override {}
  bool read(Batch, int) override { return true; }
  bool ready(const Sequence&) const override { return true; }
  void draft(Batch batch, std::span<const Budget> budgets, DraftTrees& out) override {
    for (int i = 0; i < int(batch.size()); ++i) {
      if (budgets[i].at_most < 1) continue;
      const auto& tokens = batch[i]->tokens;
      out.reset(i, tokens.back());
      if (tokens.size() >= text_.size() || !std::equal(tokens.begin(), tokens.end(), text_.begin()))
        continue;
      const int left = int(text_.size() - tokens.size());
      const int depth = std::min({budgets[i].at_most, budgets[i].nodes, left});
      const int beside = std::min(wrong_, budgets[i].nodes - depth);
      for (int w = 1; w <= beside; ++w) out.add(i, 0, (text_[tokens.size()] + w) % vocab_);
      for (int d = 0, node = 0; d < depth; ++d) node = out.add(i, node, text_[tokens.size() + d]);
    }
  }
  bool branches() const override { return wrong_ > 0; }
  std::optional<double> last_ms() const override { return std::nullopt; }
  void forget(int) override {}

 private:
  int wrong_, vocab_;
  Buffer memory_;
  std::vector<Token> text_;
};

int nodes(const DrafterSetup& s) { return 1 + s.tokens + s.option("wrong"); }
DrafterNeed memory(const DrafterSetup& s, const Backend&) {
  return {.backend = waste(s), .host = s.context * sizeof(Token)};
}
std::unique_ptr<Drafter> make(const DrafterSetup& setup, const DrafterSite& site) {
  return std::make_unique<Script>(setup, site);
}
FeatureSpec features(const DrafterSetup& s) { return {1, s.above->width, {s.above->layers}}; }

}  // namespace

namespace drafter {
extern const DrafterKind script{.word = "script",
                                .about = "goes on like the text in a file of token ids",
                                .argument = "PATH",
                                .tokens = 6,
                                .forecasts = false,
                                .options = kOptions,
                                .check = nullptr,
                                .nodes = nodes,
                                .features = features,
                                .memory = memory,
                                .make = make};
}  // namespace drafter

}  // namespace stepladder
