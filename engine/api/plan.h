// What loading will do, decided before any weight is read: which checkpoints are opened, which
// level runs on which, what they share, and how much memory all of it takes.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "api/draft_spec.h"
#include "io/checkpoint.h"
#include "model/config.h"
#include "model/weights.h"
#include "spec/drafter_kind.h"
#include "spec/level.h"
#include "spec/model_verifier.h"
#include "stepladder/engine.h"

namespace stepladder {

/// One checkpoint directory; levels that name the same one share it.
struct Source {
  std::string directory;
  std::string head;  // lm_head's format; "" = as stored
  std::unique_ptr<Checkpoint> checkpoint;
  ModelConfig config;
  int context = 0;       // tokens a sequence may hold in it
  bool also_a8 = false;  // a switch runs on its weights
  size_t bytes = 0;      // estimate of what it takes on the backend
};

/// One verifying level; 0 is the target.
struct LevelPlan {
  LevelSpec spec;
  std::string name;
  int source = 0;        // the checkpoint it runs or copies
  int cache_of = 0;      // the level whose cache it uses; itself when it owns one
  int drafts = 0;        // asked of the drafter below; 0 when there is none
  bool planned = false;  // whether it asks for fewer, or another drafter, where that is faster
  size_t bytes = 0;      // estimate of the weights held for it alone
};

/// What proposes below the last verifying level.
struct LeafPlan {
  const DrafterKind* kind = nullptr;
  DrafterSetup setup;
  std::string name;
};

struct LoadPlan {
  std::vector<Source> sources;
  std::vector<LevelPlan> levels;
  std::optional<LeafPlan> leaf;
  int context = 0, sequences = 1, vocab = 0, threads = 1;
  int tree_capacity = 0;  // nodes of the largest draft, root included
  int tree = 0;           // nodes that the target shall be able to check, drafts aside
  int ahead = 0;          // tokens that a level may have guessed beyond the target's
  std::vector<std::string> notes;
};

/// Opens and checks everything that can be without reading weights.
LoadPlan make_plan(const std::string& directory, const Options&);

/// Bytes taken of one memory, by what for.
struct MemoryPart {
  size_t weights = 0, caches = 0, work = 0, transient = 0;
  size_t growing = 0;      // the part of these that grows with the context
  size_t per_context = 0;  // by so many bytes, at most, for each token of it
  size_t total() const { return weights + caches + work + transient; }
  size_t lasting() const { return weights + caches + work; }
};
/// Bytes the plan takes. On a backend whose memory is the host's all of it is the backend's.
struct MemoryNeed {
  MemoryPart backend, host;
  size_t lasting() const { return backend.lasting() + host.lasting(); }
};
MemoryNeed memory_need(const LoadPlan&, const Backend&);
/// Bytes that can be had of both memories.
struct MemoryThere {
  size_t backend = 0, host = 0;
};
MemoryThere memory_there(const Backend&);
/// Throws Error(out_of_memory) with the numbers, whose memory it is, and the context that would
/// fit.
void check_memory(const LoadPlan&, const Backend&, const MemoryNeed&, const MemoryThere&);

/// Nodes of the largest tree, root included, that level k can check.
int largest_tree(const LoadPlan&, int k);
/// The cache of level k.
KVSpec cache_spec(const LoadPlan&, int k);
/// What the parts of level k are made with; the plan and the backend alone decide it.
VerifierOptions verifier_options(const LoadPlan&, const Backend&, int k, Act);
LevelOptions level_options(const LoadPlan&, int k);
/// "bf16" for dense weights, else the format's name.
std::string format_label(const FormatDesc&);
/// Tokens of the model's own tokenizer; all rows of the embedding when there is none to read. Notes
/// tokens that the embedding has no rows for.
int real_vocab(const std::string& directory, const ModelConfig&, std::vector<std::string>& notes);

}  // namespace stepladder
