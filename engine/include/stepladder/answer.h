// What two runs are compared by and what a text is like: used by the benches, `stepladder verify`
// and whoever wants to check the promise that levels change nothing.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "stepladder/engine.h"

namespace stepladder {

/// 64-bit FNV-1a over tokens (int32) and the bits of their logits (float32), little-endian, one
/// pair after the other.
class AnswerHash {
 public:
  /// Both are equally long.
  void add(std::span<const Token> tokens, std::span<const float> logits) {
    for (size_t i = 0; i < tokens.size(); ++i) word(&tokens[i]), word(&logits[i]);
  }
  /// 16 hex digits.
  std::string text() const {
    char out[17];
    std::snprintf(out, sizeof out, "%016llx", static_cast<unsigned long long>(value_));
    return out;
  }

 private:
  void word(const void* p) {
    unsigned char bytes[4];
    std::memcpy(bytes, p, 4);
    for (unsigned char b : bytes) value_ = (value_ ^ b) * 0x100000001B3u;
  }
  uint64_t value_ = 0xCBF29CE484222325u;
};

/// Runs of `n` tokens in a text, and how many of them it has had before: what flatters a lookup.
struct Grams {
  int64_t repeated = 0, all = 0;
};
inline Grams count_grams(std::span<const Token> tokens, size_t n = 8) {
  Grams grams;
  std::set<std::vector<Token>> seen;
  for (size_t i = 0; i + n <= tokens.size(); ++i, ++grams.all)
    grams.repeated += !seen.emplace(tokens.begin() + i, tokens.begin() + i + n).second;
  return grams;
}

}  // namespace stepladder
