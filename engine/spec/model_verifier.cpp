#include "spec/model_verifier.h"

#include <algorithm>
#include <chrono>
#include <cstring>

namespace stepladder {
namespace {

int round_up(int x, int to) { return (x + to - 1) / to * to; }

/// Sizes a round is recorded for: powers of two up to a block, then whole blocks, and from 16
/// blocks on at most 16 sizes before the size has doubled.
int bucket(int n, int block) {
  if (n == 0) return 0;
  if (n > block) {
    int step = block;
    while (n > 16 * step) step *= 2;
    return round_up(n, step);
  }
  int b = 1;
  while (b < n) b *= 2;
  return std::min(b, block);
}

/// The same table from row `first` on.
Rows offset(Rows rows, int first) {
  rows.capacity -= first;
  rows.token += first, rows.position += first, rows.slot += first, rows.committed += first,
      rows.scratch += first;
  rows.path += size_t(first) * rows.depth;
  return rows;
}

}  // namespace

std::shared_ptr<KVCache> make_cache(Backend& backend, const Model& model, int context,
                                    int tree_capacity, int sequences) {
  const ModelConfig& c = model.config();
  return std::make_shared<KVCache>(
      backend, KVSpec{c.layers, c.kv_heads, c.head_dim, round_up(context, kAttentionStep),
                      tree_capacity, sequences, c.dtype});
}

ModelVerifier::ModelVerifier(Backend& backend, std::shared_ptr<const Model> model,
                             std::shared_ptr<KVCache> cache, std::shared_ptr<RuleTable> rules,
                             const VerifierOptions& options)
    : backend_(backend),
      model_(std::move(model)),
      cache_(std::move(cache)),
      rules_(std::move(rules)),
      options_(options),
      sizes_(cache_->spec().sequences, options),
      usable_(sizes_.sequences),
      missing_(sizes_.sequences),
      results_(sizes_.sequences) {
  check(options_.tree_capacity <= cache_->spec().scratch, Code::internal, "a tree of ",
        options_.tree_capacity, " nodes for a cache with ", cache_->spec().scratch,
        " scratch slots");
  check(
      options_.context <= cache_->spec().positions && options_.context <= model_->rope_positions(),
      Code::internal, "a context of ", options_.context, " for a cache of ",
      cache_->spec().positions, " positions");
  Arena measure;
  lay_out(t_, sizes_, model_->config(), measure);
  const size_t tables = measure.peak(), scratch = pass_scratch_bytes(*model_, options_.block);
  memory_ = allocate_buffer(backend_, tables + scratch);
  Arena arena(memory_.data(), tables);
  lay_out(t_, sizes_, model_->config(), arena);
  scratch_ = Arena(memory_.data() + tables, scratch);

  image_.resize(t_.up_bytes / 4);
  const auto at = [&](const void* p) {
    return image_.data() + (static_cast<const int32_t*>(p) - t_.up);
  };
  image_count_ = at(t_.plan.count);
  image_entries_ = reinterpret_cast<PlanEntry*>(at(t_.plan.entries));
  image_tokens_ = at(t_.plan.tokens);
  image_tree_count_ = at(t_.trees.count), image_tree_token_ = at(t_.trees.token),
  image_tree_parent_ = at(t_.trees.parent);
  if (options_.logprobs > 0) {
    host_path_node_.resize(size_t(sizes_.sequences) * kMaxEmitted);
    host_chosen_.resize(sizes_.nodes);
    host_top_token_.resize(size_t(sizes_.nodes) * options_.logprobs);
    host_top_logprob_.resize(size_t(sizes_.nodes) * options_.logprobs);
  }
  // Every shape a round can have is recorded now, so that decoding neither records nor allocates.
  for (const int top : {options_.logprobs > 0 ? options_.logprobs : -1, -1}) {
    ask_logprobs(top);
    record_shapes();
  }
}

void ModelVerifier::record_shapes() {
  for (int rows = 1;; rows = row_bucket(rows + 1)) {
    recording(rows, 0, t_.trees);
    for (int nodes = 1; nodes <= std::min(rows, sizes_.nodes);) {
      const int bucket = node_bucket(nodes);
      recording(rows, bucket, t_.trees);
      nodes = bucket + 1;
    }
    if (rows == sizes_.rows) break;
  }
}

int ModelVerifier::row_bucket(int rows) const {
  return std::min(bucket(rows, options_.block), sizes_.rows);
}
int ModelVerifier::node_bucket(int nodes) const {
  return std::min(bucket(nodes, sizes_.node_block), sizes_.nodes);
}

ModelVerifier::Sizes::Sizes(int s, const VerifierOptions& o)
    : sequences(s),
      tree(o.tree_capacity),
      rows(round_up(std::max(o.block, s * (o.tree_capacity + o.catch_up)), o.block)),
      nodes(s * o.tree_capacity),
      node_block(std::min(64, nodes)),
      tokens(std::max<size_t>(o.block, size_t(s) * o.catch_up) + size_t(s) * o.ahead),
      logprobs(o.logprobs) {}

VerifierNeed verifier_need(const ModelConfig& config, int sequences,
                           const VerifierOptions& options) {
  const ModelVerifier::Sizes sizes(sequences, options);
  ModelVerifier::Tables tables;
  Arena measure;
  ModelVerifier::lay_out(tables, sizes, config, measure);
  const size_t most_k = std::max({config.width, config.ffn, config.heads * config.head_dim});
  VerifierNeed need;
  need.backend =
      measure.peak() + activation_bytes(config, options.block) + 2 * size_t(options.block) * most_k;
  need.host = tables.up_bytes + size_t(sequences) * sizeof(RoundResult);
  if (options.logprobs > 0)
    need.host +=
        size_t(sequences) * kMaxEmitted * 4 + size_t(sizes.nodes) * (4 + 8 * options.logprobs);
  return need;
}

void ModelVerifier::lay_out(Tables& t, const Sizes& s, const ModelConfig& config, Arena& arena) {
  const int B = s.sequences, C = s.tree, R = s.rows, N = s.nodes;
  // Uploaded part: one piece, so that one copy carries it.
  const size_t words = 16 + size_t(B) * sizeof(PlanEntry) / 4 + s.tokens + B + 2 * size_t(B) * C;
  t.up = arena.take_array<int32_t>(words);
  t.up_bytes = words * 4;
  int32_t* p = t.up;
  const auto piece = [&](size_t n) { return std::exchange(p, p + n); };
  const int32_t* count = piece(16);
  const auto* entries =
      reinterpret_cast<const PlanEntry*>(piece(size_t(B) * sizeof(PlanEntry) / 4));
  t.plan = {B, count, entries, piece(s.tokens)};
  int32_t* tree_count = piece(B);
  int32_t* tree_token = piece(size_t(B) * C);
  t.trees = {B, C, tree_count, tree_token, piece(size_t(B) * C)};

  t.rows = {R,
            C,
            arena.take_array<int32_t>(1),
            arena.take_array<int32_t>(R),
            arena.take_array<int32_t>(R),
            arena.take_array<int32_t>(R),
            arena.take_array<int32_t>(R),
            arena.take_array<int32_t>(R),
            arena.take_array<uint16_t>(size_t(R) * C),
            arena.take_array<int32_t>(1),
            arena.take_array<int32_t>(R),
            arena.take_array<int32_t>(R),
            arena.take_array<int32_t>(R)};
  t.choices = {arena.take_array<int32_t>(N), arena.take_array<float>(N)};
  t.results = arena.take_array<RoundResult>(B);
  t.path = arena.take_array<int32_t>(size_t(B) * kMaxEmitted);
  t.path_node = arena.take_array<int32_t>(size_t(B) * kMaxEmitted);
  t.residual = arena.take_tensor(DType::f32, R, config.width);
  t.logits = arena.take_tensor(DType::f32, s.node_block, config.vocab);
  if (s.logprobs > 0) {
    t.chosen = arena.take_array<float>(N);
    t.top_token = arena.take_array<int32_t>(size_t(N) * s.logprobs);
    t.top_logprob = arena.take_array<float>(size_t(N) * s.logprobs);
  }
}

void ModelVerifier::sync(Batch batch) {
  for (const Sequence* s : batch)
    usable_[s->slot] = std::min(cache_->usable(s->slot, s->tokens, options_.level),
                                static_cast<int>(s->tokens.size()) - 1);
}

int ModelVerifier::lacking(const Sequence& s) const {
  return static_cast<int>(s.tokens.size()) - 1 - usable_[s.slot];
}

int ModelVerifier::room(const Sequence& s) const {
  return options_.context - static_cast<int>(s.tokens.size()) + 1;
}

std::pair<int, int> ModelVerifier::plan(Batch batch, const DraftTrees* trees,
                                        std::span<const int> missing) {
  int tokens = 0, rows = 0, nodes = 0;
  *image_count_ = static_cast<int32_t>(batch.size());
  for (size_t i = 0; i < batch.size(); ++i) {
    const Sequence& s = *batch[i];
    PlanEntry& e = image_entries_[i];
    const int from = usable_[s.slot];
    e = {s.slot, s.slot, from + missing[i], missing[i], tokens, 0, 0, 0};
    std::copy_n(s.tokens.data() + from, missing[i], image_tokens_ + tokens);
    tokens += missing[i];
    image_tree_count_[i] = trees ? trees->count[i] : 0;
    if (!trees) {
      rows += missing[i];
      continue;
    }
    e.first_tentative = tokens;
    e.tentative = static_cast<int32_t>(s.tokens.size() - s.committed);
    check(e.tentative <= options_.ahead, Code::internal, "a level guessed ", e.tentative,
          " tokens ahead");
    std::copy_n(s.tokens.data() + s.committed, e.tentative, image_tokens_ + tokens);
    tokens += e.tentative;
    if (!trees->made.token) {
      const size_t from_tree = i * trees->capacity, to_tree = i * options_.tree_capacity;
      std::copy_n(trees->token.data() + from_tree, trees->count[i], image_tree_token_ + to_tree);
      std::copy_n(trees->parent.data() + from_tree, trees->count[i], image_tree_parent_ + to_tree);
    }
    rows += missing[i] + trees->count[i];
    nodes += trees->count[i];
  }
  return {rows, nodes};
}

void ModelVerifier::queue_round(int rows, int nodes, TreeView trees) {
  const Tables& t = t_;
  const int block = options_.block;
  backend_.expand({t.plan, trees, t.rows});
  for (int first = 0; first < rows; first += block) {
    const int n = std::min(block, rows - first);
    const Pass pass{{t.rows.count, first, n}, offset(t.rows, first), cache_->view(), options_.act};
    run_layers(backend_, *model_, pass, t.residual.slice(first, n), scratch_);
  }
  if (nodes == 0) return;
  for (int first = 0; first < nodes; first += sizes_.node_block) {
    const int n = std::min(sizes_.node_block, nodes - first);
    const Live live{t.rows.node_count, first, n};
    const Tensor logits = t.logits.slice(0, n);
    run_head(backend_, *model_, live, t.residual, t.rows.node_row + first, options_.act, logits,
             scratch_);
    backend_.choose({live, logits, t.plan, trees, t.rows, rules_->view(), t.choices});
    if (ask_ >= 0)
      backend_.logprobs(
          {live, logits, t.choices, options_.vocab, ask_, t.chosen, t.top_token, t.top_logprob});
  }
  backend_.accept({t.plan, trees, t.rows, t.choices, rules_->view(), options_.level == 0, t.results,
                   t.path, t.path_node});
  backend_.keep({t.plan, cache_->view(), t.results, t.path});
}

void ModelVerifier::run(int rows, int nodes, TreeView trees) {
  check(rows <= sizes_.rows && nodes <= sizes_.nodes, Code::internal, "a round of ", rows, " rows");
  backend_.upload(t_.up, image_.data(), t_.up_bytes);
  recording(row_bucket(rows), node_bucket(nodes), trees).replay();
}

Recording& ModelVerifier::recording(int row_bucket, int node_bucket, TreeView trees) {
  auto& found =
      recordings_[{row_bucket, node_bucket, ask_, reinterpret_cast<int64_t>(trees.token)}];
  if (!found)
    found = backend_.record(
        [this, row_bucket, node_bucket, trees] { queue_round(row_bucket, node_bucket, trees); });
  return *found;
}

void ModelVerifier::note_catch_up(const Sequence& s, int from, int count) {
  for (int p = from; p < from + count; ++p) cache_->write(s.slot, p, s.tokens[p], options_.level);
}

void ModelVerifier::read(Batch batch, int rows) {
  rows = std::min(rows, options_.block);
  size_t used = 0;
  for (; used < batch.size() && rows > 0; ++used) {
    missing_[used] = std::min(rows, lacking(*batch[used]));
    rows -= missing_[used];
  }
  const Batch reading = batch.first(used);
  const auto [total, nodes] = plan(reading, nullptr, std::span(missing_).first(used));
  if (total == 0) return;
  run(total, nodes, t_.trees);
  backend_.wait();
  for (size_t i = 0; i < used; ++i) {
    const Sequence& s = *reading[i];
    note_catch_up(s, usable_[s.slot], missing_[i]);
    usable_[s.slot] += missing_[i];
  }
}

void ModelVerifier::verify(Batch batch, const DraftTrees& trees, std::span<RoundResult> out) {
  const auto started = std::chrono::steady_clock::now();
  for (size_t i = 0; i < batch.size(); ++i) {
    missing_[i] = lacking(*batch[i]);
    check(missing_[i] <= options_.catch_up && room(*batch[i]) >= 1, Code::internal,
          "a round for a sequence that lacks ", missing_[i], " entries and has room for ",
          room(*batch[i]));
  }
  const auto [rows, nodes] = plan(batch, &trees, std::span(missing_).first(batch.size()));
  run(rows, nodes, trees.made.token ? trees.made : t_.trees);
  backend_.read(out.data(), t_.results, batch.size() * sizeof(RoundResult));
  if (ask_ >= 0) {
    backend_.read(host_path_node_.data(), t_.path_node, batch.size() * kMaxEmitted * 4);
    backend_.read(host_chosen_.data(), t_.chosen, nodes * sizeof(float));
    backend_.read(host_top_token_.data(), t_.top_token, size_t(nodes) * ask_ * 4);
    backend_.read(host_top_logprob_.data(), t_.top_logprob, size_t(nodes) * ask_ * 4);
  }
  backend_.wait();
  for (size_t i = 0; i < batch.size(); ++i) {
    const Sequence& s = *batch[i];
    const int root = static_cast<int>(s.tokens.size()) - 1;
    note_catch_up(s, usable_[s.slot], missing_[i]);
    cache_->write(s.slot, root, s.tokens[root], options_.level);
    for (int d = 1; d < out[i].emitted; ++d)
      cache_->write(s.slot, root + d, out[i].token[d - 1], options_.level);
    usable_[s.slot] = root;
  }
  if (backend_.runs_at_once())
    ms_ = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - started)
              .count();
}

void ModelVerifier::ask_logprobs(int top) {
  check(top <= options_.logprobs, Code::internal, "logprobs for ", top, " tokens of at most ",
        options_.logprobs);
  wanted_ = top;
  // One recorded shape serves every number of tokens.
  ask_ = top < 0 ? -1 : options_.logprobs;
}

TokenLogprobs ModelVerifier::logprobs(int i, int k) const {
  const int node = host_path_node_[size_t(i) * kMaxEmitted + k];
  TokenLogprobs out{host_chosen_[node], {}};
  for (int j = 0; j < wanted_; ++j)
    out.top.emplace_back(host_top_token_[size_t(node) * ask_ + j],
                         host_top_logprob_[size_t(node) * ask_ + j]);
  return out;
}

void ModelVerifier::read_choices(std::span<int32_t> tokens, std::span<float> logits) {
  backend_.read(tokens.data(), t_.choices.token, tokens.size_bytes());
  backend_.read(logits.data(), t_.choices.logit, logits.size_bytes());
  backend_.wait();
}

}  // namespace stepladder
