// Options are read by hand: CLI11 comes neither as a wheel of its own nor without a system package,
// and the bench is to build wherever pip and a compiler are.
#include "bench/options.h"

#include <charconv>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace bench {

const char* const kUsage =
    "usage: stepladder-bench MODEL [options]\n"
    "\n"
    "Measures the read bandwidth, then plain decoding, prompt reading, the cost of checking "
    "several\n"
    "rows and several streams against it; with --draft also the hierarchy, prompt by prompt "
    "beside\n"
    "plain decoding, whose tokens and logits must be the same. A table goes to stderr, JSON lines "
    "to\n"
    "stdout or a file.\n"
    "\n"
    "  --draft SPEC          levels below the target, as in \"cast:int8,lookup\"; given again, "
    "another\n"
    "                        hierarchy, loaded in its turn; a table of all comes last\n"
    "  --prompts FILE        one array of token ids a line, alone or as \"tokens\" of an object\n"
    "  --prompt-tokens IDS   one prompt, as in 1,2,3\n"
    "  --tokens N            tokens to generate for each prompt (128)\n"
    "  --ignore-eos          go on past end tokens (always for made-up prompts)\n"
    "  --temperature X --top-p X --min-p X --top-k N --seed N --repetition-penalty X\n"
    "  --device NAME --threads N --isa NAME --head FORMAT --context N\n"
    "  --rows LIST           tree sizes to time (1,2,4,8,16), up to 1024 nodes; \"\" = none\n"
    "  --behind LIST         tokens in the cache before them (96); the first also before plain "
    "decoding\n"
    "                        and in made-up prompts\n"
    "  --sequences LIST      streams at once (1,4); \"\" = none\n"
    "  --pp N                prompt length to time (512); 0 = none\n"
    "  --repeats N           of each single measurement (5)\n"
    "  --json FILE           where the JSON lines go\n";

namespace {

using Json = nlohmann::json;

template <class T>
T number(const std::string& option, const std::string& text) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    throw std::runtime_error(option + ": '" + text + "' is not a number");
  return value;
}

template <class T>
std::vector<T> numbers(const std::string& option, const std::string& text) {
  std::vector<T> out;
  for (size_t at = 0; at < text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    size_t from = text.find_first_not_of(" \t", at), to = text.find_last_not_of(" \t\r", comma - 1);
    if (from >= comma) throw std::runtime_error(option + ": '" + text + "' has an empty entry");
    out.push_back(number<T>(option, text.substr(from, to - from + 1)));
    at = comma + 1;
  }
  return out;
}

std::vector<std::vector<stepladder::Token>> read_prompts(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("--prompts: cannot read " + path);
  std::vector<std::vector<stepladder::Token>> out;
  int line_number = 0;
  for (std::string line; std::getline(file, line);) {
    ++line_number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = path + ", line " + std::to_string(line_number);
    const Json value = Json::parse(line, nullptr, false);
    const Json& tokens = value.is_object() && value.contains("tokens") ? value["tokens"] : value;
    try {
      for (const Json& token : tokens)
        if (!tokens.is_array() || !token.is_number_integer() || token.get<int64_t>() < 0 ||
            token.get<int64_t>() > INT32_MAX)
          throw std::runtime_error(where + ": no array of token ids");
      out.push_back(tokens.get<std::vector<stepladder::Token>>());
    } catch (const Json::exception&) {
      throw std::runtime_error(where + ": no array of token ids");
    }
  }
  if (out.empty()) throw std::runtime_error("--prompts: " + path + " has no prompts");
  return out;
}

}  // namespace

Settings read_settings(int argc, char** argv) {
  Settings s;
  const std::map<std::string, std::function<void(const std::string&, const std::string&)>> options =
      {
          {"--draft", [&](auto&, auto& v) { s.drafts.push_back(v); }},
          {"--prompts", [&](auto&, auto& v) { s.prompts = read_prompts(v); }},
          {"--prompt-tokens",
           [&](auto& o, auto& v) { s.prompts = {numbers<stepladder::Token>(o, v)}; }},
          {"--tokens", [&](auto& o, auto& v) { s.tokens = number<int>(o, v); }},
          {"--temperature",
           [&](auto& o, auto& v) { s.sampling.temperature = number<float>(o, v); }},
          {"--top-p", [&](auto& o, auto& v) { s.sampling.top_p = number<float>(o, v); }},
          {"--min-p", [&](auto& o, auto& v) { s.sampling.min_p = number<float>(o, v); }},
          {"--top-k", [&](auto& o, auto& v) { s.sampling.top_k = number<int>(o, v); }},
          {"--seed", [&](auto& o, auto& v) { s.sampling.seed = number<uint64_t>(o, v); }},
          {"--repetition-penalty",
           [&](auto& o, auto& v) { s.sampling.repetition_penalty = number<float>(o, v); }},
          {"--threads", [&](auto& o, auto& v) { s.threads = number<int>(o, v); }},
          {"--device", [&](auto&, auto& v) { s.device = v; }},
          {"--isa", [&](auto&, auto& v) { s.isa = v; }},
          {"--head", [&](auto&, auto& v) { s.head = v; }},
          {"--context", [&](auto& o, auto& v) { s.context = number<int>(o, v); }},
          {"--rows", [&](auto& o, auto& v) { s.rows = numbers<int>(o, v); }},
          {"--behind", [&](auto& o, auto& v) { s.behind = numbers<int>(o, v); }},
          {"--sequences", [&](auto& o, auto& v) { s.sequences = numbers<int>(o, v); }},
          {"--pp", [&](auto& o, auto& v) { s.prompt_block = number<int>(o, v); }},
          {"--repeats", [&](auto& o, auto& v) { s.repeats = number<int>(o, v); }},
          {"--json", [&](auto&, auto& v) { s.json = v; }},
  };
  for (int i = 1; i < argc; ++i) {
    std::string name = argv[i];
    if (name == "--ignore-eos") {
      s.ignore_eos = true;
      continue;
    }
    if (!name.starts_with("-")) {
      if (!s.model.empty()) throw std::runtime_error("'" + name + "': one model at a time");
      s.model = name;
      continue;
    }
    std::string value;
    const size_t equals = name.find('=');
    if (equals != std::string::npos) value = name.substr(equals + 1), name.resize(equals);
    const auto option = options.find(name);
    if (option == options.end()) throw std::runtime_error("unknown option " + name);
    if (equals == std::string::npos) {
      if (++i == argc) throw std::runtime_error(name + " needs a value");
      value = argv[i];
    }
    option->second(name, value);
  }
  if (s.model.empty()) throw std::runtime_error("which model?");
  if (s.tokens < 2 || s.repeats < 1 || s.prompt_block < 0)
    throw std::runtime_error("--tokens is at least 2, --repeats 1 and --pp 0");
  for (int n : s.sequences)
    if (n < 1) throw std::runtime_error("--sequences: at least 1");
  for (int n : s.behind)
    if (n < 1) throw std::runtime_error("--behind: at least 1");
  if (s.behind.empty()) throw std::runtime_error("--behind: how many tokens?");
  return s;
}

}  // namespace bench
