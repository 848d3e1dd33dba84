// The tokens of a model as strings, for one purpose: to tell whether two models mean the same by
// the same token id. Turning text into tokens happens outside the engine.
#pragma once

#include <string>
#include <vector>

#include "io/file.h"

namespace stepladder {

/// Token strings by id: those of DIRECTORY/tokenizer.json (its model's vocabulary and added
/// tokens), of added_tokens_decoder in tokenizer_config.json and of added_tokens.json; ids nobody
/// uses are empty. Empty when there is no tokenizer.json; throws Error(model_format) naming the
/// file when one breaks its format or contradicts another.
std::vector<std::string> read_vocabulary(const std::string& directory);

/// The same from the text of a tokenizer.json.
std::vector<std::string> parse_vocabulary(const ByteSource& tokenizer);

/// Throws Error(vocab_mismatch) unless both directories hold the same tokens under the same ids.
/// Compares the vocabularies with a tokenizer.json token by token, else tokenizer.model with
/// tokenizer.model byte by byte and what is added beside them; the message names the first id that
/// differs, or what is missing for a comparison.
void check_same_vocabulary(const std::string& target_directory, const std::string& draft_directory);

}  // namespace stepladder
