// Runs a fuzz entry where there is no libFuzzer: takes a seed or an input that was kept, changes
// it a few times at random, and goes on until the time is over.
//
//   DRIVER [--seconds=N] [--seed=N]     mutate for N seconds (default 60, seed 1)
//   DRIVER FILE...                      run the entry on these files
//
// The sanitizers end the process at the first fault; the input is then in DRIVER.crash.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <string_view>

#include <sys/wait.h>
#include <unistd.h>

#include "fuzz.h"

namespace {

using Random = std::mt19937_64;

constexpr size_t kMaxSize = 65536, kMaxKept = 4096;
// What the grammars of these files turn on.
constexpr std::string_view kWords[] = {
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "\\u0000",
    "\\ud800",
    "null",
    "true",
    "false",
    "-1",
    "0",
    "1e999",
    "1e-5",
    "NaN",
    "18446744073709551615",
    "18446744073709551616",
    "9223372036854775807",
    "2147483648",
    "4294967296",
    "\"dtype\"",
    "\"shape\"",
    "\"data_offsets\"",
    "__metadata__",
    "\"BF16\"",
    "\"F4\"",
    "\"F6_E2M3\"",
    "rope_scaling",
    "rope_parameters",
    "yarn",
    "llama3",
    "linear",
    "factor",
    "eos_token_id",
    "layer_types",
    "sliding_attention",
    "vocab",
    "added_tokens",
    "\xef\xbb\xbf",
    "\xff",
    "\xc0\xaf",
};

size_t below(Random& random, size_t n) { return n ? random() % n : 0; }

void change(std::string& input, const std::vector<std::string>& kept, Random& random) {
  const size_t at = below(random, input.size() + 1);
  const size_t length = 1 + below(random, std::min<size_t>(input.size() - at, 64));
  switch (below(random, 9)) {
    case 0:  // one bit
      if (at < input.size()) input[at] ^= static_cast<char>(1 << below(random, 8));
      break;
    case 1:  // one byte
      if (at < input.size()) input[at] = static_cast<char>(random());
      break;
    case 2:
      input.erase(at, length);
      break;
    case 3:
      input.insert(at, input.substr(at, length));
      break;
    case 4:
      input.insert(at, kWords[below(random, std::size(kWords))]);
      break;
    case 5: {  // a word instead of what is there
      const std::string_view word = kWords[below(random, std::size(kWords))];
      input.replace(at, std::min(length, input.size() - at), word);
      break;
    }
    case 6: {  // the head of this and the tail of another
      const std::string& other = kept[below(random, kept.size())];
      input = input.substr(0, at) + other.substr(below(random, other.size() + 1));
      break;
    }
    case 7: {  // another number
      const size_t digit = input.find_first_of("0123456789", at);
      if (digit == input.npos) break;
      const size_t end = std::min(input.find_first_not_of("0123456789", digit), input.size());
      input.replace(digit, end - digit, std::to_string(random() >> below(random, 64)));
      break;
    }
    case 8:  // the first eight bytes, a length in some formats
      if (input.size() >= 8) {
        uint64_t value;
        std::memcpy(&value, input.data(), 8);
        value += below(random, 2) ? random() >> below(random, 64) : ~uint64_t{0};
        if (below(random, 2))
          value = input.size() - 8 - std::min<size_t>(input.size() - 8, below(random, 16));
        std::memcpy(input.data(), &value, 8);
      }
      break;
  }
  if (input.size() > kMaxSize) input.resize(kMaxSize);
}

void run(const std::string& input) {
  // A copy of exactly this size, so that a read past its end is seen.
  const std::vector<uint8_t> bytes(input.begin(), input.end());
  LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
}

std::string crash_file;

int mutate(double seconds, uint64_t seed) {
  std::vector<std::string> kept = stepladder::fuzz::seeds();
  for (const std::string& input : kept) run(input);
  Random random(seed);
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  uint64_t runs = 0;
  const size_t originals = kept.size();
  for (; elapsed() < seconds; ++runs) {
    std::string input = kept[below(random, kept.size())];
    for (size_t n = 1 + below(random, 6); n > 0; --n) change(input, kept, random);
    // Written before, because a sanitizer leaves no chance afterwards; the page cache is quick.
    std::ofstream(crash_file, std::ios::binary) << input;
    const auto before = elapsed();
    run(input);
    stepladder::fuzz::require(elapsed() - before < 2, "an input is read within two seconds");
    if (below(random, 64) == 0) {
      if (kept.size() < kMaxKept)
        kept.push_back(std::move(input));
      else
        kept[originals + below(random, kept.size() - originals)] = std::move(input);
    }
  }
  ::unlink(crash_file.c_str());
  std::printf("%llu inputs in %.0f s, seed %llu\n", static_cast<unsigned long long>(runs),
              elapsed(), static_cast<unsigned long long>(seed));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  double seconds = 60;
  uint64_t seed = 1;
  bool files = false;
  crash_file = std::string(argv[0]) + ".crash";
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.starts_with("--seconds=")) {
      seconds = std::stod(argument.substr(10));
    } else if (argument.starts_with("--seed=")) {
      seed = std::stoull(argument.substr(7));
    } else {
      std::ifstream in(argument, std::ios::binary);
      run(std::string(std::istreambuf_iterator<char>(in), {}));
      files = true;
    }
  }
  return files ? 0 : mutate(seconds, seed);
}
