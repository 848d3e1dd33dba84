// stepladder-bench: the engine's speed on one model, as shares of the read bandwidth measured in
// the same run, and plain decoding beside a hierarchy with the proof that both say the same.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <thread>

#include "bench/bandwidth.h"
#include "bench/device_reads.h"
#include "bench/json_lines.h"
#include "bench/options.h"
#include "stepladder/answer.h"
#include "stepladder/engine.h"
#include "stepladder/version.h"

namespace {

using namespace bench;
using stepladder::AnswerHash;
using stepladder::Chunk;
using stepladder::Engine;
using stepladder::Info;
using stepladder::LevelStats;
using stepladder::Request;
using stepladder::Stats;
using stepladder::Token;

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
  return v[v.size() / 2];
}

struct Told {
  std::vector<Token> tokens;
  std::vector<float> logits;
  Stats stats;
};

Told take(stepladder::Stream& stream) {
  Told out;
  for (Chunk chunk; stream.next(chunk);) {
    out.tokens.insert(out.tokens.end(), chunk.tokens.begin(), chunk.tokens.end());
    out.logits.insert(out.logits.end(), chunk.logits.begin(), chunk.logits.end());
  }
  out.stats = stream.stats();
  return out;
}

class Bench {
 public:
  explicit Bench(const Settings& settings) : s_(settings), lines_(settings.json) {
    load(s_.drafts.empty() ? "" : s_.drafts[0]);
    if (info().backend.starts_with("cpu"))
      meter_ = std::make_unique<BandwidthMeter>(info().threads, size_t{768} << 20);
    else
      reads_ = DeviceReads::of(engine_->weights());
    made_up_ = s_.prompts.empty();
    for (int i = 0; made_up_ && i < 4; ++i) s_.prompts.push_back(random_prompt(s_.behind[0]));
  }

  /// Whether everything that had to be equal was.
  bool run() {
    decode();
    if (s_.prompt_block) prompt();
    if (!s_.rows.empty()) rows();
    for (int n : s_.sequences)
      if (n > 1) streams(n);
    bool equal = true;
    for (size_t i = 0; i < s_.drafts.size(); ++i) {
      if (i > 0) load(s_.drafts[i]);
      equal = hierarchy(s_.drafts[i]) && equal;
    }
    if (!loops_.empty()) table();
    return equal;
  }

 private:
  /// What one way of decoding all prompts came to.
  struct Loop {
    std::string levels;                           // "" = none
    double decode_ms = 0, tokens = 0, ratio = 1;  // tokens: behind the first of each prompt
    double rounds = 0, draft_ms = 0, verify_ms = 0, idle_ms = 0;

    double tokens_per_s() const { return tokens * 1e3 / decode_ms; }
    double acceptance_length() const { return tokens / rounds; }
    double host_gap_us() const { return idle_ms * 1e3 / rounds; }
    void add(const Told& told) {
      const LevelStats& target = told.stats.levels[0];
      decode_ms += told.stats.decode_ms, tokens += double(told.tokens.size()) - 1;
      // The first token is none of decoding's, and its round has no drafts.
      const double all = double(target.rounds), decoding = all - 1;
      rounds += decoding;
      draft_ms += target.draft_ms, verify_ms += target.verify_ms * decoding / all;
      for (const LevelStats& level : told.stats.levels) idle_ms += level.idle_ms;
    }
  };

  const Info& info() const { return engine_->info(); }

  /// The model with these levels, once what was loaded before is gone.
  void load(const std::string& draft) {
    stepladder::Options options;
    options.draft = stepladder::parse_draft(draft);
    options.context = s_.context, options.threads = s_.threads, options.isa = s_.isa,
    options.device = s_.device, options.head = s_.head;
    for (int n : s_.rows) options.tree = std::max(options.tree, n);
    for (int n : s_.sequences) options.max_sequences = std::max(options.max_sequences, n);
    reads_.reset(), engine_.reset();
    const auto start = std::chrono::steady_clock::now();
    engine_ = Engine::load(s_.model, options);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    describe(draft, took.count());
  }

  std::vector<Token> random_prompt(int n) {
    std::vector<Token> out(n);
    for (Token& t : out) t = static_cast<Token>(random_() % static_cast<unsigned>(info().vocab));
    return out;
  }

  Request request(const std::vector<Token>& prompt, int tokens, bool draft) const {
    Request r;
    r.prompt = prompt, r.max_tokens = tokens, r.draft = draft;
    r.ignore_eos = s_.ignore_eos || made_up_, r.sampling = s_.sampling;
    return r;
  }

  void describe(const std::string& draft, double load_s) {
    for (const auto& level : info().levels)
      std::fprintf(
          stderr, "%-22s %s%s%s%s  %.1f MB a pass, %.1f MB held%s\n", level.name.c_str(),
          level.format.c_str(),
          level.head.empty() || level.head == level.format ? "" : (", head " + level.head).c_str(),
          level.act.empty() ? "" : " ", level.act.c_str(), double(level.pass_bytes) / 1e6,
          double(level.weight_bytes + level.cache_bytes) / 1e6,
          level.tokens ? (", " + std::to_string(level.tokens) + " drafts a round at most").c_str()
                       : "");
    std::fprintf(stderr, "loaded in %.2f s\n", load_s);
    const auto& target = info().levels[0];
    lines_.write({{"bench", "model"},
                  {"version", STEPLADDER_VERSION},
                  {"model", s_.model},
                  {"backend", info().backend},
                  {"format", target.format},
                  {"head", target.head},
                  {"context", info().context},
                  {"threads", info().threads},
                  {"pass_bytes", target.pass_bytes},
                  {"load_s", rounded(load_s, 3)},
                  {"draft", draft}});
  }

  /// Milliseconds in which the target's weights can be read just now: by all cores, or by a graph
  /// of pure reads on their device. 0 = there is no telling.
  double floor_ms() {
    if (reads_) return reads_->pass_ms();
    return meter_ ? double(info().levels[0].pass_bytes) * 1e3 / meter_->sample() : 0;
  }

  /// Plain decoding of one stream, the floor measured before and after each run: tokens a second,
  /// and the share of the time that reading the weights once a token comes to.
  void decode() {
    std::vector<double> speeds, shares, floors = {floor_ms()};
    for (int r = 0; r < s_.repeats; ++r) {
      auto stream = engine_->submit(request(random_prompt(s_.behind[0]), s_.tokens, false));
      speeds.push_back(take(*stream).stats.tokens_per_second());
      floors.push_back(floor_ms());
      shares.push_back((floors[r] + floors[r + 1]) / 2 * speeds.back() / 1e3);
    }
    describe_floor(floors);
    plain_ = median(speeds);
    const auto [least, most] = std::minmax_element(speeds.begin(), speeds.end());
    std::fprintf(stderr, "plain decode    %.1f tokens/s (%.1f to %.1f), %.3f ms a token%s\n",
                 plain_, *least, *most, 1e3 / plain_, share_text(median(shares)).c_str());
    Json line = {{"bench", "decode"}, {"tokens_per_s", rounded(plain_, 2)}};
    if (const char* name = share_name()) line[name] = rounded(median(shares), 4);
    line.update({{"tokens", s_.tokens}, {"behind", s_.behind[0]}, {"repeats", s_.repeats}});
    lines_.write(line);
  }

  /// What shares are of, in the JSON lines.
  const char* share_name() const {
    return reads_ ? "read_graph_share" : meter_ ? "bandwidth_share" : nullptr;
  }
  std::string share_text(double share) const {
    char text[64] = "";
    if (share_name())
      std::snprintf(text, sizeof text, ", %.1f%% of the read %s", share * 100,
                    reads_ ? "graph's speed" : "bandwidth");
    return text;
  }

  void describe_floor(const std::vector<double>& ms) {
    const auto [least, most] = std::minmax_element(ms.begin(), ms.end());
    const double middle = median(ms);
    if (meter_) {
      const double bytes = double(info().levels[0].pass_bytes) * 1e3;
      std::fprintf(stderr, "read bandwidth  %.2f GB/s (%.2f to %.2f)\n", bytes / middle / 1e9,
                   bytes / *most / 1e9, bytes / *least / 1e9);
      lines_.write({{"bench", "bandwidth"},
                    {"bytes_per_s", rounded(bytes / middle, 0)},
                    {"least", rounded(bytes / *most, 0)},
                    {"most", rounded(bytes / *least, 0)},
                    {"threads", info().threads}});
    }
    if (!reads_) return;
    size_t bytes = 0;
    for (const auto& weight : engine_->weights()) bytes += weight.bytes;
    const size_t matrices = engine_->weights().size();
    std::fprintf(stderr, "plain reads     %.3f TB/s, %.1f GB in one kernel\n",
                 reads_->plain_bytes_per_s() / 1e12, double(reads_->plain_bytes()) / 1e9);
    std::fprintf(
        stderr, "read graph      %.4f ms (%.4f to %.4f), %.3f TB/s: %zu matrices, %.1f MB\n",
        middle, *least, *most, double(bytes) / middle / 1e9, matrices, double(bytes) / 1e6);
    lines_.write({{"bench", "reads"},
                  {"graph_ms", rounded(middle, 5)},
                  {"least", rounded(*least, 5)},
                  {"most", rounded(*most, 5)},
                  {"matrices", matrices},
                  {"bytes", bytes},
                  {"plain_bytes_per_s", rounded(reads_->plain_bytes_per_s(), 0)},
                  {"plain_bytes", reads_->plain_bytes()}});
  }

  /// Prompt reading, and the time to the first token with and without levels below.
  void prompt() {
    const int n = std::min(s_.prompt_block, info().context - 1);
    std::vector<double> ms[2];
    for (int r = 0; r < s_.repeats; ++r)
      for (bool draft : {false, true}) {
        if (draft && s_.drafts.empty()) continue;
        auto stream = engine_->submit(request(random_prompt(n), 2, draft));
        ms[draft].push_back(take(*stream).stats.first_token_ms);
      }
    const double plain = median(ms[0]);
    std::fprintf(stderr, "prompt of %-5d %.1f tokens/s, first token after %.1f ms\n", n,
                 n * 1e3 / plain, plain);
    lines_.write({{"bench", "prompt"},
                  {"tokens", n},
                  {"tokens_per_s", rounded(n * 1e3 / plain, 2)},
                  {"first_token_ms", rounded(plain, 3)}});
    if (ms[1].empty()) return;
    const double levels = median(ms[1]);
    std::fprintf(stderr, "                with levels after %.1f ms, %.3fx\n", levels,
                 levels / plain);
    lines_.write({{"bench", "first_token"},
                  {"plain_ms", rounded(plain, 3)},
                  {"levels_ms", rounded(levels, 3)},
                  {"ratio", rounded(levels / plain, 4)}});
  }

  /// What a tree of so many nodes costs to check, behind each number of tokens.
  void rows() {
    std::vector<int> sizes = {1};
    for (int n : s_.rows)
      if (n > 1) sizes.push_back(n);
    for (const int behind : s_.behind) {
      double floor = floor_ms();
      const auto ms = engine_->verify_ms(sizes, behind, 4 * s_.repeats + 1);
      floor = (floor + floor_ms()) / 2;
      std::fprintf(stderr, "checking rows behind %d tokens%s\n", behind,
                   share_name() ? share_text(floor / ms[0]).c_str() : "");
      for (size_t i = 0; i < sizes.size(); ++i) {
        std::fprintf(stderr, "  %4d  %9.3f ms  %7.3fx", sizes[i], ms[i], ms[i] / ms[0]);
        Json line = {{"bench", "rows"},
                     {"rows", sizes[i]},
                     {"ms", rounded(ms[i], 4)},
                     {"ratio", rounded(ms[i] / ms[0], 4)},
                     {"context", behind}};
        if (const char* name = share_name()) {
          std::fprintf(stderr, "  %5.1f%%", floor / ms[i] * 100);
          line[name] = rounded(floor / ms[i], 4);
        }
        std::fprintf(stderr, "\n");
        lines_.write(line);
      }
    }
  }

  void streams(int n) {
    std::vector<double> speeds;
    for (int r = 0; r < s_.repeats; ++r) {
      std::vector<std::shared_ptr<stepladder::Stream>> all;
      for (int i = 0; i < n; ++i)
        all.push_back(engine_->submit(request(random_prompt(16), s_.tokens, false)));
      const auto start = std::chrono::steady_clock::now();
      std::vector<std::thread> callers;
      for (auto& stream : all) callers.emplace_back([&stream] { take(*stream); });
      for (auto& caller : callers) caller.join();
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      speeds.push_back(n * s_.tokens / took.count());
    }
    const double speed = median(speeds);
    std::fprintf(stderr, "%d streams       %.1f tokens/s together, %.2fx one\n", n, speed,
                 speed / plain_);
    lines_.write({{"bench", "streams"},
                  {"streams", n},
                  {"tokens_per_s", rounded(speed, 2)},
                  {"ratio", rounded(speed / plain_, 4)}});
  }

  /// Plain and hierarchy alternate prompt by prompt, the one that goes first changing each time.
  bool hierarchy(const std::string& levels_spec) {
    AnswerHash hash[2];
    Loop plain, loop{.levels = levels_spec};
    int64_t tokens = 0;
    stepladder::Grams grams;
    size_t differing = 0;
    std::vector<LevelStats> levels;
    for (size_t i = 0; i < s_.prompts.size(); ++i) {
      Told told[2];
      for (int turn = 0; turn < 2; ++turn) {
        const bool draft = (turn == 1) == (i % 2 == 0);
        told[draft] = take(*engine_->submit(request(s_.prompts[i], s_.tokens, draft)));
      }
      for (int draft : {0, 1}) {
        hash[draft].add(told[draft].tokens, told[draft].logits);
        (draft ? loop : plain).add(told[draft]);
      }
      const bool equal =
          told[0].tokens == told[1].tokens &&
          std::memcmp(told[0].logits.data(), told[1].logits.data(), told[0].logits.size() * 4) == 0;
      differing += !equal;
      tokens += static_cast<int64_t>(told[0].tokens.size());
      const stepladder::Grams met = stepladder::count_grams(told[0].tokens);
      grams.all += met.all, grams.repeated += met.repeated;
      add(levels, told[1].stats.levels);
      lines_.write({{"bench", "prompt_pair"},
                    {"index", i},
                    {"tokens", told[0].tokens.size()},
                    {"plain_ms", rounded(told[0].stats.decode_ms, 3)},
                    {"levels_ms", rounded(told[1].stats.decode_ms, 3)},
                    {"equal", equal}});
    }
    const bool equal = differing == 0 && hash[0].text() == hash[1].text();
    loop.ratio = plain.decode_ms / loop.decode_ms;
    loops_.push_back(plain), loops_.push_back(loop);
    const double repeats = grams.all ? double(grams.repeated) / double(grams.all) : 0;
    std::fprintf(stderr, "plain           %.1f tokens/s  hash=%s\n", plain.tokens_per_s(),
                 hash[0].text().c_str());
    std::fprintf(stderr, "%-15s %.1f tokens/s  hash=%s  %.3fx%s\n", levels_spec.c_str(),
                 loop.tokens_per_s(), hash[1].text().c_str(), loop.ratio,
                 equal ? "" : "  THE TEXTS DIFFER");
    std::fprintf(stderr, "                %zu prompts, %lld tokens, %.1f%% of 8-grams repeated\n",
                 s_.prompts.size(), static_cast<long long>(tokens), repeats * 100);
    for (LevelStats& l : levels) {
      for (auto* positions : {&l.accepted_at, &l.drafted_at})
        while (!positions->empty() && positions->back() == 0) positions->pop_back();
      std::fprintf(stderr,
                   "  %-20s %lld rounds, acceptance length %.2f (%lld of %lld drafts), drafting "
                   "%.1f ms, verifying %.1f ms\n",
                   l.name.c_str(), static_cast<long long>(l.rounds), l.acceptance_length(),
                   static_cast<long long>(l.accepted), static_cast<long long>(l.drafted),
                   l.draft_ms, l.verify_ms);
      lines_.write({{"bench", "level"},
                    {"name", l.name},
                    {"rounds", l.rounds},
                    {"acceptance_length", rounded(l.acceptance_length(), 4)},
                    {"drafted", l.drafted},
                    {"accepted", l.accepted},
                    {"draft_ms", rounded(l.draft_ms, 3)},
                    {"verify_ms", rounded(l.verify_ms, 3)},
                    {"accepted_at", l.accepted_at},
                    {"drafted_at", l.drafted_at}});
    }
    Json line = {{"bench", "hierarchy"},
                 {"draft", levels_spec},
                 {"prompts", s_.prompts.size()},
                 {"tokens", tokens},
                 {"plain_ms", rounded(plain.decode_ms, 3)},
                 {"levels_ms", rounded(loop.decode_ms, 3)},
                 {"ratio", rounded(loop.ratio, 4)},
                 {"tokens_per_s", rounded(loop.tokens_per_s(), 2)},
                 {"acceptance_length", rounded(loop.acceptance_length(), 4)},
                 {"round_ms", rounded(loop.decode_ms / loop.rounds, 4)}};
    if (!meter_)
      line.update({{"host_gap_us", rounded(loop.host_gap_us(), 2)},
                   {"plain_host_gap_us", rounded(plain.host_gap_us(), 2)}});
    line.update({{"repeated_8grams", rounded(repeats, 4)},
                 {"plain_hash", hash[0].text()},
                 {"levels_hash", hash[1].text()},
                 {"equal", equal}});
    lines_.write(line);
    return equal;
  }

  /// All hierarchies, each behind its own plain decoding. The host's gap is the time a round that
  /// the device had nothing queued.
  void table() const {
    std::fprintf(stderr, "\n%-32s %9s %8s %10s %9s %9s %10s%s\n", "levels", "tokens/s", "speedup",
                 "acceptance", "ms/round", "drafting", "verifying", meter_ ? "" : "  host gap");
    for (const Loop& l : loops_) {
      std::fprintf(stderr, "%-32s %9.1f %7.3fx %10.2f %9.3f %9.3f %10.3f",
                   l.levels.empty() ? "plain" : l.levels.c_str(), l.tokens_per_s(), l.ratio,
                   l.acceptance_length(), l.decode_ms / l.rounds, l.draft_ms / l.rounds,
                   l.verify_ms / l.rounds);
      if (!meter_) std::fprintf(stderr, "  %5.1f us", l.host_gap_us());
      std::fprintf(stderr, "\n");
    }
  }

  static void add(std::vector<LevelStats>& sum, const std::vector<LevelStats>& one) {
    if (sum.empty()) {
      sum = one;
      return;
    }
    const auto add_each = [](std::vector<int64_t>& to, const std::vector<int64_t>& from) {
      to.resize(std::max(to.size(), from.size()));
      for (size_t i = 0; i < from.size(); ++i) to[i] += from[i];
    };
    for (size_t k = 0; k < one.size(); ++k) {
      sum[k].rounds += one[k].rounds, sum[k].drafted += one[k].drafted,
          sum[k].accepted += one[k].accepted;
      sum[k].emitted += one[k].emitted, sum[k].rows += one[k].rows;
      sum[k].draft_ms += one[k].draft_ms, sum[k].verify_ms += one[k].verify_ms;
      add_each(sum[k].accepted_at, one[k].accepted_at),
          add_each(sum[k].drafted_at, one[k].drafted_at);
    }
  }

  Settings s_;
  JsonLines lines_;
  std::shared_ptr<Engine> engine_;
  std::unique_ptr<BandwidthMeter> meter_;  // of the host, where it computes
  std::unique_ptr<DeviceReads> reads_;     // of the device that does
  std::mt19937 random_{12345};
  std::vector<Loop> loops_;  // plain and hierarchy in turn
  bool made_up_ = false;
  double plain_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  try {
    if (argc > 1 && (!std::strcmp(argv[1], "--help") || !std::strcmp(argv[1], "-h"))) {
      std::fputs(kUsage, stdout);
      return 0;
    }
    settings = read_settings(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "stepladder-bench: %s\n\n%s", e.what(), kUsage);
    return 2;
  }
  try {
    return Bench(settings).run() ? 0 : 1;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "stepladder-bench: %s\n", e.what());
    return 2;
  }
}
