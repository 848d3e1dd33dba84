#include "io/torch_file.h"

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <memory>
#include <string>

#include "core/error.h"
#include "io/zip.h"

namespace stepladder {
namespace {

constexpr uint64_t kMaxPickle = uint64_t{256} << 10;  // some thousand tensors
constexpr int kMaxNesting = 8;
constexpr size_t kMaxDims = 8;

/// What the instructions of the pickle work with.
struct Value {
  enum class Kind { other, number, text, tuple, dictionary, function, storage, tensor };
  Kind kind = Kind::other;
  int nesting = 0;                            // of tuples
  int64_t number = 0;                         // of a number; of a storage: its elements
  std::string text;                           // of a text, a function; of a storage: its key
  std::string dtype;                          // of a storage or a tensor, as safetensors spells it
  std::vector<std::shared_ptr<Value>> items;  // of a tuple
  std::map<std::string, std::shared_ptr<Value>> tensors;  // of a dictionary: what else it has is
                                                          // not kept, so that none holds another
  std::vector<int64_t> shape;                             // of a tensor
  uint64_t first = 0;                                     // of a tensor: element of its storage
};
using Ref = std::shared_ptr<Value>;
using Kind = Value::Kind;

struct Storage {
  const char *function, *dtype;
};
constexpr Storage kStorages[] = {{"torch BFloat16Storage", "BF16"}, {"torch HalfStorage", "F16"},
                                 {"torch FloatStorage", "F32"},     {"torch DoubleStorage", "F64"},
                                 {"torch LongStorage", "I64"},      {"torch IntStorage", "I32"},
                                 {"torch ShortStorage", "I16"},     {"torch CharStorage", "I8"},
                                 {"torch ByteStorage", "U8"},       {"torch BoolStorage", "BOOL"}};
constexpr const char* kDictionary = "collections OrderedDict";
constexpr const char* kTensor = "torch._utils _rebuild_tensor_v2";
constexpr const char* kParameter = "torch._utils _rebuild_parameter";

const char* storage_type(const std::string& function) {
  for (const Storage& s : kStorages)
    if (function == s.function) return s.dtype;
  return nullptr;
}

/// Runs the instructions of a pickle of protocol 2, as far as they are known.
class Pickle {
 public:
  Pickle(std::string bytes, const std::string& where) : bytes_(std::move(bytes)), where_(where) {}

  /// The dictionary that it stands for.
  Ref run() {
    for (;;) {
      const auto code = static_cast<uint8_t>(take(1)[0]);
      if (code == '.') break;
      step(code);
    }
    Ref out = pop();
    check(out->kind == Kind::dictionary, Code::unsupported, where_,
          " holds no dictionary of tensors; save the state_dict() of the model");
    return out;
  }

 private:
  [[noreturn]] void damaged() const {
    fail(Code::model_format, where_, ": the pickle in it is damaged; fetch the file again");
  }
  std::string_view take(size_t n) {
    if (n > bytes_.size() - at_) damaged();
    at_ += n;
    return std::string_view(bytes_).substr(at_ - n, n);
  }
  uint64_t number(size_t width) {
    const std::string_view bytes = take(width);
    uint64_t out = 0;
    for (size_t i = width; i-- > 0;) out = out << 8 | static_cast<uint8_t>(bytes[i]);
    return out;
  }
  /// In two's complement, `width` bytes.
  int64_t whole(size_t width) {
    if (width > 8) damaged();
    const uint64_t bits = number(width);
    const unsigned shift = static_cast<unsigned>(64 - 8 * width);
    return width == 0 ? 0 : static_cast<int64_t>(bits << shift) >> shift;
  }
  std::string_view line() {
    const size_t end = bytes_.find('\n', at_);
    if (end == std::string::npos) damaged();
    const std::string_view out = take(end - at_);
    ++at_;
    return out;
  }

  Ref make(Kind kind) {
    auto out = std::make_shared<Value>();
    out->kind = kind;
    return out;
  }
  void push(Ref value) { stack_.push_back(std::move(value)); }
  void push_number(int64_t value) {
    push(make(Kind::number));
    stack_.back()->number = value;
  }
  void push_text(Kind kind, std::string text) {
    push(make(kind));
    stack_.back()->text = std::move(text);
  }
  Ref pop() {
    if (stack_.empty() || (!marks_.empty() && stack_.size() == marks_.back())) damaged();
    Ref out = std::move(stack_.back());
    stack_.pop_back();
    return out;
  }
  /// What was pushed since the last mark.
  std::vector<Ref> pop_to_mark() {
    if (marks_.empty()) damaged();
    const auto from = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
    marks_.pop_back();
    std::vector<Ref> out(std::make_move_iterator(from), std::make_move_iterator(stack_.end()));
    stack_.erase(from, stack_.end());
    return out;
  }
  void push_tuple(std::vector<Ref> items) {
    if (items.empty()) return push(empty_);
    Ref out = make(Kind::tuple);
    for (const Ref& item : items) out->nesting = std::max(out->nesting, item->nesting + 1);
    if (out->nesting > kMaxNesting) damaged();
    out->items = std::move(items);
    push(std::move(out));
  }
  void push_last(size_t count) {
    std::vector<Ref> items(count);
    for (size_t i = count; i-- > 0;) items[i] = pop();
    push_tuple(std::move(items));
  }
  void put(uint64_t slot) {
    if (stack_.empty()) damaged();
    memo_[slot] = stack_.back();
  }
  void get(uint64_t slot) {
    const auto found = memo_.find(slot);
    if (found == memo_.end()) damaged();
    push(found->second);
  }
  void set(Value& dictionary, const Ref& key, const Ref& value) {
    if (dictionary.kind != Kind::dictionary) damaged();
    if (key->kind != Kind::text || value->kind != Kind::tensor) return;
    check(dictionary.tensors.try_emplace(key->text, value).second, Code::model_format, where_,
          ": tensor ", quote(key->text), " is there twice");
  }

  void step(uint8_t code) {
    switch (code) {
      case 0x80:
        return check_protocol(number(1));
      case '(':
        return marks_.push_back(stack_.size());
      case '}':
        return push(make(Kind::dictionary));
      case ')':
        return push(empty_);
      case 'N':
      case 0x88:
      case 0x89:
        return push(nothing_);
      case 'G':
        take(8);
        return push(nothing_);
      case 'J':
        return push_number(whole(4));
      case 'K':
        return push_number(static_cast<int64_t>(number(1)));
      case 'M':
        return push_number(static_cast<int64_t>(number(2)));
      case 0x8a:
        return push_number(whole(number(1)));
      case 'X':
        return push_text(Kind::text, std::string(take(number(4))));
      case 'c': {
        std::string module(line());
        return push_function(module + " " + std::string(line()));
      }
      case 'q':
        return put(number(1));
      case 'r':
        return put(number(4));
      case 'h':
        return get(number(1));
      case 'j':
        return get(number(4));
      case 't':
        return push_tuple(pop_to_mark());
      case 0x85:
      case 0x86:
      case 0x87:
        return push_last(code - 0x84u);
      case 's': {
        const Ref value = pop(), key = pop();
        return set(*top(), key, value);
      }
      case 'u': {
        const std::vector<Ref> items = pop_to_mark();
        if (items.size() % 2) damaged();
        for (size_t i = 0; i < items.size(); i += 2) set(*top(), items[i], items[i + 1]);
        return;
      }
      case 'b':  // what a dictionary is given beside its items
        pop();
        return void(top());
      case 'Q':
        return push(storage_of(*pop()));
      case 'R': {
        const Ref arguments = pop(), function = pop();
        return push(called(*function, *arguments));
      }
      default:
        fail(Code::unsupported, where_, ": its pickle has the instruction ", int{code},
             ", which a dictionary of tensors does not need; save the state_dict() of the model");
    }
  }

  const Ref& top() const {
    if (stack_.empty() || (!marks_.empty() && stack_.size() == marks_.back())) damaged();
    return stack_.back();
  }
  void check_protocol(uint64_t protocol) const {
    check(protocol == 2, Code::unsupported, where_, ": a pickle of protocol ", protocol,
          "; torch.save() writes protocol 2 unless told otherwise");
  }
  void push_function(std::string name) {
    check(name == kDictionary || name == kTensor || name == kParameter || storage_type(name),
          Code::unsupported, where_, ": its pickle names ", quote(name),
          ", which PyTorch would execute and Stepladder does not; save the state_dict() of the "
          "model, as safetensors at best");
    push_text(Kind::function, std::move(name));
  }

  /// ('storage', its type, its key, a device, its elements).
  Ref storage_of(const Value& id) const {
    const auto& part = id.items;
    if (part.size() != 5 || part[0]->text != "storage" || part[1]->kind != Kind::function ||
        part[2]->kind != Kind::text || part[4]->kind != Kind::number || part[4]->number < 0)
      damaged();
    const char* dtype = storage_type(part[1]->text);
    if (!dtype) damaged();
    auto out = std::make_shared<Value>();
    out->kind = Kind::storage, out->dtype = dtype, out->text = part[2]->text;
    out->number = part[4]->number;
    return out;
  }

  Ref called(const Value& function, const Value& arguments) {
    if (function.kind != Kind::function || arguments.kind != Kind::tuple) damaged();
    if (function.text == kDictionary) {
      if (!arguments.items.empty()) damaged();
      return make(Kind::dictionary);
    }
    if (function.text == kTensor) return tensor_of(arguments.items);
    if (function.text != kParameter || arguments.items.empty() ||
        arguments.items[0]->kind != Kind::tensor)
      damaged();
    return arguments.items[0];
  }

  /// (storage, its first element, shape, strides, ...).
  Ref tensor_of(const std::vector<Ref>& part) {
    if (part.size() < 4 || part[0]->kind != Kind::storage || part[1]->kind != Kind::number ||
        part[1]->number < 0 || part[2]->kind != Kind::tuple || part[3]->kind != Kind::tuple ||
        part[2]->items.size() != part[3]->items.size() || part[2]->items.size() > kMaxDims)
      damaged();
    Ref out = make(Kind::tensor);
    out->dtype = part[0]->dtype, out->text = part[0]->text;
    out->number = part[0]->number, out->first = static_cast<uint64_t>(part[1]->number);
    for (const Ref& size : part[2]->items) {
      if (size->kind != Kind::number || size->number < 0) damaged();
      out->shape.push_back(size->number);
    }
    int64_t expected = 1;
    for (size_t i = out->shape.size(); i-- > 0;) {
      const Ref& stride = part[3]->items[i];
      if (stride->kind != Kind::number) damaged();
      check(out->shape[i] < 2 || stride->number == expected, Code::unsupported, where_,
            ": a tensor is stored with other strides than its shape has; save it contiguous");
      if (__builtin_mul_overflow(expected, std::max<int64_t>(1, out->shape[i]), &expected))
        damaged();
    }
    return out;
  }

  const std::string bytes_;
  const std::string& where_;
  size_t at_ = 0;
  std::vector<Ref> stack_;
  std::vector<size_t> marks_;
  std::map<uint64_t, Ref> memo_;
  const Ref nothing_ = make(Kind::other), empty_ = make(Kind::tuple);
};

using Files = std::map<std::string, ZipEntry, std::less<>>;

/// The folder in the archive that everything lies in, with its slash.
std::string folder_of(const Files& files, const std::string& where) {
  for (const auto& [name, entry] : files)
    if (name.ends_with("/data.pkl") && name.find('/') == name.size() - 9)
      return name.substr(0, name.size() - 8);
  fail(Code::model_format, where, " is an archive without data.pkl; torch.save() did not write it");
}

std::string text_of(const ByteSource& file, const ZipEntry& entry, const char* what) {
  check(entry.bytes <= kMaxPickle, Code::model_format, file.where(), ": ", what, " of ",
        entry.bytes, " bytes; Stepladder reads at most ", kMaxPickle);
  std::string out(static_cast<size_t>(entry.bytes), '\0');
  file.read(entry.offset, std::as_writable_bytes(std::span(out)), what);
  return out;
}

StoredTensor place(const std::string& name, const Value& t, const Files& files,
                   const std::string& folder, const std::string& where) {
  const auto file = files.find(folder + "data/" + t.text);
  check(file != files.end(), Code::model_format, where, ": the bytes of tensor ", quote(name),
        " are not in the archive");
  StoredTensor out{name, {t.dtype, t.shape, 0, where}, 0};
  const auto each = static_cast<uint64_t>(safetensors_bits(t.dtype)) / 8;
  uint64_t bytes = each, before = 0, end = 0;
  bool fits = !__builtin_mul_overflow(t.first, each, &before);
  for (const int64_t d : t.shape)
    fits &= !__builtin_mul_overflow(bytes, static_cast<uint64_t>(d), &bytes);
  fits &= !__builtin_add_overflow(before, bytes, &end);
  check(fits && end <= file->second.bytes, Code::model_format, where, ": tensor ", quote(name),
        " is larger than its bytes in the archive; fetch the file again");
  out.info.bytes = static_cast<size_t>(bytes), out.offset = file->second.offset + before;
  return out;
}

}  // namespace

std::vector<StoredTensor> read_torch_header(const ByteSource& file) {
  const std::string& where = file.where();
  const Files files = read_zip_directory(file);
  const std::string folder = folder_of(files, where);
  if (const auto order = files.find(folder + "byteorder"); order != files.end())
    check(text_of(file, order->second, "the byte order") == "little", Code::unsupported, where,
          ": its numbers are stored big-endian; save it again on another machine");
  const Ref all = Pickle(text_of(file, files.at(folder + "data.pkl"), "the pickle"), where).run();
  std::vector<StoredTensor> out;
  for (const auto& [name, tensor] : all->tensors)
    out.push_back(place(name, *tensor, files, folder, where));
  return out;
}

}  // namespace stepladder
