// The regular expressions of quantization configs ("re:.*lm_head$"), matched in linear time, since
// a file may hold an expression made to run for ever.
#pragma once

#include <string_view>

namespace stepladder {

/// Whether `pattern` matches `text` from its start (not necessarily to its end). Knows literals,
/// . [] () | * + ? ^ $ and the classes \d \w \s; throws Error(unsupported) naming anything else.
/// `where` names the source and the pattern in messages.
bool matches_pattern(std::string_view pattern, std::string_view text, std::string_view where);

}  // namespace stepladder
