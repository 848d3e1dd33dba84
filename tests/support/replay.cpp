#include "support/replay.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <ostream>

namespace stepladder {

std::string Cell::name() const {
  std::string out = spec.label() + (spec.group == 32 ? "" : "_g" + std::to_string(spec.group)) +
                    (act == Act::a8 ? "_as_a8" : "") + (cast.empty() ? "" : "_cast_" + cast);
  for (char& ch : out)
    if (!std::isalnum(static_cast<unsigned char>(ch))) ch = '_';
  return out;
}

void PrintTo(const Cell& cell, std::ostream* out) { *out << cell.name(); }

std::vector<Cell> replay_cells() {
  std::vector<Cell> out;
  for (const TinySpec& s : tiny_formats()) {
    // The other w4a16 files differ in how they are read, not in what a round computes.
    if (s.format.starts_with("w4a16") && s.format != "w4a16") continue;
    out.push_back({s});
    if (also_a8(s)) out.push_back({s, Act::a8});
  }
  // f16 activations take other kernels than bf16 ones, which widen them in chunks of k.
  for (const WeightFormat* format : formats()) {
    if (!format->cast || std::string(format->name) == "dense") continue;
    out.push_back({tiny_formats()[1], Act::a16, format->name});
    out.back().spec.ffn = 576;
  }
  Cell wide{tiny_formats()[2], Act::a8};  // groups of 64; a width that no 128 divides
  wide.spec.group = 64, wide.spec.ffn = 320;
  out.push_back(wide);
  const auto families = tiny_families();
  out.push_back({families[2]});  // heads of 128
  out.push_back({families[5]});  // seven queries a key
  out.push_back({families[0]});  // three heads, one of keys and values
  out.push_back({families[3]});  // biases
  out.push_back({families[4]});  // norms of queries and keys
  for (Cell& cell : out) cell.spec.positions = 4096;
  return out;
}

std::shared_ptr<const Model> load_cell(Backend& backend, const Cell& cell, int positions) {
  const MemoryCheckpoint checkpoint = tiny_checkpoint(cell.spec);
  ModelOptions options;
  options.cast = options.head = cell.cast, options.also_a8 = cell.act == Act::a8,
  options.positions = positions;
  return std::make_shared<Model>(backend, checkpoint, read_config(checkpoint), options);
}

// ---- rigs ----------------------------------------------------------------------------------

RigOptions plain_options(RigOptions o) {
  o.sequences = 1, o.block = 32, o.level = 1;
  return o;
}

Rig::Rig(Backend& b, std::shared_ptr<const Model> m, const RigOptions& o,
         std::shared_ptr<KVCache> shared)
    : backend(b), model(std::move(m)), cache(std::move(shared)) {
  if (!cache)
    cache = std::make_shared<KVCache>(
        backend, kv_spec(model->config(), o.context, o.tree_capacity, o.sequences, o.features));
  const int vocab = model->config().vocab;
  rules = std::make_shared<RuleTable>(backend, o.sequences, vocab, o.context);
  VerifierOptions options;
  options.level = o.level, options.act = o.act, options.vocab = vocab, options.context = o.context;
  options.tree_capacity = o.tree_capacity, options.block = o.block, options.catch_up = o.catch_up;
  verifier = std::make_unique<ModelVerifier>(backend, model, cache, rules, options);
  for (int slot = 0; slot < o.sequences; ++slot) begin(slot, {}, {});
}

void Rig::begin(int slot, const Sampling& sampling, const std::vector<Token>& prompt) {
  rules->begin(slot, sampling, prompt);
}

void Rig::feed(Batch batch, int leave, int rows_a_read) {
  verifier->sync(batch);
  const auto lacks = [&](const Sequence* s) { return verifier->lacking(*s) > leave; };
  while (std::any_of(batch.begin(), batch.end(), lacks)) verifier->read(batch, rows_a_read);
}

RoundResult Rig::plain_round(Sequence& sequence) {
  Sequence* const one[] = {&sequence};
  feed(one, 0, verifier->options().block);
  DraftTrees root(1, 1);
  root.reset(0, sequence.tokens.back());
  RoundResult result;
  verifier->verify(one, root, {&result, 1});
  return result;
}

std::vector<Token> random_text(int n, int vocab, uint64_t seed) {
  TestRandom random(seed);
  std::vector<Token> out(n);
  for (Token& t : out) t = random.below(vocab);
  return out;
}

std::vector<uint16_t> entries(Rig& rig, int slot, int count) {
  const KVSpec& s = rig.cache->spec();
  std::vector<uint16_t> out(size_t(s.layers) * 2 * count * s.kv_heads * s.head_dim);
  rig.backend.read_entries(out.data(), rig.cache->view(), slot, 0, count);
  rig.backend.wait();
  const auto carried = features(rig, slot, count);
  out.insert(out.end(), carried.begin(), carried.end());
  return out;
}

std::vector<uint16_t> features(Rig& rig, int slot, int count) {
  const FeatureSpec& f = rig.cache->spec().features;
  std::vector<uint16_t> out(size_t(count) * f.count * f.width);
  rig.backend.read_features(out.data(), rig.cache->view(), slot, 0, count);
  rig.backend.wait();
  return out;
}

// ---- the check -----------------------------------------------------------------------------

Differences& Differences::operator+=(const Differences& o) {
  nodes += o.nodes, choices += o.choices, emitted += o.emitted, entries += o.entries;
  accepted += o.accepted;
  return *this;
}

namespace {

bool same(const void* a, const void* b, size_t bytes) { return std::memcmp(a, b, bytes) == 0; }

/// Visits the children of `node` depth first, so that each replayed step lacks nothing.
template <class Visit>
void walk(const DraftTrees& trees, int i, int node, const Visit& visit) {
  visit(node);
  for (int child = node + 1; child < trees.count[i]; ++child)
    if (trees.parent_at(i, child) == node) walk(trees, i, child, visit);
}

std::vector<Token> path_tokens(const DraftTrees& trees, int i, int node) {
  std::vector<Token> out;
  for (; node > 0; node = trees.parent_at(i, node)) out.push_back(trees.token_at(i, node));
  std::reverse(out.begin(), out.end());
  return out;
}

}  // namespace

Differences check_trees(Rig& subject, Batch batch, const DraftTrees& trees, Rig& plain,
                        const std::vector<Sampling>& rules) {
  const size_t n = batch.size();
  for (size_t i = 0; i < n; ++i) subject.begin(batch[i]->slot, rules[i], batch[i]->tokens);
  subject.feed(batch, subject.verifier->catch_up(), subject.verifier->options().block);
  std::vector<RoundResult> results(n);
  subject.verifier->verify(batch, trees, results);
  int nodes = 0;
  for (size_t i = 0; i < n; ++i) nodes += trees.count[i];
  std::vector<int32_t> tokens(nodes);
  std::vector<float> logits(nodes);
  subject.verifier->read_choices(tokens, logits);

  Differences out;
  int first = 0;
  for (size_t i = 0; i < n; ++i) {
    const int at = static_cast<int>(i);
    plain.begin(0, rules[i], batch[i]->tokens);
    walk(trees, at, 0, [&](int node) {
      // A token fed by itself: the path so far is what the sequence has come to.
      Sequence s{0, batch[i]->tokens, batch[i]->committed};
      const auto path = path_tokens(trees, at, node);
      s.tokens.insert(s.tokens.end(), path.begin(), path.end());
      const RoundResult one = plain.plain_round(s);
      ++out.nodes;
      out.choices += one.token[0] != tokens[first + node] ||
                     !same(&one.logit[0], &logits[first + node], sizeof(float));
    });

    // The walk that the choices ask for, made here.
    std::vector<int> accepted = {0};
    for (bool found = true; found;) {
      found = false;
      for (int child = accepted.back() + 1; child < trees.count[i] && !found; ++child)
        if (trees.parent_at(at, child) == accepted.back() &&
            trees.token_at(at, child) == tokens[first + accepted.back()]) {
          accepted.push_back(child);
          found = true;
        }
    }
    const RoundResult& r = results[i];
    bool right = r.emitted == static_cast<int>(accepted.size());
    for (int d = 0; right && d < r.emitted; ++d)
      right = r.token[d] == tokens[first + accepted[d]] &&
              same(&r.logit[d], &logits[first + accepted[d]], sizeof(float));
    out.emitted += !right;
    out.accepted += r.emitted - 1;

    Sequence s{0, batch[i]->tokens, batch[i]->committed};
    const auto path = path_tokens(trees, at, accepted.back());
    s.tokens.insert(s.tokens.end(), path.begin(), path.end());
    plain.plain_round(s);
    const int held = static_cast<int>(s.tokens.size());
    out.entries += entries(subject, batch[i]->slot, held) != entries(plain, 0, held);
    first += trees.count[i];
  }
  return out;
}

void grow_tree(DraftTrees& trees, int i, const Sequence& sequence, int nodes, Rig& plain,
               const Sampling& rule, TestRandom& random) {
  // What comes next, token by token.
  const int ahead = std::min(nodes - 1, random.between(0, kMaxEmitted - 1));
  Sequence s{0, sequence.tokens, sequence.committed};
  plain.begin(0, rule, sequence.tokens);
  std::vector<Token> next;
  while (static_cast<int>(next.size()) < ahead) {
    next.push_back(plain.plain_round(s).token[0]);
    s.tokens.push_back(next.back());
  }
  trees.reset(i, sequence.tokens.back());
  const int vocab = plain.model->config().vocab;
  int tip = 0, told = 0;
  while (trees.count[i] < nodes) {
    const int left = nodes - trees.count[i];
    if (told < ahead && (random.below(left) < ahead - told || random.below(4) == 0)) {
      tip = trees.add(i, tip, next[told++]);
      continue;
    }
    int parent = random.below(2) ? tip : random.below(trees.count[i]);
    while (trees.depth_at(i, parent) >= kMaxEmitted - 1) parent = trees.parent_at(i, parent);
    // Now and then a token of the text to come: one that the penalties are asked about again.
    const bool known = !next.empty() && random.below(2);
    trees.add(i, parent,
              known ? next[random.below(static_cast<int>(next.size()))] : random.below(vocab));
  }
}

Differences check_lengths(Rig& subject, Rig& plain, const std::vector<int>& lengths, int most_nodes,
                          uint64_t seed, const Sampling& sampling) {
  TestRandom random(seed);
  const int vocab = subject.model->config().vocab;
  const int capacity = subject.verifier->options().tree_capacity;
  DraftTrees trees(static_cast<int>(lengths.size()), capacity);
  std::vector<Sequence> sequences;
  std::vector<Sampling> rules;
  for (size_t i = 0; i < lengths.size(); ++i) {
    // Sequence i's text is the same at every length, so that longer ones extend shorter ones.
    sequences.push_back({static_cast<int>(i), random_text(lengths[i], vocab, 77 + i), 0});
    sequences.back().committed = sequences.back().tokens.size();
    rules.push_back(sampling);
    rules.back().seed = sampling.seed + i;
  }
  std::vector<Sequence*> batch;
  for (size_t i = 0; i < lengths.size(); ++i) {
    const int nodes = random.between(2, std::min(most_nodes, capacity));
    grow_tree(trees, static_cast<int>(i), sequences[i], nodes, plain, rules[i], random);
    batch.push_back(&sequences[i]);
  }
  return check_trees(subject, batch, trees, plain, rules);
}

Differences check_backends(Backend& subject_backend, Backend& plain_backend) {
  const Cell cell = replay_cells()[0];
  const RigOptions options;
  Rig subject(subject_backend, load_cell(subject_backend, cell, 512), options);
  Rig plain(plain_backend, load_cell(plain_backend, cell, 512), plain_options(options));
  Differences out;
  for (const int n : {3, 20, 33, 50, 64, 75, 90, 100})
    out += check_lengths(subject, plain, {n}, 63, 60 + n);
  return out;
}

}  // namespace stepladder
