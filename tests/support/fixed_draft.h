// Levels that draft whether it pays or not, as tests want them.
#pragma once

#include <string>
#include <vector>

#include "api/draft_spec.h"

namespace stepladder {

/// parse_draft() with every draft length fixed: a level that does not pay, as on a tiny model,
/// would else rest.
inline std::vector<LevelSpec> fixed_draft(const std::string& draft) {
  std::vector<LevelSpec> out = parse_draft(draft);
  for (LevelSpec& level : out) level.tokens = with_defaults(level).tokens;
  return out;
}

}  // namespace stepladder
