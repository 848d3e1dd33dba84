// stepladder-bench's command line.
#pragma once

#include <string>
#include <vector>

#include "stepladder/engine.h"

namespace bench {

struct Settings {
  std::string model, json;
  std::vector<std::string> drafts;                      // hierarchies, each loaded in its turn
  std::vector<std::vector<stepladder::Token>> prompts;  // empty: made up
  int tokens = 128, threads = 0, context = 0, prompt_block = 512, repeats = 5;
  std::string device = "auto", isa, head;
  std::vector<int> rows = {1, 2, 4, 8, 16}, behind = {96}, sequences = {1, 4};
  bool ignore_eos = false;
  stepladder::Sampling sampling;
};

/// Reads the command line; throws std::runtime_error saying what is wrong with it.
Settings read_settings(int argc, char** argv);
extern const char* const kUsage;

}  // namespace bench
