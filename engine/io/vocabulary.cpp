// Reads the vocabulary out of tokenizer.json and the files beside it without building a tree of
// them, most of which (merges, normalization tables) is of no use here.
#include "io/vocabulary.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <string_view>
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

using AddedTokens = std::vector<std::pair<uint64_t, std::string>>;

/// Tokens by id.
struct Ids {
  explicit Ids(uint64_t limit) : limit(limit) {}

  /// Throws where the id is taken by another token, unless that may be replaced.
  void place(const std::string& where, uint64_t id, const std::string& token, bool may_replace) {
    // Ids far above the number of tokens would ask for memory that the file does not justify.
    if (id >= limit)
      fail(Code::model_format, where, ": token ", quote(token), " has the id ", id,
           ", far above the number of tokens");
    if (id >= tokens.size()) tokens.resize(id + 1), taken.resize(id + 1);
    if (!may_replace && taken[id] && tokens[id] != token)
      fail(Code::model_format, where, ": id ", id, " is both ", quote(tokens[id]), " and ",
           quote(token));
    tokens[id] = token;
    taken[id] = true;
  }

  uint64_t limit;
  std::vector<std::string> tokens;
  std::vector<bool> taken;
};

// Follows the few paths of a tokenizer.json that hold tokens:
//   model.vocab           {token: id} (BPE, WordPiece, WordLevel) or [[token, score], ...]
//   (Unigram) added_tokens[*]       {"id": id, "content": token}
class Tokenizer final : public JsonEvents {
 public:
  explicit Tokenizer(const std::string& where) : where_(where) {}

  std::vector<std::string> tokens() {
    check(seen_vocab_, Code::model_format, where_, ": has no model.vocab");
    Ids ids(4 * (vocab_.size() + added_.size()) + 65536);
    for (const auto& [token, id] : vocab_) ids.place(where_, id, token, false);
    // Added tokens usually stand in the vocabulary too, and win where they differ.
    for (const auto& [id, token] : added_) ids.place(where_, id, token, true);
    return std::move(ids.tokens);
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
  AddedTokens added_;
  std::string root_key_, model_key_, key_, content_;
  uint64_t id_ = 0;
  int depth_ = 0, items_ = 0;
  char in_vocab_ = 0;  // 'o' in an object, 'a' in an array
  bool in_added_ = false, seen_vocab_ = false, has_id_ = false, has_content_ = false;
};

// The tokens of added_tokens.json, {token: id}, or those of tokenizer_config.json:
//   added_tokens_decoder    {"id": {"content": token}}
class SideTokens final : public JsonEvents {
 public:
  SideTokens(const std::string& where, bool decoder) : where_(where), decoder_(decoder) {}
  AddedTokens tokens;

  void open_object() override { open(); }
  void open_array() override {
    check(depth_ > 0, Code::model_format, where_, ": not a JSON object");
    open();
  }
  void close() override {
    --depth_;
    if (inside_ && decoder_ && depth_ == 2) {
      check(has_content_, Code::model_format, where_, ": added token ", id_, " lacks its content");
      add(id_, std::move(content_));
    }
    if (decoder_ && depth_ == 1) inside_ = false;
  }
  void key(std::string& name) override {
    if (decoder_ && depth_ == 1)
      root_key_ = std::move(name);
    else if (depth_ == (decoder_ ? 3 : 1))
      key_ = std::move(name);
    else if (inside_ && depth_ == 2)
      read_id(name);
  }
  void string(std::string& value) override {
    if (decoder_ && inside_ && depth_ == 3 && key_ == "content")
      content_ = std::move(value), has_content_ = true;
    else
      other();
  }
  void count(uint64_t value) override {
    if (!decoder_ && depth_ == 1)
      add(value, std::move(key_));
    else
      other();
  }
  void negative(int64_t) override { other(); }
  void real(double) override { other(); }
  void boolean(bool) override { other(); }
  void null() override {
    if (!decoder_) other();
  }

 private:
  void open() {
    if (!decoder_ && depth_ == 1) other();
    if (decoder_ && depth_ == 1) inside_ = root_key_ == "added_tokens_decoder";
    if (inside_ && depth_ == 2) has_content_ = false;
    ++depth_;
  }
  void read_id(const std::string& name) {
    const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), id_);
    check(error == std::errc{} && end == name.data() + name.size(), Code::model_format, where_,
          ": added_tokens_decoder: ", quote(name), " is not a token id");
  }
  void add(uint64_t id, std::string&& token) {
    check(tokens.size() < kMaxTokens, Code::model_format, where_, ": too many added tokens");
    tokens.emplace_back(id, std::move(token));
  }
  /// A value where only a token's may stand.
  void other() const {
    check(depth_ > 0, Code::model_format, where_, ": not a JSON object");
    check(
        decoder_ ? !(inside_ && depth_ == 2) : depth_ > 1, Code::model_format, where_,
        decoder_ ? ": added_tokens_decoder is malformed" : ": a token's id is not a whole number");
  }

  const std::string& where_;
  const bool decoder_;
  std::string root_key_, key_, content_;
  uint64_t id_ = 0;
  int depth_ = 0;
  bool inside_ = false, has_content_ = false;
};

/// What the files beside a tokenizer add to its vocabulary, each with the file's name.
std::vector<std::pair<std::string, AddedTokens>> side_tokens(const std::string& directory) {
  std::vector<std::pair<std::string, AddedTokens>> out;
  for (const char* name : {"tokenizer_config.json", "added_tokens.json"}) {
    const std::string path = path_of(directory, name);
    if (!exists(path)) continue;
    const File file(path);
    SideTokens events(path, name == std::string_view("tokenizer_config.json"));
    walk_json(file, 0, file.size(), events);
    if (!events.tokens.empty()) out.emplace_back(path, std::move(events.tokens));
  }
  return out;
}

/// The tokens of the vocabulary and of the files beside it; throws where they contradict.
std::vector<std::string> joined(std::vector<std::string> tokens, const std::string& directory) {
  const auto files = side_tokens(directory);
  if (files.empty()) return tokens;
  size_t more = 0;
  for (const auto& [where, added] : files) more += added.size();
  Ids ids(tokens.empty() ? kMaxTokens : 4 * (tokens.size() + more) + 65536);
  std::unordered_map<std::string, uint64_t> known;
  ids.tokens = std::move(tokens), ids.taken.resize(ids.tokens.size());
  for (uint64_t id = 0; id < ids.tokens.size(); ++id)
    if (!ids.tokens[id].empty()) known.emplace(ids.tokens[id], id), ids.taken[id] = true;
  for (const auto& [where, added] : files)
    for (const auto& [id, token] : added) {
      if (token.empty()) continue;
      const auto [at, fresh] = known.emplace(token, id);
      check(at->second == id, Code::model_format, where, ": token ", quote(token), " has the id ",
            id, ", but ", at->second, " elsewhere in ", directory);
      ids.place(where, id, token, false);
    }
  return std::move(ids.tokens);
}

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
  return joined(parse_vocabulary(File(path)), directory);
}

void check_same_vocabulary(const std::string& target_directory,
                           const std::string& draft_directory) {
  std::error_code error;
  if (fs::equivalent(target_directory, draft_directory, error)) return;
  const Files target(target_directory), draft(draft_directory);

  // Throws at the first id that means something else in the other.
  const auto compare = [](const std::vector<std::string>& wanted, const std::string& wanted_in,
                          const std::vector<std::string>& given, const std::string& given_in,
                          bool complete) {
    for (size_t id = 0; id < std::max(wanted.size(), given.size()); ++id) {
      const std::string_view a = token_at(wanted, id), b = token_at(given, id);
      if (a != b && (complete || (!a.empty() && !b.empty())))
        fail(Code::vocab_mismatch, "token ", id, " is ", said(a), " in ", wanted_in, " but ",
             said(b), " in ", given_in, "; a draft model must have its target's vocabulary");
    }
  };
  if (target.has_json && draft.has_json) {
    const auto wanted = read_vocabulary(target_directory), given = read_vocabulary(draft_directory);
    return compare(wanted, target.json, given, draft.json, true);
  }
  if (target.has_model && draft.has_model) {
    check(same_bytes(target.model, draft.model), Code::vocab_mismatch, target.model, " and ",
          draft.model,
          " differ; a draft model must have its target's vocabulary. If only their settings "
          "differ, put a tokenizer.json beside each, and the tokens are compared one by one");
    // The pieces are the same, and may be named again beside them; what is added may differ.
    const auto wanted = joined({}, target_directory), given = joined({}, draft_directory);
    return compare(wanted, target_directory, given, draft_directory, false);
  }
  const Files& lacking = target.has_json || target.has_model ? draft : target;
  fail(Code::vocab_mismatch, "the vocabularies of ", target.directory, " and ", draft.directory,
       " cannot be compared: both need a tokenizer.json or both a tokenizer.model; add the one "
       "that ",
       lacking.directory, " was trained with");
}

}  // namespace stepladder
