#include "support/hierarchy.h"

#include <algorithm>

#include "api/draft_spec.h"
#include "core/error.h"
#include "spec/drafters/lookup.h"

namespace stepladder {

Hierarchy::Hierarchy(Backend& backend, const TinySpec& target, const std::string& levels,
                     int sequences, int context, HierarchyOptions extra)
    : backend_(backend),
      spec_(target),
      sequences_(sequences),
      context_(context),
      options_(std::move(extra)) {
  std::vector<LevelSpec> specs;
  if (!levels.empty()) specs = parse_draft(levels);
  const bool switches = std::any_of(specs.begin(), specs.end(), [](const LevelSpec& s) {
    return s.kind == LevelSpec::Kind::activations;
  });
  const MemoryCheckpoint checkpoint = tiny_checkpoint(spec_);
  const ModelConfig config = read_config(checkpoint);
  ModelOptions options;
  options.also_a8 = switches, options.positions = (context + 31) / 32 * 32;
  model_ = std::make_shared<Model>(backend_, checkpoint, config, options);
  cache_ = std::make_shared<KVCache>(
      backend_,
      kv_spec(model_->config(), context_, options_.capacity, sequences_, options_.features));
  rules_ = std::make_shared<RuleTable>(backend_, sequences_, config.vocab, context_);
  auto own = verifier(model_, cache_, model_->default_act());
  auto inner = below(specs, model_, cache_);
  LevelOptions level;
  level.name = "target", level.sequences = sequences_, level.tree_capacity = options_.capacity;
  level.context = context_;
  level.tokens = tokens_of(specs);
  top_ = std::make_unique<Level>(std::move(own), std::move(inner), level);
}

/// Depth that a level over these asks for.
int Hierarchy::tokens_of(std::span<const LevelSpec> below) const {
  if (!below.empty()) return with_defaults(below[0]).tokens;
  return options_.leaf ? options_.leaf_tokens : 0;
}

std::unique_ptr<Verifier> Hierarchy::verifier(std::shared_ptr<const Model> model,
                                              std::shared_ptr<KVCache> cache, Act act) {
  VerifierOptions options;
  options.level = static_cast<LevelId>(depth_), options.act = act;
  options.vocab = model->config().vocab, options.context = context_;
  options.tree_capacity = options_.capacity, options.block = 64;
  return std::make_unique<CountedVerifier>(
      std::make_unique<ModelVerifier>(backend_, std::move(model), std::move(cache), rules_,
                                      options),
      counts_);
}

std::unique_ptr<Drafter> Hierarchy::below(std::span<const LevelSpec> specs,
                                          const std::shared_ptr<const Model>& model_above,
                                          const std::shared_ptr<KVCache>& above) {
  if (specs.empty())
    return options_.leaf ? options_.leaf({model_above, above, rules_, static_cast<LevelId>(depth_)})
                         : nullptr;
  const LevelSpec spec = with_defaults(specs[0]);
  ++depth_;
  if (spec.kind == LevelSpec::Kind::lookup) {
    check(specs.size() == 1, Code::invalid_argument, "lookup has nothing below it");
    LookupOptions options;
    options.sequences = sequences_, options.context = context_;
    if (spec.tokens) options.tokens = spec.tokens;
    return std::make_unique<Lookup>(options);
  }
  std::shared_ptr<const Model> model = model_;
  std::shared_ptr<KVCache> cache = above;
  Act act = Act::a8;
  if (spec.kind == LevelSpec::Kind::cast) {
    const MemoryCheckpoint checkpoint = tiny_checkpoint(spec_);
    ModelOptions options;
    options.cast = format_name(spec.format), options.head = "w8a16";
    options.positions = (context_ + 31) / 32 * 32;
    model = std::make_shared<Model>(backend_, checkpoint, read_config(checkpoint), options, model_);
    act = model->default_act();
    if (!spec.shared_cache)
      cache = std::make_shared<KVCache>(
          backend_,
          kv_spec(model->config(), context_, options_.capacity, sequences_, options_.features));
  }
  auto own = verifier(model, cache, act);
  auto inner = below(specs.subspan(1), model, cache);
  LevelOptions level;
  level.name = level_name(spec), level.sequences = sequences_,
  level.tree_capacity = options_.capacity;
  level.context = context_;
  level.tokens = tokens_of(specs.subspan(1));
  return std::make_unique<Level>(std::move(own), std::move(inner), level);
}

std::vector<Said> Hierarchy::stream(const std::vector<std::vector<Token>>& prompts, int count,
                                    const Sampling& sampling, Token stop) {
  std::vector<Sequence> sequences;
  for (size_t i = 0; i < prompts.size(); ++i) {
    sequences.push_back({static_cast<int>(i), prompts[i], prompts[i].size()});
    top_->forget(static_cast<int>(i));
    Sampling own = sampling;
    own.seed += i;
    rules_->begin(static_cast<int>(i), own, prompts[i]);
  }
  Verifier& verifier = top_->verifier();
  for (Sequence& s : sequences) {
    Sequence* const one[] = {&s};
    verifier.sync(one);
    while (verifier.lacking(s) > verifier.catch_up()) verifier.read(one, 64);
  }
  std::vector<Said> said(prompts.size());
  std::vector<RoundResult> results(prompts.size());
  const auto stopped = [&](size_t i) {
    return stop >= 0 && !said[i].tokens.empty() && said[i].tokens.back() == stop;
  };
  for (;;) {
    std::vector<Sequence*> batch, late;
    std::vector<int> limits;
    std::vector<char> drafts;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const int left = count - static_cast<int>(said[i].tokens.size());
      if (left <= 0 || verifier.room(sequences[i]) < 1 || stopped(i)) continue;
      batch.push_back(&sequences[i]);
      limits.push_back(std::min({left, verifier.room(sequences[i]), kMaxEmitted}));
    }
    if (batch.empty()) return said;
    top_->sync(batch);
    for (const Sequence* s : batch) {
      drafts.push_back(top_->inner() && !said[s->slot].tokens.empty() && top_->inner()->ready(*s));
      if (!drafts.back()) late.push_back(const_cast<Sequence*>(s));
    }
    top_->advance(batch, limits, drafts, std::span(results).first(batch.size()));
    for (size_t i = 0; i < batch.size(); ++i) {
      Said& out = said[batch[i]->slot];
      const int emitted = std::min<int>(results[i].emitted, limits[i]);
      for (int k = 0; k < emitted && !stopped(static_cast<size_t>(batch[i]->slot)); ++k) {
        batch[i]->tokens.push_back(results[i].token[k]);
        out.tokens.push_back(results[i].token[k]);
        out.logits.push_back(results[i].logit[k]);
      }
      batch[i]->committed = batch[i]->tokens.size();
    }
    if (top_->inner() && !late.empty()) {
      top_->inner()->sync(late);
      top_->inner()->read(late, 64);
    }
  }
}

}  // namespace stepladder
