// The draft spec: a list of levels as one line of text, and the rules every such list obeys.
#include "api/draft_spec.h"

#include <algorithm>
#include <charconv>
#include <climits>
#include <optional>
#include <string_view>

#include "backends/backend.h"
#include "core/error.h"
#include "formats/linear.h"

namespace stepladder {
namespace {

constexpr int kMaxDrafts = kMaxEmitted - 1;

// Drafts a round asks of a model below that has no tokens= of its own. A drafted token is worth its
// own price only while the levels above still accept it, so the count follows how often a copy
// names its original's next token, and what one of its passes costs beside the verifier's.
int default_tokens(const LevelSpec& level) {
  switch (level.kind) {
    case LevelSpec::Kind::lookup:
    case LevelSpec::Kind::drafter:
      return drafter_kind(level).tokens;
    case LevelSpec::Kind::cast:
      return format_named(format_name(level.format)).draft_tokens;
    case LevelSpec::Kind::activations:
      return 5;  // agrees 97 times in 100, but reads the same bytes
    case LevelSpec::Kind::model:
      return 5;
  }
  return 0;
}

std::string forms() {
  return "; a level is " + draft_forms() + ", followed by options such as :shared or :tokens=4";
}

/// "lookup, ..." of those that `wanted` names an option of; of all where it is empty.
std::string drafter_words(const std::string& wanted = "") {
  std::string out;
  for (const DrafterKind* kind : drafter_kinds()) {
    const bool has = std::any_of(kind->options.begin(), kind->options.end(),
                                 [&](const DrafterOption& o) { return wanted == o.name; });
    if (wanted.empty() || has) out += (out.empty() ? "" : ", ") + std::string(kind->word);
  }
  return out;
}

/// "tokens=N, head=FORMAT, max=N, ...": the options with a value that any level has.
std::string option_names() {
  std::string out = "tokens=N, head=FORMAT";
  for (const DrafterKind* kind : drafter_kinds())
    for (const DrafterOption& o : kind->options) {
      const std::string name = std::string(o.name) + "=N";
      if ((", " + out + ",").find(", " + name + ",") == std::string::npos) out += ", " + name;
    }
  return out;
}

/// Splits at unescaped separators. Escapes stay in the pieces.
std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> out(1);
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 1 < text.size()) {
      out.back() += text[i];
      out.back() += text[++i];
    } else if (text[i] == separator) {
      out.emplace_back();
    } else {
      out.back() += text[i];
    }
  }
  return out;
}

std::string unescape(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool escaped = text[i] == '\\' && i + 1 < text.size() &&
                         std::string_view("\\:,").find(text[i + 1]) != std::string_view::npos;
    out += text[escaped ? ++i : i];
  }
  return out;
}

std::string escape(std::string_view text) {
  std::string out;
  for (char c : text) {
    if (c == '\\' || c == ':' || c == ',') out += '\\';
    out += c;
  }
  return out;
}

std::string_view trimmed(std::string_view text) {
  const auto space = [](char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; };
  while (!text.empty() && space(text.front())) text.remove_prefix(1);
  while (!text.empty() && space(text.back())) text.remove_suffix(1);
  return text;
}

int number(std::string_view text, int least, const std::string& option, const std::string& level) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  check(error == std::errc() && end == text.data() + text.size() && value >= least,
        Code::invalid_argument, "draft: ", option, "=", text, " in '", level,
        "' is not a whole number", least == 1 ? " above 0" : "");
  return value;
}

/// The keyword a level starts with takes the next piece as its argument.
std::optional<LevelSpec::Kind> keyword(const std::string& word) {
  if (word == "cast") return LevelSpec::Kind::cast;
  if (word == "switch") return LevelSpec::Kind::activations;
  if (word == "model") return LevelSpec::Kind::model;
  if (word == "lookup") return LevelSpec::Kind::lookup;
  if (find_drafter(word)) return LevelSpec::Kind::drafter;
  return std::nullopt;
}

/// The options that a level gives its drafter; lookup has fields of its own for them.
std::vector<std::pair<std::string, int>> given_options(const LevelSpec& level) {
  auto out = level.options;
  if (level.ngram_max) out.emplace_back("max", level.ngram_max);
  if (level.ngram_min) out.emplace_back("min", level.ngram_min);
  return out;
}

/// Of a level that is a drafter: every option is one of its own, once, and within its range.
void check_options(const LevelSpec& level, const std::string& name) {
  const DrafterKind& kind = drafter_kind(level);
  const auto given = given_options(level);
  for (size_t i = 0; i < given.size(); ++i) {
    const auto& [option, value] = given[i];
    const auto known = std::find_if(kind.options.begin(), kind.options.end(),
                                    [&](const DrafterOption& o) { return option == o.name; });
    std::string options;
    for (const DrafterOption& o : kind.options)
      options += (options.empty() ? "" : ", ") + std::string(o.name);
    check(known != kind.options.end(), Code::invalid_argument, "draft: ", option, "= of '", name,
          "' has no meaning there; ", kind.word, " has ", options.empty() ? "no options" : options);
    check(value >= known->low && value <= known->high, Code::invalid_argument, "draft: ", option,
          "=", value, " of '", name, "' is out of range; it must be from ", known->low, " to ",
          known->high);
    for (size_t j = 0; j < i; ++j)
      check(given[j].first != option, Code::invalid_argument, "draft: ", option, "= of '", name,
            "' is given twice");
  }
}

void check_drafter(const LevelSpec& level, const std::string& name) {
  const bool known = level.kind == LevelSpec::Kind::lookup || find_drafter(level.word);
  check(known, Code::invalid_argument, "draft: there is no drafter '", level.word, "'; there are ",
        drafter_words());
  const DrafterKind& kind = drafter_kind(level);
  check(!kind.argument || !level.path.empty(), Code::invalid_argument, "draft: '", kind.word,
        "' does not say its ", kind.argument ? kind.argument : "");
  check(kind.argument || level.path.empty(), Code::invalid_argument, "draft: '", kind.word,
        "' takes no '", level.path, "'");
  check_options(level, name);
  if (!kind.check) return;
  try {
    kind.check(drafter_setup(level));
  } catch (const Error& e) {
    fail(e.code(), "draft: '", name, "': ", e.what());
  }
}

void read_option(const std::string& piece, const std::string& text, LevelSpec& level, bool& own) {
  const size_t equals = piece.find('=');
  const std::string name = piece.substr(0, equals);
  const std::string value = equals == std::string::npos ? "" : unescape(piece.substr(equals + 1));
  if (equals == std::string::npos) {
    check(name == "shared" || name == "own", Code::invalid_argument, "draft: '", piece, "' in '",
          text, "' is no option (shared, own, ", option_names(), ")", forms(),
          "; a colon or comma inside a path is written \\: or \\,");
    check(
        level.kind == LevelSpec::Kind::cast ||
            (level.kind == LevelSpec::Kind::activations && name == "shared"),
        Code::invalid_argument, "draft: '", name, "' in '", text,
        "': only a cast has a choice of caches; a switch always shares, the others have their own");
    level.shared_cache = name == "shared", own = name == "own";
  } else if (name == "tokens") {
    check(level.tokens == 0, Code::invalid_argument, "draft: tokens= of '", text,
          "' is given twice");
    level.tokens = number(value, 1, name, text);
  } else if (name == "head") {
    check(!value.empty(), Code::invalid_argument, "draft: head= in '", text, "' names no format");
    check(level.head.empty(), Code::invalid_argument, "draft: head= of '", text,
          "' is given twice");
    level.head = value;
  } else {
    check(!name.empty() && !drafter_words(name).empty(), Code::invalid_argument,
          "draft: unknown option '", name, "=' in '", text, "'; there are ", option_names());
    level.options.emplace_back(name, number(value, INT_MIN, name, text));
  }
}

LevelSpec parse_level(const std::string& text) {
  const std::vector<std::string> pieces = split(text, ':');
  LevelSpec level;
  size_t next = 1;
  if (const auto kind = keyword(pieces[0])) {
    level.kind = *kind;
    const DrafterKind* drafter = find_drafter(pieces[0]);
    if (*kind == LevelSpec::Kind::drafter) level.word = pieces[0];
    if (!drafter || drafter->argument) {
      check(pieces.size() > 1 && !pieces[1].empty(), Code::invalid_argument, "draft: '", text,
            "' does not say ",
            drafter                ? std::string("its ") + drafter->argument
            : pieces[0] == "model" ? "what to load"
                                   : "what to " + pieces[0] + " to",
            forms());
      const bool format = *kind == LevelSpec::Kind::cast || *kind == LevelSpec::Kind::activations;
      (format ? level.format : level.path) = unescape(pieces[1]);
      next = 2;
    }
  } else {
    level.kind = LevelSpec::Kind::model;
    level.path = unescape(pieces[0]);
    check(!level.path.empty(), Code::invalid_argument, "draft: '", text, "' starts with nothing",
          forms());
  }
  bool own = false;
  for (; next < pieces.size(); ++next) {
    const bool shared = level.shared_cache, owned = own;
    read_option(pieces[next], text, level, own);
    check(!(own && shared) && !(owned && level.shared_cache), Code::invalid_argument, "draft: '",
          text, "' asks for both a shared cache and its own");
  }
  if (level.kind == LevelSpec::Kind::lookup) {
    check_options(level, text);
    for (const auto& [name, value] : level.options)
      (name == "max" ? level.ngram_max : level.ngram_min) = value;
    level.options.clear();
  }
  return level;
}

bool castable(const std::string& name) {
  const auto all = formats();
  return std::any_of(all.begin(), all.end(),
                     [&](const WeightFormat* f) { return f->name == name && f->cast != nullptr; });
}

std::string castable_names() {
  std::string out;
  for (const WeightFormat* f : formats()) {
    if (!f->cast) continue;
    if (f->alias) out += std::string(out.empty() ? "" : ", ") + f->alias;
    out += std::string(out.empty() ? "" : ", ") + f->name;
  }
  return out;
}

void check_level(const LevelSpec& level, const std::string& name) {
  using Kind = LevelSpec::Kind;
  const auto refuse = [&](bool given, const char* option, const char* where) {
    check(!given, Code::invalid_argument, "draft: ", option, " of '", name,
          "' has no meaning there; it belongs to ", where);
  };
  check(level.tokens >= 0 && level.tokens <= kMaxDrafts, Code::invalid_argument,
        "draft: tokens=", level.tokens, " of '", name, "' is out of range; a round takes 1 to ",
        kMaxDrafts, " drafts");
  const bool drafter = is_drafter(level);
  const auto given = given_options(level);
  if (!drafter && !given.empty())
    refuse(true, (given[0].first + "=").c_str(), drafter_words(given[0].first).c_str());
  refuse((drafter || level.kind == Kind::activations) && !level.head.empty(), "head",
         "casts and models");
  refuse((drafter || level.kind == Kind::model) && level.shared_cache, "shared", "casts");
  switch (level.kind) {
    case Kind::model:
      check(!level.path.empty(), Code::invalid_argument,
            "draft: a model level needs the path of a checkpoint");
      break;
    case Kind::cast:
      check(castable(format_name(level.format)), Code::invalid_argument,
            "draft: there is no cast to '", level.format, "'; there are ", castable_names());
      break;
    case Kind::activations:
      check(level.format == "a8", Code::invalid_argument, "draft: there is no switch to '",
            level.format, "'; there is a8");
      break;
    case Kind::lookup:
    case Kind::drafter:
      check_drafter(level, name);
      break;
  }
  if (!level.head.empty())
    check(castable(format_name(level.head)), Code::invalid_argument,
          "draft: there is no cast to head=", level.head, " in '", name, "'; there are ",
          castable_names());
}

}  // namespace

void check_head(const std::string& name) {
  check(name.empty() || castable(format_name(name)), Code::invalid_argument,
        "head: there is no format '", name, "' to cast lm_head to; there are ", castable_names(),
        "; leave it out to keep it as stored");
}

std::string format_name(const std::string& name) {
  for (const WeightFormat* f : formats())
    if (f->alias && name == f->alias) return f->name;
  return name;
}

std::string level_name(const LevelSpec& level) {
  switch (level.kind) {
    case LevelSpec::Kind::model:
      return "model:" + level.path;
    case LevelSpec::Kind::cast:
      return "cast:" + level.format + (level.shared_cache ? ":shared" : "");
    case LevelSpec::Kind::activations:
      return "switch:" + level.format;
    case LevelSpec::Kind::lookup:
      return "lookup";
    case LevelSpec::Kind::drafter:
      return level.word + (level.path.empty() ? "" : ":" + level.path);
  }
  return "";
}

bool is_drafter(const LevelSpec& level) {
  return level.kind == LevelSpec::Kind::lookup || level.kind == LevelSpec::Kind::drafter;
}

const DrafterKind& drafter_kind(const LevelSpec& level) {
  return *find_drafter(level.kind == LevelSpec::Kind::lookup ? "lookup" : level.word);
}

DrafterSetup drafter_setup(const LevelSpec& level) {
  const DrafterKind& kind = drafter_kind(level);
  DrafterSetup out;
  out.argument = level.path;
  out.tokens = level.tokens ? level.tokens : kind.tokens;
  for (const DrafterOption& o : kind.options) out.options.emplace_back(o.name, o.initial);
  for (const auto& [name, value] : given_options(level))
    for (auto& option : out.options)
      if (option.first == name) option.second = value;
  return out;
}

LevelSpec with_defaults(LevelSpec level) {
  if (level.tokens == 0) level.tokens = default_tokens(level);
  if (level.kind == LevelSpec::Kind::activations) level.shared_cache = true;
  // An int8 head agrees as well as the stored one and reads half of it; 4 bits lose 9 points.
  if (level.kind == LevelSpec::Kind::cast && level.head.empty()) level.head = "int8";
  return level;
}

void check_draft(const std::vector<LevelSpec>& levels) {
  check(levels.size() <= kMaxLevels, Code::invalid_argument, "draft: ", levels.size(),
        " levels; at most ", kMaxLevels, " can stand below a target");
  for (size_t i = 0; i < levels.size(); ++i) {
    check_level(levels[i], level_name(levels[i]));
    check(!is_drafter(levels[i]) || i + 1 == levels.size(), Code::invalid_argument,
          "draft: ", level_name(levels[i]),
          " proposes by itself and verifies nothing, so no level can stand below it; put it last");
  }
}

std::vector<LevelSpec> parse_draft(const std::string& text) {
  std::vector<LevelSpec> out;
  if (trimmed(text).empty()) return out;
  for (const std::string& piece : split(text, ',')) {
    const std::string level(trimmed(piece));
    check(!level.empty(), Code::invalid_argument, "draft: '", text, "' has an empty level",
          forms());
    out.push_back(parse_level(level));
  }
  check_draft(out);
  return out;
}

std::string draft_forms() {
  std::string out;
  for (const DrafterKind* kind : drafter_kinds())
    out += kind->word + (kind->argument ? ":" + std::string(kind->argument) : "") + ", ";
  return out + "cast:FORMAT, switch:a8, model:PATH or a path";
}

std::vector<DrafterInfo> drafters() {
  std::vector<DrafterInfo> out;
  for (const DrafterKind* kind : drafter_kinds()) {
    DrafterInfo info{kind->word, kind->about, kind->argument ? kind->argument : "", kind->tokens};
    for (const DrafterOption& o : kind->options)
      info.options.push_back({o.name, o.about, o.low, o.high, o.initial});
    out.push_back(std::move(info));
  }
  return out;
}

std::vector<LevelSpec> fixed_draft(std::vector<LevelSpec> levels) {
  for (LevelSpec& level : levels) level.tokens = with_defaults(level).tokens;
  return levels;
}

std::string to_string(const std::vector<LevelSpec>& levels) {
  std::string out;
  for (const LevelSpec& level : levels) {
    if (!out.empty()) out += ',';
    switch (level.kind) {
      case LevelSpec::Kind::model:
        out += "model:" + escape(level.path);
        break;
      case LevelSpec::Kind::cast:
        out += "cast:" + escape(level.format);
        break;
      case LevelSpec::Kind::activations:
        out += "switch:" + escape(level.format);
        break;
      case LevelSpec::Kind::lookup:
        out += "lookup";
        break;
      case LevelSpec::Kind::drafter:
        out += level.word + (level.path.empty() ? "" : ":" + escape(level.path));
        break;
    }
    if (level.shared_cache && level.kind == LevelSpec::Kind::cast) out += ":shared";
    if (level.tokens) out += ":tokens=" + std::to_string(level.tokens);
    if (!level.head.empty()) out += ":head=" + escape(level.head);
    for (const auto& [name, value] : given_options(level))
      out += ":" + name + "=" + std::to_string(value);
  }
  return out;
}

}  // namespace stepladder
