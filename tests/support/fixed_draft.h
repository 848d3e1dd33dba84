// Levels that draft whether it pays or not, as tests want them.
#pragma once

#include <string>
#include <vector>

#include "stepladder/engine.h"

namespace stepladder {

/// parse_draft() with every draft length fixed: a level that does not pay, as on a tiny model,
/// would else rest.
inline std::vector<LevelSpec> fixed_draft(const std::string& draft) {
  return fixed_draft(parse_draft(draft));
}

}  // namespace stepladder
