// write_tiny DIR: a tiny random model directory, for tests that are programs of their own.
#include <cstdio>
#include <filesystem>

#include "support/safetensors_writer.h"
#include "support/tiny_model.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: write_tiny DIR\n");
    return 2;
  }
  std::filesystem::create_directories(argv[1]);
  const stepladder::TinySpec spec{.seed = 7};
  stepladder::write_tiny_checkpoint(spec, argv[1]);
  stepladder::testing::write_tokenizer(argv[1], spec.vocab);
}
