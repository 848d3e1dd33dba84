#include "api/plan.h"

#include <algorithm>
#include <filesystem>
#include <sstream>

#include "api/request.h"
#include "api/stream.h"
#include "core/error.h"
#include "core/host_memory.h"
#include "core/thread_pool.h"
#include "io/vocabulary.h"
#include "model/kv_cache.h"
#include "spec/rule_table.h"

namespace stepladder {
namespace {

constexpr int kDefaultContext = 8192;
constexpr int kMaxSequences = 1024, kMaxTree = 1024;
constexpr int kLeastAhead = 64;

std::string canonical(const std::string& directory) {
  std::error_code error;
  const auto path = std::filesystem::weakly_canonical(directory, error);
  return error ? directory : path.string();
}

int open_source(LoadPlan& plan, const std::string& directory, const std::string& head,
                int wanted_context) {
  const std::string path = canonical(directory);
  for (size_t i = 0; i < plan.sources.size(); ++i)
    if (canonical(plan.sources[i].directory) == path && plan.sources[i].head == head)
      return static_cast<int>(i);
  Source source;
  source.directory = directory, source.head = head;
  source.checkpoint = open_checkpoint(directory);
  source.config = read_config(*source.checkpoint);
  source.context = std::min(wanted_context, source.config.max_context());
  plan.notes.insert(plan.notes.end(), source.config.notes.begin(), source.config.notes.end());
  plan.sources.push_back(std::move(source));
  return static_cast<int>(plan.sources.size()) - 1;
}

void open_target(LoadPlan& plan, const std::string& directory, const Options& options) {
  open_source(plan, directory, options.head.empty() ? "" : format_name(options.head), INT32_MAX);
  Source& target = plan.sources[0];
  const int most = target.config.max_context();
  check(options.context >= 0 && options.context <= most, Code::invalid_argument,
        "context: ", options.context, " is out of range; ", directory, " has a context of at most ",
        most, " tokens; ask for 1 to ", most, ", or leave it out for the default");
  plan.context = options.context ? options.context : std::min(most, kDefaultContext);
  if (!options.context && most > plan.context)
    plan.notes.push_back("context set to " + std::to_string(plan.context) + " of the model's " +
                         std::to_string(most) + " tokens; ask for more with context=");
  target.context = plan.context;
  plan.vocab = real_vocab(directory, target.config, plan.notes);
}

void open_draft(LoadPlan& plan, LevelPlan& level, const std::string& directory) {
  level.source =
      open_source(plan, level.spec.path,
                  level.spec.head.empty() ? "" : format_name(level.spec.head), plan.context);
  const Source& draft = plan.sources[level.source];
  if (canonical(directory) != canonical(draft.directory))
    check_same_vocabulary(directory, draft.directory);
  check(draft.config.vocab >= plan.vocab, Code::vocab_mismatch, "draft: ", draft.directory, " has ",
        draft.config.vocab, " tokens, the target ", plan.vocab,
        "; both must speak the same vocabulary");
  if (draft.context < plan.context)
    plan.notes.push_back(level.name + " holds " + std::to_string(draft.context) +
                         " tokens; beyond that the text goes on without it");
}

/// Bits a weight takes in `format`, scales included.
double bits_per_weight(const std::string& format, int k) {
  const FormatDesc desc = cast_desc(format_named(format), k);
  return bits(desc.code) +
         (desc.scaled ? double(bits(desc.scale)) / (desc.group ? desc.group : k) : 0);
}

double body_weights(const ModelConfig& c) {
  const double q = double(c.heads) * c.head_dim, kv = double(c.kv_heads) * c.head_dim;
  return c.layers * (c.width * (2 * q + 2 * kv) + 3.0 * c.width * c.ffn);
}

/// What a checkpoint takes as stored: floats narrow to 16 bits, and a tied head is packed beside
/// the embedding.
size_t source_bytes(const Source& s) {
  const auto& c = s.config;
  size_t bytes = c.tied_head ? size_t(c.vocab) * c.width * 2 : 0;
  for (const std::string& name : s.checkpoint->names()) {
    // An equal copy of the embedding is not read.
    const std::string head = c.family->names->head;
    if (c.tied_head && head != c.embedding && name.starts_with(head + ".")) continue;
    const TensorInfo& t = *s.checkpoint->find(name);
    bytes += t.dtype == "F32" && t.shape.size() > 1 ? t.bytes / 2 : t.bytes;
  }
  return bytes + size_t(s.context) * c.head_dim * 4;
}

size_t cast_bytes(const Source& s, const LevelSpec& spec) {
  const auto& c = s.config;
  return static_cast<size_t>(
      (body_weights(c) * bits_per_weight(format_name(spec.format), c.width) +
       double(c.vocab) * c.width * bits_per_weight(format_name(spec.head), c.width)) /
      8);
}

}  // namespace

int real_vocab(const std::string& directory, const ModelConfig& config,
               std::vector<std::string>& notes) {
  const size_t known = read_vocabulary(directory).size();
  if (known > static_cast<size_t>(config.vocab))
    notes.push_back("the tokenizer has " + std::to_string(known) + " tokens, the model " +
                    std::to_string(config.vocab) +
                    " (vocab_size); those beyond are refused in prompts and never made");
  return known ? static_cast<int>(std::min<size_t>(known, config.vocab)) : config.vocab;
}

std::string format_label(const FormatDesc& desc) {
  return std::string_view(desc.name) == "dense" ? std::string(name(desc.code)) : desc.name;
}

LoadPlan make_plan(const std::string& directory, const Options& options) {
  check_draft(options.draft);
  check_head(options.head);
  check(options.max_sequences >= 1 && options.max_sequences <= kMaxSequences,
        Code::invalid_argument, "max_sequences: ", options.max_sequences,
        " is out of range; it must be from 1 to ", kMaxSequences);
  check(options.threads >= 0 && options.threads <= 1024, Code::invalid_argument,
        "threads: ", options.threads,
        " is out of range; it must be from 1 to 1024, or 0 for the machine's cores");
  check(options.tree >= 0 && options.tree <= kMaxTree, Code::invalid_argument,
        "tree: ", options.tree, " nodes are out of range; it must be from 1 to ", kMaxTree,
        ", or 0 for what the drafts need");
  LoadPlan plan;
  plan.sequences = options.max_sequences, plan.tree = options.tree;
  plan.threads = options.threads ? options.threads : usable_cores();
  open_target(plan, directory, options);
  LevelPlan target;
  target.spec.kind = LevelSpec::Kind::model, target.spec.path = directory, target.name = "target";
  plan.levels.push_back(std::move(target));

  int ahead = 0;  // each level guesses for the one above, which may be ahead of the target itself
  for (const LevelSpec& given : options.draft) {
    const LevelSpec spec = with_defaults(given);
    plan.levels.back().drafts = spec.tokens;
    plan.levels.back().planned =
        given.tokens == 0 && !(is_drafter(spec) && drafter_kind(spec).forecasts);
    ahead += 2 * (spec.tokens + 1);
    if (is_drafter(spec)) {
      plan.leaf = {&drafter_kind(spec), drafter_setup(spec), level_name(spec)};
      continue;
    }
    LevelPlan level;
    level.spec = spec, level.name = level_name(spec);
    // Casts and switches copy the nearest checkpoint above them, never another copy.
    int above = static_cast<int>(plan.levels.size()) - 1;
    while (plan.levels[above].spec.kind != LevelSpec::Kind::model) --above;
    level.source = plan.levels[above].source;
    level.cache_of = spec.shared_cache ? above : static_cast<int>(plan.levels.size());
    if (spec.kind == LevelSpec::Kind::model) open_draft(plan, level, directory);
    if (spec.kind == LevelSpec::Kind::activations) plan.sources[level.source].also_a8 = true;
    if (spec.kind == LevelSpec::Kind::cast)
      level.bytes = cast_bytes(plan.sources[level.source], spec);
    plan.levels.push_back(std::move(level));
  }
  plan.ahead = std::max(kLeastAhead, ahead + 1);
  plan.tree_capacity = kMaxEmitted;  // of chains
  for (Source& source : plan.sources) source.bytes = source_bytes(source);
  if (!plan.leaf) return plan;
  DrafterSetup& setup = plan.leaf->setup;
  setup.sequences = plan.sequences, setup.context = plan.context, setup.vocab = plan.vocab;
  setup.above = &plan.sources[plan.levels.back().source].config;
  setup.level = static_cast<int>(plan.levels.size());
  if (plan.leaf->kind->nodes)
    plan.tree_capacity = std::max(plan.tree_capacity, plan.leaf->kind->nodes(setup));
  return plan;
}

int largest_tree(const LoadPlan& plan, int k) {
  return k == 0 ? std::max(plan.tree_capacity, plan.tree) : plan.tree_capacity;
}

KVSpec cache_spec(const LoadPlan& plan, int k) {
  const Source& s = plan.sources[plan.levels[k].source];
  const bool read = plan.leaf && plan.leaf->kind->features && plan.levels.back().cache_of == k;
  return kv_spec(s.config, s.context, largest_tree(plan, k), plan.sequences,
                 read ? plan.leaf->kind->features(plan.leaf->setup) : FeatureSpec{});
}

VerifierOptions verifier_options(const LoadPlan& plan, const Backend& backend, int k, Act act) {
  VerifierOptions options;
  options.level = static_cast<LevelId>(k), options.act = act, options.vocab = plan.vocab;
  options.context = plan.sources[plan.levels[k].source].context;
  options.tree_capacity = largest_tree(plan, k), options.ahead = plan.ahead;
  options.block = backend.row_buckets().back();
  options.logprobs = k == 0 ? kMaxLogprobs : 0;
  return options;
}

LevelOptions level_options(const LoadPlan& plan, int k) {
  const LevelPlan& level = plan.levels[k];
  LevelOptions options;
  options.name = level.name, options.tokens = level.drafts;
  options.plan = level.planned;
  if (!level.planned) options.most = level.drafts;
  options.sequences = plan.sequences, options.tree_capacity = plan.tree_capacity;
  options.ahead = plan.ahead;
  options.context = plan.sources[level.source].context;
  return options;
}

MemoryNeed memory_need(const LoadPlan& plan, const Backend& backend) {
  MemoryNeed need;
  MemoryPart &there = need.backend, &host = backend.on_host() ? need.backend : need.host;
  const auto grow = [&](MemoryPart& part, size_t per_token, size_t tokens) {
    part.growing += plan.sequences * per_token * tokens;
    part.per_context += plan.sequences * per_token;
  };
  for (const Source& s : plan.sources) {
    there.weights += s.bytes;
    host.transient =
        std::max(host.transient, load_scratch_bytes(s.config, plan.threads, backend.on_host()));
  }
  for (int k = 0; k < static_cast<int>(plan.levels.size()); ++k) {
    const LevelPlan& level = plan.levels[k];
    const auto& c = plan.sources[level.source].config;
    there.weights += level.bytes;
    if (level.cache_of == k) {
      const KVSpec cache = cache_spec(plan, k);
      const size_t tokens = KVCache::host_bytes(cache);
      there.caches += backend.kv_bytes(cache), host.caches += tokens;
      grow(there, size_t(c.layers) * 2 * c.kv_heads * c.head_dim * 2, cache.positions);
      grow(host, tokens / (size_t(cache.sequences) * cache.positions), cache.positions);
    }
    const VerifierNeed verifier =
        verifier_need(backend, c, plan.sequences, verifier_options(plan, backend, k, Act::a16));
    const LevelOptions options = level_options(plan, k);
    const int below = static_cast<int>(plan.levels.size()) - 1 - k + (plan.leaf ? 1 : 0);
    there.work += verifier.backend;
    host.work += verifier.host + Level::bytes(options, below);
    grow(host, sizeof(Token), options.context);
  }
  if (plan.leaf) {
    const auto at = [&](int context) {
      DrafterSetup setup = plan.leaf->setup;
      setup.context = context;
      return plan.leaf->kind->memory(setup, backend);
    };
    const auto add = [&](MemoryPart& part, size_t most, size_t least) {
      part.work += most, part.growing += most - least;
      // Tables double at powers of two, so what half a context takes may be all of this.
      part.per_context += 2 * ((most - least) / plan.context);
    };
    const DrafterNeed most = at(plan.context), least = at(std::min(plan.context, 32));
    add(there, most.backend, least.backend), add(host, most.host, least.host);
  }
  there.work += RuleTable::bytes(plan.sequences, plan.vocab, plan.context);
  host.work += plan.sequences * (plan.context * sizeof(Token) + StreamState::kQueueBytes);
  grow(host, sizeof(Token), plan.context);
  return need;
}

MemoryThere memory_there(const Backend& backend) {
  return {backend.available_bytes(), available_host_bytes()};
}

void check_memory(const LoadPlan& plan, const Backend& backend, const MemoryNeed& need,
                  const MemoryThere& there) {
  const struct {
    const MemoryPart& need;
    size_t available;
    std::string where;
  } parts[] = {{need.backend, there.backend, backend.on_host() ? "" : " on " + backend.name()},
               {need.host, there.host, " on the host"}};
  const auto mb = [](size_t bytes) { return (bytes + (size_t{1} << 20) - 1) >> 20; };
  std::ostringstream lacks;
  size_t fits = plan.context;
  for (const auto& part : parts) {
    const MemoryPart& n = part.need;
    if (n.total() <= part.available) continue;
    const size_t rest = n.total() - n.growing;
    fits = std::min(fits, part.available > rest && n.per_context
                              ? (part.available - rest) / n.per_context / 32 * 32
                              : 0);
    lacks << (lacks.tellp() ? ", and " : "") << mb(n.total()) << " MB needed" << part.where
          << " (weights " << mb(n.weights) << ", cache of " << plan.sequences << " x "
          << plan.context << " tokens " << mb(n.caches) << ", work " << mb(n.work + n.transient)
          << "), " << mb(part.available) << " MB available";
  }
  if (!lacks.tellp()) return;
  const std::string advice =
      fits >= 32 ? "load with context=" + std::to_string(fits) + " or less"
                 : std::string("use a smaller model, fewer levels or a smaller format");
  fail(Code::out_of_memory, plan.sources[0].directory, " does not fit: ", lacks.str(), "; ", advice,
       plan.sequences > 1 ? ", or with fewer max_sequences" : "");
}

}  // namespace stepladder
