// Tiny random checkpoints of every family and weight format, made on the spot. The same spec gives
// the same bytes everywhere; the weights are scaled so that logits are lively.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

#include "support/memory_checkpoint.h"

namespace stepladder {

/// Deterministic numbers for tests: splitmix64.
class TestRandom {
 public:
  explicit TestRandom(uint64_t seed) : state_(seed) {}
  uint64_t next();
  /// Uniform in [0, n).
  int below(int n) { return static_cast<int>(next() % static_cast<uint64_t>(n)); }
  /// Uniform in [low, high].
  int between(int low, int high) { return low + below(high - low + 1); }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  double normal();

 private:
  uint64_t state_;
};

struct TinySpec {
  std::string family = "llama";  // "llama" "llama3" (with its rope) "mistral" "qwen2" "qwen3"
  /// How the body is stored: "bf16" "f16", or a quantized layout: "w4a16" (GPTQ v1), "w4a16:v2",
  /// "w4a16:act-order", "w4a16:packed" (compressed-tensors), "w8a8", "w8a16", "mxfp4".
  std::string format = "bf16";
  int layers = 2, width = 128, heads = 4, kv_heads = 2, head_dim = 32, ffn = 256;
  int vocab = 320, positions = 512;
  bool tied = false, mlp_bias = false;
  int group = 32;    // of w4a16
  std::string rope;  // scaling: "" "linear" "yarn" ("llama3" comes with its family)
  uint64_t seed = 1;

  /// "qwen2/w8a8" and the like.
  std::string label() const;
};

/// How GoogleTest names a spec in messages.
void PrintTo(const TinySpec&, std::ostream*);

/// The checkpoint in memory.
MemoryCheckpoint tiny_checkpoint(const TinySpec&);
/// Writes a checkpoint as a Hugging Face directory: config.json, generation_config.json and
/// model.safetensors.
void write_checkpoint(const MemoryCheckpoint&, const std::string& directory);
/// The same of the spec's checkpoint, with a tokenizer.json.
void write_tiny_checkpoint(const TinySpec&, const std::string& directory);

/// One spec for each family, dense bf16, of differing shapes.
std::vector<TinySpec> tiny_families();
/// One spec for each way to store weights, on one small shape.
std::vector<TinySpec> tiny_formats();
/// Whether its weights run with 16-bit activations and with int8 ones too.
bool also_a8(const TinySpec&);

}  // namespace stepladder
