// What makes a list of draft levels sensible, whoever wrote it: the spec string or a caller.
#pragma once

#include <vector>

#include "spec/drafter_kind.h"
#include "stepladder/engine.h"

namespace stepladder {

constexpr int kMaxLevels = 16;

/// Throws Error(invalid_argument) naming the level and the option that cannot be.
void check_draft(const std::vector<LevelSpec>&);
/// Throws Error(invalid_argument) unless lm_head can be cast to `name`; "" = as stored.
void check_head(const std::string& name);
/// The spec with every default filled in: tokens, and the formats' own names ("int8" is w8a16).
LevelSpec with_defaults(LevelSpec);
/// "cast:mxfp4" and the like: how messages and stats name a level.
std::string level_name(const LevelSpec&);
/// Whether the level only proposes: an entry of drafter_kinds().
bool is_drafter(const LevelSpec&);
/// What such a level, which was checked, says of itself: its argument, tokens and options, defaults
/// filled in.
DrafterSetup drafter_setup(const LevelSpec&);
const DrafterKind& drafter_kind(const LevelSpec&);
/// The name of the weight format that a spec calls `name`: "int8" is w8a16.
std::string format_name(const std::string& name);

}  // namespace stepladder
