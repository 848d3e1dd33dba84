// The tokens of a model as strings, for one purpose: to tell whether two models mean the same by
// the same token id. Turning text into tokens happens outside the engine.
#pragma once

#include <string>
#include <vector>

#include "io/file.h"

namespace stepladder {

/// Token strings by id from DIRECTORY/tokenizer.json (its model's vocabulary and added tokens; ids
/// nobody uses are empty). Empty when there is no such file; throws Error(model_format) naming the
/// file when it breaks its format.
std::vector<std::string> read_vocabulary(const std::string& directory);

/// The same from the text of a tokenizer.json.
std::vector<std::string> parse_vocabulary(const ByteSource& tokenizer);

/// Throws Error(vocab_mismatch) unless both directories hold the same tokens under the same ids.
/// Compares tokenizer.json with tokenizer.json, else tokenizer.model with tokenizer.model byte by
/// byte; the message names the first id that differs, or what is missing for a comparison.
void check_same_vocabulary(const std::string& target_directory, const std::string& draft_directory);

}  // namespace stepladder
