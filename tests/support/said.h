// What an engine says, to the bit, and requests over every sampling option to ask it with.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "stepladder/engine.h"
#include "support/fixed_draft.h"

namespace stepladder {

constexpr int kVocab = 320;  // of the tiny checkpoints

/// The engine with the levels of `draft`, on one thread unless told otherwise.
inline std::shared_ptr<Engine> load(const std::string& directory, const std::string& draft,
                                    Options options = {}) {
  options.draft = fixed_draft(draft);
  if (!options.threads) options.threads = 1;
  return Engine::load(directory, options);
}

/// What a stream gave, to the bit.
struct Said {
  std::vector<Token> tokens;
  std::vector<uint32_t> logits;  // bits
  Finish finish = Finish::none;
  Token stop_token = -1;
  bool operator==(const Said&) const = default;
};
inline void PrintTo(const Said& s, std::ostream* out) {
  *out << s.tokens.size() << " tokens, finish " << int(s.finish) << ":";
  for (Token t : s.tokens) *out << ' ' << t;
}
inline Said take(Stream& stream) {
  Said out;
  for (Chunk chunk; stream.next(chunk);) {
    EXPECT_EQ(chunk.tokens.size(), chunk.logits.size());
    out.tokens.insert(out.tokens.end(), chunk.tokens.begin(), chunk.tokens.end());
    for (float l : chunk.logits) {
      uint32_t bits;
      std::memcpy(&bits, &l, sizeof bits);
      out.logits.push_back(bits);
    }
    out.finish = chunk.finish, out.stop_token = chunk.stop_token;
  }
  return out;
}
inline Said say(Engine& engine, const Request& request) { return take(*engine.submit(request)); }

inline std::vector<Token> some_prompt(int n, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<Token> out;
  for (int i = 0; i < n; ++i) {
    // A stretch repeats, so that lookup has something to find.
    const bool repeat = i >= 12 && i % 24 >= 12;
    out.push_back(repeat ? out[size_t(i) - 12] : static_cast<Token>(random() % kVocab));
  }
  return out;
}

/// Requests over every sampling option and prompts around the sizes of blocks and steps.
inline std::vector<Request> requests() {
  std::vector<Request> out;
  const int lengths[] = {1, 2, 31, 33, 64, 127, 130, 200};
  for (unsigned i = 0; i < 8; ++i) {
    Request r;
    r.prompt = some_prompt(lengths[i], i);
    r.max_tokens = 40;
    r.ignore_eos = i % 2;
    Sampling& s = r.sampling;
    s.seed = 1000 + i;
    if (i >= 2) s.temperature = i % 3 ? 0.8f : 1.f;
    if (i == 3 || i == 7) s.top_p = 0.9f;
    if (i == 4 || i == 7) s.top_k = 20;
    if (i == 5) s.min_p = 0.05f;
    if (i % 2) s.repetition_penalty = 1.3f, s.frequency_penalty = 0.4f, s.presence_penalty = 0.2f;
    if (i >= 6) s.logit_bias = {{5, 2.f}, {17, -1e9f}, {100, 1.5f}};
    out.push_back(r);
  }
  return out;
}

}  // namespace stepladder
