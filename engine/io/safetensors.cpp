// Every rule of the format is checked before a single tensor is believed: what a file claims
// about itself is compared with the bytes it has.
#include "io/safetensors.h"

#include <algorithm>
#include <array>
#include <limits>
#include <set>
#include <unordered_set>

#include "core/error.h"
#include "io/json.h"

namespace stepladder {
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;
// Our own limits. The largest published shards have some ten thousand tensors of at most five
// dimensions; without limits a header of small entries would cost several times its size.
constexpr size_t kMaxTensors = size_t{1} << 16, kMaxDims = 32, kMaxName = 4096, kMaxNotes = 65536;

struct Type {
  std::string_view name;
  int bits;
};
constexpr Type kTypes[] = {
    {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
    {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
    {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
    {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
    {"I64", 64},        {"U64", 64},
};

// Collects the entries; rules that need all of them come afterwards.
class Header final : public JsonEvents {
 public:
  explicit Header(const std::string& where) : where_(where) {}

  struct Entry {
    std::string name;
    TensorInfo info;
    uint64_t begin = 0, end = 0;
  };
  std::vector<Entry> entries;

  void open_object() override {
    if (depth_ == 1 && !metadata_) {
      entries.push_back({});
      entries.back().name = name_;
      seen_ = {};
    } else if (depth_ != 0 && !(depth_ == 1 && metadata_)) {
      unexpected();
    }
    ++depth_;
  }
  void open_array() override {
    if (depth_ != 2 || metadata_ || field_ == Field::dtype) unexpected();
    ++depth_;
  }
  void close() override {
    --depth_;
    if (depth_ == 1) {
      if (!metadata_)
        check(seen_[0] && seen_[1] && seen_[2] && offsets_ == 2, Code::model_format, at(),
              " needs dtype, shape and two data_offsets");
      metadata_ = false;
    }
  }
  void key(std::string& name) override {
    if (depth_ == 1) {
      metadata_ = name == "__metadata__";
      check(name.size() <= kMaxName, Code::model_format, where_, ": a tensor's name has ",
            name.size(), " bytes, more than the ", kMaxName, " Stepladder reads");
      name_ = std::move(name);
      check(names_.insert(name_).second, Code::model_format, where_, ": the tensor ", quote(name_),
            " stands twice in the header");
      check(names_.size() <= kMaxTensors, Code::model_format, where_, ": more than ", kMaxTensors,
            " tensors in one file; split it into shards");
      offsets_ = 0;
    } else if (metadata_) {
      check(notes_.insert(std::move(name)).second, Code::model_format, where_,
            ": a key of __metadata__ stands twice");
      check(notes_.size() <= kMaxNotes, Code::model_format, where_, ": __metadata__ has more than ",
            kMaxNotes, " keys");
    } else {
      field_ = name == "dtype"          ? Field::dtype
               : name == "shape"        ? Field::shape
               : name == "data_offsets" ? Field::offsets
                                        : Field::other;
      check(field_ != Field::other, Code::model_format, at(), " has a field ", quote(name),
            " besides dtype, shape and data_offsets");
      bool& seen = seen_[static_cast<size_t>(field_)];
      check(!seen, Code::model_format, at(), " has ", name, " twice");
      seen = true;
    }
  }
  void string(std::string& value) override {
    if (depth_ == 2 && metadata_) return;
    if (depth_ != 2 || field_ != Field::dtype) unexpected();
    check(safetensors_bits(value) != 0, Code::model_format, at(), " has the unknown dtype ",
          quote(value));
    entries.back().info.dtype = std::move(value);
  }
  void count(uint64_t value) override {
    if (depth_ != 3) unexpected();
    Entry& entry = entries.back();
    if (field_ == Field::shape) {
      check(value <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()), Code::model_format,
            at(), " has a dimension of ", value);
      check(entry.info.shape.size() < kMaxDims, Code::model_format, at(), " has more than ",
            kMaxDims, " dimensions");
      entry.info.shape.push_back(static_cast<int64_t>(value));
    } else {
      check(offsets_ < 2, Code::model_format, at(), " has more than two data_offsets");
      (offsets_++ == 0 ? entry.begin : entry.end) = value;
    }
  }
  void negative(int64_t) override { unexpected(); }
  void real(double) override { unexpected(); }
  void boolean(bool) override { unexpected(); }
  void null() override { unexpected(); }

 private:
  enum class Field { dtype, shape, offsets, other };

  std::string at() const { return where_ + ": the header entry of tensor " + quote(name_); }
  [[noreturn]] void unexpected() const {
    check(depth_ != 0, Code::model_format, where_, ": the header is not a JSON object");
    check(!metadata_, Code::model_format, where_,
          ": __metadata__ may only hold strings under strings");
    fail(Code::model_format, at(),
         " is not {\"dtype\": string, \"shape\": [whole numbers], \"data_offsets\": [begin, end]}");
  }

  const std::string& where_;
  int depth_ = 0;
  bool metadata_ = false;
  std::string name_;
  Field field_ = Field::other;
  std::array<bool, 3> seen_{};
  int offsets_ = 0;
  std::unordered_set<std::string> names_, notes_;
};

// Bytes of the tensor by dtype and shape.
uint64_t computed_bytes(const Header::Entry& e, const std::string& where) {
  uint64_t total = static_cast<uint64_t>(safetensors_bits(e.info.dtype));
  for (int64_t d : e.info.shape)
    check(!__builtin_mul_overflow(total, static_cast<uint64_t>(d), &total), Code::model_format,
          where, ": tensor ", quote(e.name), " has a shape too large for any file");
  check(total % 8 == 0, Code::model_format, where, ": tensor ", quote(e.name), " of ", e.info.dtype,
        " does not fill whole bytes");
  return total / 8;
}

// The tensors must cover the data in order; returns where they end.
uint64_t check_layout(const std::vector<Header::Entry>& entries, const std::string& where) {
  uint64_t expected = 0;
  for (const Header::Entry& e : entries) {
    check(e.begin <= e.end, Code::model_format, where, ": tensor ", quote(e.name),
          " ends before it begins: data_offsets [", e.begin, ", ", e.end, "]");
    check(e.begin == expected, Code::model_format, where, ": tensor ", quote(e.name),
          " begins at byte ", e.begin, " of the data, but the tensors before it end at ", expected,
          e.begin > expected ? " (a hole)" : " (an overlap)");
    const uint64_t bytes = computed_bytes(e, where);
    check(e.end - e.begin == bytes, Code::model_format, where, ": tensor ", quote(e.name), " has ",
          e.end - e.begin, " bytes of data, but its dtype and shape need ", bytes);
    expected = e.end;
  }
  return expected;
}

uint64_t header_length(const ByteSource& file) {
  const std::string& where = file.where();
  check(file.size() >= 8, Code::model_format, where, ": only ", file.size(),
        " bytes, too short for a safetensors file; fetch it again");
  std::array<std::byte, 8> raw;
  file.read(0, raw, "the header's length");
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i)
    length = length << 8 | static_cast<uint64_t>(raw[static_cast<size_t>(i)]);
  check(length <= kMaxHeader, Code::model_format, where, ": claims a header of ", length,
        " bytes, more than the ", kMaxHeader, " the format allows; is it a safetensors file?");
  check(length <= file.size() - 8, Code::model_format, where, ": claims a header of ", length,
        " bytes but has only ", file.size() - 8, " after the length; fetch it again");
  check(length >= 2, Code::model_format, where, ": a header of ", length,
        " bytes is too short to be a JSON object");
  std::byte first;
  file.read(8, std::span(&first, 1), "the header");
  check(first == std::byte{'{'}, Code::model_format, where, ": the header does not start with {");
  return length;
}

}  // namespace

int safetensors_bits(std::string_view dtype) {
  for (const Type& type : kTypes)
    if (type.name == dtype) return type.bits;
  return 0;
}

std::vector<StoredTensor> read_safetensors_header(const ByteSource& file) {
  const std::string& where = file.where();
  const uint64_t length = header_length(file), data = 8 + length;
  Header header(where);
  walk_json(file, 8, data, header);

  std::sort(header.entries.begin(), header.entries.end(),
            [](const Header::Entry& a, const Header::Entry& b) {
              return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
            });
  const uint64_t end = check_layout(header.entries, where);
  check(end <= file.size() - data, Code::model_format, where, ": the header describes ", end,
        " bytes of data but the file holds ", file.size() - data,
        "; it was cut short, fetch it again");
  check(end == file.size() - data, Code::model_format, where, ": ", file.size() - data - end,
        " bytes follow the last tensor, which the format forbids");

  std::vector<StoredTensor> out;
  out.reserve(header.entries.size());
  for (Header::Entry& e : header.entries) {
    e.info.bytes = static_cast<size_t>(e.end - e.begin);
    e.info.file = where;
    out.push_back({std::move(e.name), std::move(e.info), data + e.begin});
  }
  return out;
}

}  // namespace stepladder
