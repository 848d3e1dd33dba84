#include "formats/pattern.h"

#include <algorithm>
#include <bitset>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/error.h"

namespace stepladder {
namespace {

/// A machine whose states are stepped all at once: a text of n characters costs n times the states.
struct Machine {
  enum class Kind : uint8_t { one_of, split, begin, end, edge, inside, matched };
  struct State {
    Kind kind = Kind::matched;
    std::bitset<256> accepts{};
    int next = -1, other = -1;
  };
  std::vector<State> states;

  int add(State s) {
    states.push_back(s);
    return static_cast<int>(states.size()) - 1;
  }
};

/// Compiles by recursive descent, back to front: each part is given the state that follows it.
class Compiler {
 public:
  Compiler(std::string_view pattern, std::string_view where) : pattern_(pattern), where_(where) {
    check(pattern.size() <= kLongest, Code::unsupported, where, ": a pattern of ", pattern.size(),
          " characters is longer than ", kLongest);
    const size_t first = pattern.starts_with("(?i)") ? 4 : 0;
    any_case_ = first != 0;
    start = alternatives(first, pattern.size(), machine.add({Machine::Kind::matched}), 0);
  }
  Machine machine;
  int start = 0;

 private:
  static constexpr size_t kLongest = 1024;
  static constexpr int kDeepest = 32, kMostStates = 8192;

  [[noreturn]] void refuse(size_t at, std::string_view what) const {
    fail(Code::unsupported, where_, ": ", what, " at character ", at,
         " of the pattern is not known; use literals, . [] () | * + ? {m,n} ^ $ \\b \\d \\w \\s, "
         "and (?i) in front");
  }
  int add(Machine::State state, size_t at) {
    if (machine.states.size() >= kMostStates) refuse(at, "a repetition this long");
    return machine.add(state);
  }

  /// How often an atom is repeated, and where that is written.
  struct Repeat {
    int least = 1, most = 1;  // -1: any number
    size_t end = 0;           // == begin where nothing is repeated
  };
  Repeat repeat_at(size_t at) const {
    const char c = at < pattern_.size() ? pattern_[at] : 0;
    if (c == '*') return {0, -1, at + 1};
    if (c == '+') return {1, -1, at + 1};
    if (c == '?') return {0, 1, at + 1};
    if (c != '{') return {1, 1, at};
    // {m}, {m,}, {,n} and {m,n}; any other brace is a character.
    size_t i = at + 1;
    const auto number = [&](int otherwise) {
      const size_t first = i;
      int value = 0;
      for (; i < pattern_.size() && pattern_[i] >= '0' && pattern_[i] <= '9'; ++i)
        value = std::min(value * 10 + (pattern_[i] - '0'), 100'000);
      return i == first ? otherwise : value;
    };
    const int least = number(0);
    const bool one = i < pattern_.size() && pattern_[i] == '}' && i > at + 1;
    int most = least;
    if (!one) {
      if (i >= pattern_.size() || pattern_[i] != ',') return {1, 1, at};
      ++i;
      most = number(-1);
    }
    if (i >= pattern_.size() || pattern_[i] != '}') return {1, 1, at};
    if (most >= 0 && most < least) refuse(at, "a repeat of fewer than its least");
    return {least, most, i + 1};
  }

  /// The end of the atom that begins at `at`.
  size_t atom_end(size_t at, size_t end) const {
    const char c = pattern_[at];
    if (c == '\\') {
      if (at + 1 >= end) refuse(at, "a trailing backslash");
      return at + 2;
    }
    if (c == '[') {
      size_t i = at + 1;
      if (i < end && pattern_[i] == '^') ++i;
      if (i < end && pattern_[i] == ']') ++i;
      while (i < end && pattern_[i] != ']') i += pattern_[i] == '\\' ? 2 : 1;
      if (i >= end) refuse(at, "an open [");
      return i + 1;
    }
    if (c == '(') {
      int depth = 0;
      for (size_t i = at; i < end;) {
        if (pattern_[i] == '(') {
          ++depth, ++i;
        } else if (pattern_[i] == ')') {
          ++i;
          if (--depth == 0) return i;
        } else {
          i = is_repeat(i) ? repeat_at(i).end : atom_end(i, end);
        }
      }
      refuse(at, "an open (");
    }
    if (is_repeat(at) || c == ')') refuse(at, "a repeat or bracket");
    return at + 1;
  }

  int alternatives(size_t at, size_t end, int next, int depth) {
    if (depth > kDeepest) refuse(at, "nesting this deep");
    std::vector<size_t> bars;
    for (size_t i = at; i < end;) {
      if (pattern_[i] == '|')
        bars.push_back(i++);
      else if (is_repeat(i))
        i = repeat_at(i).end;
      else
        i = atom_end(i, end);
    }
    int state = sequence(bars.empty() ? at : bars.back() + 1, end, next, depth);
    for (size_t b = bars.size(); b-- > 0;) {
      const int one = sequence(b ? bars[b - 1] + 1 : at, bars[b], next, depth);
      state = add({Machine::Kind::split, {}, one, state}, at);
    }
    return state;
  }

  bool is_repeat(size_t i) const { return repeat_at(i).end != i; }

  int sequence(size_t at, size_t end, int next, int depth) {
    struct Part {
      size_t begin, end;
      Repeat repeat;
    };
    std::vector<Part> parts;
    while (at < end) {
      Part part{at, atom_end(at, end), {}};
      at = part.end;
      if (at < end && is_repeat(at)) {
        part.repeat = repeat_at(at), at = part.repeat.end;
        if (at < end && pattern_[at] == '?') ++at;  // lazy: the same texts match
      }
      parts.push_back(part);
    }
    for (size_t p = parts.size(); p-- > 0;) next = repeated(parts[p], next, depth);
    return next;
  }

  /// An atom as often as its repeat allows: what must be, then what may be.
  template <class Part>
  int repeated(const Part& part, int next, int depth) {
    const auto [least, most, written] = part.repeat;
    int state = next;
    if (most < 0) {
      state = add({Machine::Kind::split, {}, -1, next}, part.begin);
      const int body = atom(part.begin, part.end, state, depth);
      machine.states[state].next = body;
    }
    for (int i = least; i < most; ++i) {
      const int body = atom(part.begin, part.end, state, depth);
      state = add({Machine::Kind::split, {}, body, next}, part.begin);
    }
    for (int i = 0; i < least; ++i) state = atom(part.begin, part.end, state, depth);
    return state;
  }

  void add_class(std::bitset<256>& set, char c, size_t at) const {
    for (int i = 0; i < 256; ++i) {
      const bool digit = i >= '0' && i <= '9';
      const bool word = digit || (i >= 'a' && i <= 'z') || (i >= 'A' && i <= 'Z') || i == '_';
      const bool space = i == ' ' || (i >= '\t' && i <= '\r');
      if (c == 'd' ? digit : c == 'w' ? word : c == 's' ? space : false) set.set(i);
    }
    if (c == 'd' || c == 'w' || c == 's') return;
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'))
      refuse(at, "this escape");
    set.set(static_cast<unsigned char>(c));
  }

  int atom(size_t at, size_t end, int next, int depth) {
    using Kind = Machine::Kind;
    const char c = pattern_[at];
    if (c == '(') {
      size_t first = at + 1;
      if (pattern_[first] == '?') {
        if (pattern_.substr(first, 2) != "?:") refuse(at, "a group with (?");
        first += 2;
      }
      return alternatives(first, end - 1, next, depth + 1);
    }
    if (c == '^') return add({Kind::begin, {}, next}, at);
    if (c == '$') return add({Kind::end, {}, next}, at);
    if (c == '\\' && (pattern_[at + 1] == 'b' || pattern_[at + 1] == 'B'))
      return add({pattern_[at + 1] == 'b' ? Kind::edge : Kind::inside, {}, next}, at);
    Machine::State state{Kind::one_of, {}, next};
    if (c == '.')
      state.accepts.set();
    else if (c == '\\')
      add_class(state.accepts, pattern_[at + 1], at);
    else if (c == '[')
      state.accepts = bracket(at + 1, end - 1);
    else
      state.accepts.set(static_cast<unsigned char>(c));
    if (any_case_)
      for (int i = 'a'; i <= 'z'; ++i)
        if (const int upper = i - 'a' + 'A'; state.accepts[i] || state.accepts[upper])
          state.accepts.set(i), state.accepts.set(upper);
    return add(state, at);
  }

  std::bitset<256> bracket(size_t at, size_t end) const {
    std::bitset<256> set;
    const bool inverted = at < end && pattern_[at] == '^';
    if (inverted) ++at;
    while (at < end) {
      if (pattern_[at] == '\\') {
        add_class(set, pattern_[at + 1], at);
        at += 2;
      } else if (at + 2 < end && pattern_[at + 1] == '-') {
        for (int i = static_cast<unsigned char>(pattern_[at]);
             i <= static_cast<unsigned char>(pattern_[at + 2]); ++i)
          set.set(i);
        at += 3;
      } else {
        set.set(static_cast<unsigned char>(pattern_[at++]));
      }
    }
    return inverted ? ~set : set;
  }

  std::string_view pattern_, where_;
  bool any_case_ = false;
};

/// The states reachable without taking a character.
class Reached {
 public:
  Reached(const Machine& m, std::string_view text)
      : machine_(m), seen_(m.states.size()), text_(text) {}
  bool matched = false;

  /// The states that wait for a character; forgets them.
  std::vector<int> take() {
    seen_.assign(seen_.size(), false);
    return std::exchange(list_, {});
  }
  void add(int first, size_t at) {
    std::vector<int> todo = {first};
    while (!todo.empty()) {
      const int i = todo.back();
      todo.pop_back();
      if (i < 0 || seen_[i]) continue;
      seen_[i] = true;
      const auto& s = machine_.states[i];
      switch (s.kind) {
        case Machine::Kind::one_of:
          list_.push_back(i);
          break;
        case Machine::Kind::split:
          todo.push_back(s.other), todo.push_back(s.next);
          break;
        case Machine::Kind::begin:
          if (at == 0) todo.push_back(s.next);
          break;
        case Machine::Kind::end:
          if (at == text_.size()) todo.push_back(s.next);
          break;
        case Machine::Kind::edge:
        case Machine::Kind::inside:
          if (at_edge(at) == (s.kind == Machine::Kind::edge)) todo.push_back(s.next);
          break;
        case Machine::Kind::matched:
          matched = true;
          break;
      }
    }
  }

 private:
  const Machine& machine_;
  std::vector<int> list_;
  std::vector<char> seen_;
  std::string_view text_;

  /// Whether a word begins or ends before character `at`.
  bool at_edge(size_t at) const {
    const auto word = [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
    };
    return (at > 0 && word(text_[at - 1])) != (at < text_.size() && word(text_[at]));
  }
};

}  // namespace

bool matches_pattern(std::string_view pattern, std::string_view text, std::string_view where) {
  const Compiler compiled(pattern, where);
  Reached reached(compiled.machine, text);
  reached.add(compiled.start, 0);
  for (size_t i = 0; i < text.size() && !reached.matched; ++i) {
    const std::vector<int> now = reached.take();
    for (const int s : now)
      if (compiled.machine.states[s].accepts[static_cast<unsigned char>(text[i])])
        reached.add(compiled.machine.states[s].next, i + 1);
  }
  return reached.matched;
}

}  // namespace stepladder
