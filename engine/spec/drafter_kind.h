// A drafter as an entry of an open list: its word, its options, what it takes and how it is made.
// What a spec string, Python, the command line and C can say of it follows from this alone.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backends/backend.h"
#include "spec/drafter.h"

namespace stepladder {

struct ModelConfig;
class ModelVerifier;
class RuleTable;

/// A whole number that a user may set: `word:name=N`.
struct DrafterOption {
  const char* name;
  const char* about;
  int low, high;
  int initial;  // what it is when nobody says
};

/// What is known of a drafter before anything is loaded.
struct DrafterSetup {
  std::string argument;  // what followed the word; "" where the kind takes none
  std::vector<std::pair<std::string, int>> options;  // every one of the kind's
  int tokens = 0;                                    // guesses a round asks of it at most
  int sequences = 1, context = 0;                    // slots; tokens a sequence may hold
  int vocab = 0;                                     // tokens that may be chosen
  const ModelConfig* above = nullptr;                // of the verifier right above
  int level = 1;                                     // LevelId of what it writes into a cache

  int option(const std::string& name) const;
};

/// Memory that a drafter takes, at most.
struct DrafterNeed {
  size_t backend = 0, host = 0;  // bytes of the backend's memory and of the host's
  size_t pass_bytes = 0;         // read from memory to make a guess; 0 = next to nothing
};

/// What a drafter works with, all of which outlives it.
struct DrafterSite {
  Backend& backend;
  ModelVerifier& above;              // right above: its model, its cache with what entries carry
  std::shared_ptr<RuleTable> rules;  // how the target chooses
  float row_cost;                    // of checking one more row, until weigh_rows() says better
};

/// The one constant that spec/drafters/NAME.cpp exports, named like the file, in the namespace
/// `drafter`.
struct DrafterKind {
  const char* word;
  const char* about;
  const char* argument;  // what must follow the word, as "PATH"; null = nothing
  int tokens;            // guesses a round asks of it, unless told otherwise
  bool forecasts;        // as Drafter::forecasts()
  std::span<const DrafterOption> options;
  /// Refuses options that cannot go together, before anything is known but them. May be null.
  void (*check)(const DrafterSetup&);
  /// Nodes of its largest draft, root included; null = those of a chain.
  int (*nodes)(const DrafterSetup&);
  /// Rows of hidden state that it reads from the cache of the verifier above; null = none.
  FeatureSpec (*features)(const DrafterSetup&);
  DrafterNeed (*memory)(const DrafterSetup&, const Backend&);
  /// Takes all the memory it will ever use. Throws Error.
  std::unique_ptr<Drafter> (*make)(const DrafterSetup&, const DrafterSite&);
};

/// All kinds that the build found.
std::span<const DrafterKind* const> drafter_kinds();
/// Null when no kind has this word.
const DrafterKind* find_drafter(const std::string& word);

}  // namespace stepladder
