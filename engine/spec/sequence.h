// The sequence is the truth every level syncs to.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "stepladder/engine.h"

namespace stepladder {

/// One sequence as a level sees it: its tokens so far, prompt included. The last token is the
/// root of the next round; its cache entry does not exist yet.
struct Sequence {
  int slot = 0;  // its place in every cache and in the rule table
  std::vector<Token> tokens;
  size_t committed = 0;  // tokens[0, committed) came from the prompt or the target
};
using Batch = std::span<Sequence* const>;

/// The draft a round wants for a sequence, the root not counted. A chain has as many nodes as it
/// is deep. All 0 = none.
struct Budget {
  int at_least = 0;  // depth that is wished for
  int at_most = 0;   // depth at most
  int nodes = 0;     // guesses at most, on all branches together
};

}  // namespace stepladder
