// Reads the vocabulary out of tokenizer.json without building a tree of the file, most of which
// (merges, normalization tables) is of no use here.
#include "io/vocabulary.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <unordered_map>
#include <utility>

#include "core/error.h"
#include "io/checkpoint.h"
#include "io/json.h"

namespace stepladder {
namespace {

namespace fs = std::filesystem;

// The largest published tokenizer.json has some 35 MB.
constexpr uint64_t kMaxTokenizer = uint64_t{256} << 20;
constexpr size_t kMaxTokens = size_t{1} << 19;

std::string path_of(const std::string& directory, const char* name) {
  return (fs::path(directory) / name).string();
}

bool exists(const std::string& path) {
  std::error_code error;
  return fs::exists(path, error);
}

// Follows the few paths of a tokenizer.json that hold tokens:
//   model.vocab           {token: id} (BPE, WordPiece, WordLevel) or [[token, score], ...]
//   (Unigram) added_tokens[*]       {"id": id, "content": token}
class Tokenizer final : public JsonEvents {
 public:
  explicit Tokenizer(const std::string& where) : where_(where) {}

  std::vector<std::string> tokens() {
    check(seen_vocab_, Code::model_format, where_, ": has no model.vocab");
    // Ids far above the number of tokens would ask for memory that the file does not justify.
    const uint64_t limit = 4 * (vocab_.size() + added_.size()) + 65536;
    std::vector<std::string> out;
    std::vector<bool> taken;
    const auto place = [&](uint64_t id, std::string&& token, bool may_replace) {
      if (id >= limit)
        fail(Code::model_format, where_, ": token ", quote(token), " has the id ", id,
             ", far above the number of tokens");
      if (id >= out.size()) out.resize(id + 1), taken.resize(id + 1);
      if (!may_replace && taken[id])
        fail(Code::model_format, where_, ": id ", id, " is both ", quote(out[id]), " and ",
             quote(token));
      out[id] = std::move(token);
      taken[id] = true;
    };
    for (const auto& [token, id] : vocab_) place(id, std::string(token), false);
    // Added tokens usually stand in the vocabulary too, and win where they differ.
    for (auto& [id, token] : added_) place(id, std::move(token), true);
    return out;
  }

  void open_object() override {
    if (at_vocab())
      in_vocab_ = 'o', start_vocab();
    else if (in_vocab_)
      bad_vocab();
    if (in_added_ && depth_ == 2) has_id_ = has_content_ = false;
    ++depth_;
  }
  void open_array() override {
    if (at_vocab())
      in_vocab_ = 'a', start_vocab();
    else if (in_vocab_ && !(in_vocab_ == 'a' && depth_ == 3))
      bad_vocab();
    if (in_vocab_ && depth_ == 3) items_ = 0;
    if (depth_ == 1) in_added_ = root_key_ == "added_tokens";
    ++depth_;
  }
  void close() override {
    --depth_;
    if (in_vocab_ && depth_ == 2) in_vocab_ = 0;
    if (in_vocab_ && depth_ == 3 && items_ != 2) bad_vocab();
    if (in_added_ && depth_ == 2) {
      check(has_id_ && has_content_, Code::model_format, where_,
            ": an added token lacks its id or content");
      check(added_.size() < kMaxTokens, Code::model_format, where_, ": too many added tokens");
      added_.emplace_back(id_, std::move(content_));
    }
    if (in_added_ && depth_ == 1) in_added_ = false;
  }
  void key(std::string& name) override {
    if (depth_ == 1)
      root_key_ = std::move(name);
    else if (depth_ == 2 && root_key_ == "model")
      model_key_ = std::move(name);
    else if (in_vocab_ || (in_added_ && depth_ == 3))
      key_ = std::move(name);
  }
  void string(std::string& value) override {
    if (in_vocab_) {
      if (in_vocab_ != 'a' || depth_ != 4 || items_++ != 0) bad_vocab();
      add(std::move(value), vocab_.size());
    } else if (in_added_ && depth_ == 3 && key_ == "content") {
      content_ = std::move(value);
      has_content_ = true;
    }
  }
  void count(uint64_t value) override {
    if (in_vocab_ == 'o')
      add(std::move(key_), value);
    else if (in_vocab_)
      score();
    else if (in_added_ && depth_ == 3 && key_ == "id")
      id_ = value, has_id_ = true;
  }
  void negative(int64_t) override { score(); }
  void real(double) override { score(); }
  void boolean(bool) override {
    if (in_vocab_) bad_vocab();
  }
  void null() override {
    if (in_vocab_) bad_vocab();
  }

 private:
  bool at_vocab() const {
    return depth_ == 2 && !in_added_ && root_key_ == "model" && model_key_ == "vocab";
  }
  void start_vocab() {
    check(!seen_vocab_, Code::model_format, where_, ": model.vocab stands twice");
    seen_vocab_ = true;
  }
  void score() {
    if (in_vocab_ && (in_vocab_ != 'a' || depth_ != 4 || items_++ != 1)) bad_vocab();
  }
  void add(std::string&& token, uint64_t id) {
    check(vocab_.size() < kMaxTokens, Code::model_format, where_, ": more than ", kMaxTokens,
          " tokens");
    const auto [at, fresh] = vocab_.try_emplace(std::move(token), id);
    if (!fresh)
      fail(Code::model_format, where_, ": the token ", quote(at->first),
           " stands twice in model.vocab");
  }
  [[noreturn]] void bad_vocab() const {
    fail(Code::model_format, where_,
         ": model.vocab is neither {token: id} nor [[token, score], ...]");
  }

  const std::string& where_;
  std::unordered_map<std::string, uint64_t> vocab_;
  std::vector<std::pair<uint64_t, std::string>> added_;
  std::string root_key_, model_key_, key_, content_;
  uint64_t id_ = 0;
  int depth_ = 0, items_ = 0;
  char in_vocab_ = 0;  // 'o' in an object, 'a' in an array
  bool in_added_ = false, seen_vocab_ = false, has_id_ = false, has_content_ = false;
};

// What decides whether two vocabularies can be compared.
struct Files {
  std::string directory, json, model;
  bool has_json, has_model;

  explicit Files(const std::string& dir)
      : directory(dir),
        json(path_of(dir, "tokenizer.json")),
        model(path_of(dir, "tokenizer.model")),
        has_json(exists(json)),
        has_model(exists(model)) {}
};

bool same_bytes(const std::string& a, const std::string& b) {
  const File first(a), second(b);
  if (first.size() != second.size()) return false;
  std::vector<std::byte> x(65536), y(65536);
  for (uint64_t at = 0; at < first.size(); at += x.size()) {
    const size_t n = static_cast<size_t>(std::min<uint64_t>(x.size(), first.size() - at));
    first.read(at, std::span(x).first(n), "the tokenizer");
    second.read(at, std::span(y).first(n), "the tokenizer");
    if (!std::equal(x.begin(), x.begin() + static_cast<ptrdiff_t>(n), y.begin())) return false;
  }
  return true;
}

/// Empty: there is no such token.
std::string_view token_at(const std::vector<std::string>& tokens, size_t id) {
  return id < tokens.size() ? std::string_view(tokens[id]) : std::string_view();
}
std::string said(std::string_view token) { return token.empty() ? "no token" : quote(token); }

}  // namespace

std::vector<std::string> parse_vocabulary(const ByteSource& tokenizer) {
  check(tokenizer.size() <= kMaxTokenizer, Code::model_format, tokenizer.where(), " has ",
        tokenizer.size(), " bytes, and Stepladder reads at most ", kMaxTokenizer,
        " of a tokenizer");
  Tokenizer events(tokenizer.where());
  walk_json(tokenizer, 0, tokenizer.size(), events);
  return events.tokens();
}

std::vector<std::string> read_vocabulary(const std::string& directory) {
  const std::string path = path_of(directory, "tokenizer.json");
  if (!exists(path)) return {};
  return parse_vocabulary(File(path));
}

void check_same_vocabulary(const std::string& target_directory,
                           const std::string& draft_directory) {
  std::error_code error;
  if (fs::equivalent(target_directory, draft_directory, error)) return;
  const Files target(target_directory), draft(draft_directory);

  if (target.has_json && draft.has_json) {
    const std::vector<std::string> wanted = read_vocabulary(target_directory);
    const std::vector<std::string> given = read_vocabulary(draft_directory);
    for (size_t id = 0; id < std::max(wanted.size(), given.size()); ++id) {
      const std::string_view a = token_at(wanted, id), b = token_at(given, id);
      if (a != b)
        fail(Code::vocab_mismatch, "token ", id, " is ", said(a), " in ", target.json, " but ",
             said(b), " in ", draft.json, "; a draft model must have its target's vocabulary");
    }
    return;
  }
  if (target.has_model && draft.has_model) {
    check(same_bytes(target.model, draft.model), Code::vocab_mismatch, target.model, " and ",
          draft.model,
          " differ; a draft model must have its target's vocabulary. If only their settings "
          "differ, put a tokenizer.json beside each, and the tokens are compared one by one");
    return;
  }
  const Files& lacking = target.has_json || target.has_model ? draft : target;
  fail(Code::vocab_mismatch, "the vocabularies of ", target.directory, " and ", draft.directory,
       " cannot be compared: both need a tokenizer.json or both a tokenizer.model; add the one "
       "that ",
       lacking.directory, " was trained with");
}

}  // namespace stepladder
