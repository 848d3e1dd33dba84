#include "support/far/tree_drafter.h"

#include <algorithm>

#include "backends/cpu/kv_layout.h"
#include "core/error.h"
#include "support/tiny_model.h"

namespace stepladder {

TreeDrafter::TreeDrafter(FarBackend& backend, std::shared_ptr<KVCache> cache,
                         const TreeDrafterOptions& options)
    : backend_(backend),
      cache_(std::move(cache)),
      options_(options),
      memory_(allocate_buffer(backend, options.sequences * sizeof(Ask))),
      asks_(options.sequences) {
  check(cache_->spec().features.count > 0, Code::internal, "the cache keeps no features");
}

/// Ready where the cache holds the row before the root, as its verifier may use it.
bool TreeDrafter::ready(const Sequence& s) const {
  if (options_.not_ready > 0 && ++turn_ % static_cast<uint32_t>(options_.not_ready) == 0)
    return false;
  const int root = static_cast<int>(s.tokens.size()) - 1;
  return root > 0 && cache_->usable(s.slot, s.tokens, options_.verifier) >= root;
}

void TreeDrafter::attach(const TreeView& trees) {
  check(!recording_, Code::internal, "a drafter for one verifier");
  trees_ = trees;
  const size_t n = static_cast<size_t>(trees.sequences), nodes = n * trees.capacity;
  recording_ = backend_.record([&] {
    backend_.own({{memory_.data(), memory_.bytes()},
                  {cache_->view().data, cache_->bytes()},
                  {trees.count, n * 4},
                  {trees.token, nodes * 4},
                  {trees.parent, nodes * 4}},
                 [trees, o = options_, spec = cache_->spec()](std::span<void* const> at) {
                   TreeView view = trees;
                   view.count = static_cast<int32_t*>(at[2]);
                   view.token = static_cast<int32_t*>(at[3]);
                   view.parent = static_cast<int32_t*>(at[4]);
                   for (int i = 0; i < o.sequences; ++i)
                     grow(static_cast<const Ask*>(at[0])[i], i, {spec, at[1]}, view, o.vocab,
                          o.least);
                 });
  });
}

void TreeDrafter::draft(Batch batch, std::span<const Budget> budgets, DraftTrees& out) {
  std::fill(asks_.begin(), asks_.end(), Ask{});
  for (size_t i = 0; i < batch.size(); ++i) {
    const Sequence& s = *batch[i];
    const int nodes = std::min(budgets[i].nodes, trees_.capacity - 1);
    asks_[i] = {.slot = s.slot,
                .root = s.tokens.back(),
                .position = static_cast<int32_t>(s.tokens.size()) - 1,
                .nodes = 1 + std::max(nodes, 0),
                .depth = std::max(budgets[i].at_most, 0)};
    out.count[i] = asks_[i].nodes, out.depth[i] = asks_[i].depth;
    largest_ = std::max(largest_, asks_[i].nodes);
  }
  out.on_backend = true;
  ++drafts_;
  backend_.upload(memory_.data(), asks_.data(), memory_.bytes());
  recording_->replay();
}

void TreeDrafter::grow(const Ask& ask, int i, const KVView& kv, const TreeView& trees, int vocab,
                       int least) {
  const size_t at = size_t(i) * trees.capacity;
  trees.count[i] = ask.nodes > 0 ? 1 : 0;
  trees.token[at] = ask.root, trees.parent[at] = -1;
  if (ask.nodes <= 1 || ask.depth < 1) return;
  const KVLayout l = kv_layout(kv.spec);
  const auto* row =
      static_cast<const uint16_t*>(kv.data) + feature_at(l, ask.slot, ask.position - 1);
  uint64_t hash = 1469598103934665603u;
  for (size_t c = 0; c < l.feature; ++c) hash = (hash ^ row[c]) * 1099511628211u;
  TestRandom random(hash);
  const int nodes = random.between(std::min(least, ask.nodes), ask.nodes);
  const int broad = std::max(1, nodes / 2), start = random.below(vocab);
  std::vector<int> depth(nodes);
  for (int x = 1; x < nodes; ++x) {
    int parent = x <= broad ? 0 : random.below(x);
    while (depth[parent] >= ask.depth) parent = trees.parent[at + parent];
    depth[x] = depth[parent] + 1;
    trees.token[at + x] = x <= broad ? (start + x * 7) % vocab : random.below(vocab);
    trees.parent[at + x] = parent;
  }
  trees.count[i] = nodes;
}

}  // namespace stepladder
