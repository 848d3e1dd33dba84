// Strict JSON over a byte source, as events or as a tree. The lexer is nlohmann's; what it lets
// through (NUL bytes as an end, byte order marks, any depth, any length, repeated keys) is
// refused here.
#include "io/json.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <iterator>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "core/error.h"
#include "io/checkpoint.h"

namespace stepladder {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 64;
// The lexer keeps the current token in memory, so a bound on the distance between two quotes is a
// bound on its memory. The longest string of real files is a tokenizer's normalization table.
constexpr uint64_t kMaxGap = uint64_t{8} << 20;

// The bytes, one after the other, through a small buffer.
class Feed {
 public:
  Feed(const ByteSource& source, uint64_t begin, uint64_t end)
      : source_(source), begin_(begin), next_(begin), end_(end), quote_(begin) {}

  bool done() const { return next_ == end_; }
  void advance() { ++next_; }
  char current() {
    if (next_ >= filled_) fill();
    const char c = static_cast<char>(buffer_[next_ - start_]);
    if (c == '"') quote_ = next_;
    if (c == '\0') refuse("a NUL byte");
    if (next_ - quote_ > kMaxGap) refuse("more than 8 MiB without a quote");
    return c;
  }

 private:
  void fill() {
    start_ = next_;
    filled_ = std::min<uint64_t>(end_, start_ + buffer_.size());
    source_.read(start_, std::span(buffer_).first(filled_ - start_), "the JSON text");
    if (start_ == begin_ && buffer_[0] == std::byte{0xef}) refuse("a byte order mark");
  }
  [[noreturn]] void refuse(const char* what) const {
    fail(Code::model_format, source_.where(), ": ", what, " at byte ", next_,
         ", which JSON text does not have");
  }

  const ByteSource& source_;
  uint64_t begin_, next_, end_, quote_;
  uint64_t start_ = 0, filled_ = 0;  // what the buffer holds
  std::array<std::byte, 65536> buffer_;
};

// What the lexer takes its characters from; a default-made one is the end.
class FeedIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = char;

  FeedIterator() = default;
  explicit FeedIterator(Feed& feed) : feed_(&feed) {}
  char operator*() const { return feed_->current(); }
  FeedIterator& operator++() {
    feed_->advance();
    return *this;
  }
  FeedIterator operator++(int) {
    FeedIterator before = *this;
    ++*this;
    return before;
  }
  bool operator==(const FeedIterator& o) const { return ended() == o.ended(); }
  bool operator!=(const FeedIterator& o) const { return !(*this == o); }

 private:
  bool ended() const { return !feed_ || feed_->done(); }
  Feed* feed_ = nullptr;
};

// nlohmann's callbacks, handed on.
class Handler {
 public:
  Handler(const std::string& where, JsonEvents& events) : where_(where), events_(events) {}

  bool null() { return events_.null(), true; }
  bool boolean(bool value) { return events_.boolean(value), true; }
  bool number_integer(json::number_integer_t value) { return events_.negative(value), true; }
  bool number_unsigned(json::number_unsigned_t value) { return events_.count(value), true; }
  bool number_float(json::number_float_t value, const std::string&) {
    return events_.real(value), true;
  }
  bool string(std::string& value) { return events_.string(value), true; }
  bool binary(json::binary_t&) { return false; }
  bool start_object(size_t) { return deeper(), events_.open_object(), true; }
  bool start_array(size_t) { return deeper(), events_.open_array(), true; }
  bool end_object() { return --depth_, events_.close(), true; }
  bool end_array() { return --depth_, events_.close(), true; }
  bool key(std::string& name) { return events_.key(name), true; }
  bool parse_error(size_t position, const std::string&, const json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: ..." without the tag.
    std::string_view text = error.what();
    if (const size_t tag = text.find("] "); tag != text.npos) text.remove_prefix(tag + 2);
    fail(Code::model_format, where_, ": not valid JSON at byte ", position, ": ", quote(text));
  }

 private:
  void deeper() {
    check(++depth_ <= kMaxDepth, Code::model_format, where_, ": JSON nested more than ", kMaxDepth,
          " levels deep");
  }

  const std::string& where_;
  JsonEvents& events_;
  int depth_ = 0;
};

// Builds the tree.
class Tree final : public JsonEvents {
 public:
  explicit Tree(const std::string& where) : where_(where) {}
  json take() { return std::move(root_); }

  void open_object() override { open_.push_back(add(json::object())); }
  void open_array() override { open_.push_back(add(json::array())); }
  void close() override { open_.pop_back(); }
  void key(std::string& name) override {
    auto& object = open_.back()->get_ref<json::object_t&>();
    const auto [at, fresh] = object.try_emplace(std::move(name));
    check(fresh, Code::model_format, where_, ": the key ", quote(at->first),
          " stands twice in one object");
    member_ = &at->second;
  }
  void string(std::string& value) override { add(std::move(value)); }
  void count(uint64_t value) override { add(value); }
  void negative(int64_t value) override { add(value); }
  void real(double value) override { add(value); }
  void boolean(bool value) override { add(value); }
  void null() override { add(nullptr); }

 private:
  // The place of the new value. It stays where it is for as long as the value is open.
  json* add(json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    if (open_.back()->is_object()) {
      *member_ = std::move(value);
      return member_;
    }
    return &open_.back()->get_ref<json::array_t&>().emplace_back(std::move(value));
  }

  const std::string& where_;
  json root_;
  json* member_ = nullptr;
  std::vector<json*> open_;
};

}  // namespace

void walk_json(const ByteSource& source, uint64_t begin, uint64_t end, JsonEvents& events) {
  Feed feed(source, begin, end);
  Handler handler(source.where(), events);
  json::sax_parse(FeedIterator(feed), FeedIterator(), &handler);
}

json parse_json(std::string_view text, const std::string& where) {
  const MemoryBytes bytes(text, where);
  Tree tree(where);
  walk_json(bytes, 0, text.size(), tree);
  return tree.take();
}

}  // namespace stepladder
