// Files as torch.save() writes them, put together by hand: a pickle and raw storages in a ZIP
// archive whose files are stored as they are.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace stepladder::testing {

inline void put_number(std::string& out, uint64_t value, int width) {
  for (int i = 0; i < width; ++i, value >>= 8) out += static_cast<char>(value & 255);
}

struct ZipFile {
  std::string name, bytes;
  int method = 0;  // 8 = said to be compressed
};

/// The archive; with `large`, places and sizes stand in the records for large files.
inline std::string zip_of(const std::vector<ZipFile>& files, bool large = false) {
  std::string out, directory;
  for (const ZipFile& f : files) {
    const size_t local = out.size();
    // Sizes are said behind the bytes and in the directory, as PyTorch does it.
    put_number(out, 0x04034b50, 4), put_number(out, 20, 2), put_number(out, 0x0808, 2);
    put_number(out, static_cast<uint64_t>(f.method), 2), put_number(out, 0, 16);
    put_number(out, f.name.size(), 2), put_number(out, 5, 2);
    out += f.name + std::string("FB\1\0x", 5) + f.bytes;
    std::string extra;
    if (large) {
      put_number(extra, 1, 2), put_number(extra, 24, 2);
      put_number(extra, f.bytes.size(), 8), put_number(extra, f.bytes.size(), 8);
      put_number(extra, local, 8);
    }
    const uint64_t size = large ? UINT32_MAX : f.bytes.size();
    put_number(directory, 0x02014b50, 4), put_number(directory, 20, 2),
        put_number(directory, 20, 2);
    put_number(directory, 0x0808, 2), put_number(directory, static_cast<uint64_t>(f.method), 2);
    put_number(directory, 0, 8), put_number(directory, size, 4), put_number(directory, size, 4);
    put_number(directory, f.name.size(), 2), put_number(directory, extra.size(), 2);
    put_number(directory, 0, 10), put_number(directory, large ? UINT32_MAX : local, 4);
    directory += f.name + extra;
  }
  const uint64_t at = out.size(), size = directory.size();
  out += directory;
  if (large) {
    const uint64_t record = out.size();
    put_number(out, 0x06064b50, 4), put_number(out, 44, 8), put_number(out, 45, 2);
    put_number(out, 45, 2), put_number(out, 0, 8), put_number(out, files.size(), 8);
    put_number(out, files.size(), 8), put_number(out, size, 8), put_number(out, at, 8);
    put_number(out, 0x07064b50, 4), put_number(out, 0, 4), put_number(out, record, 8);
    put_number(out, 1, 4);
  }
  put_number(out, 0x06054b50, 4), put_number(out, 0, 4), put_number(out, files.size(), 2);
  put_number(out, files.size(), 2), put_number(out, large ? UINT32_MAX : size, 4);
  put_number(out, large ? UINT32_MAX : at, 4), put_number(out, 0, 2);
  return out;
}

/// A pickle of protocol 2, instruction by instruction.
class Pickler {
 public:
  Pickler() : out("\x80\x02") {}
  Pickler& raw(std::string_view bytes) { return out += bytes, *this; }
  Pickler& text(std::string_view s) {
    out += 'X', put_number(out, s.size(), 4), out += s;
    return *this;
  }
  Pickler& number(int64_t n) {
    out += n < 256 && n >= 0 ? 'K' : 'J';
    put_number(out, static_cast<uint64_t>(n), n < 256 && n >= 0 ? 1 : 4);
    return *this;
  }
  Pickler& global(std::string_view module, std::string_view name) {
    out += 'c', out += module, out += '\n', out += name, out += '\n';
    return *this;
  }
  Pickler& tuple(const std::vector<int64_t>& numbers) {
    out += '(';
    for (const int64_t n : numbers) number(n);
    out += 't';
    return *this;
  }
  /// _rebuild_tensor_v2 of a storage with `elements` under `key`.
  Pickler& tensor(std::string_view type, std::string_view key, int64_t elements, int64_t first,
                  const std::vector<int64_t>& shape, const std::vector<int64_t>& strides) {
    global("torch._utils", "_rebuild_tensor_v2").raw("((");
    text("storage").global("torch", type).text(key).text("cpu").number(elements).raw("tQ");
    number(first).tuple(shape).tuple(strides).raw("\x89");
    return global("collections", "OrderedDict").raw(")RtR");
  }
  static std::vector<int64_t> strides(const std::vector<int64_t>& shape) {
    std::vector<int64_t> out(shape.size());
    int64_t next = 1;
    for (size_t i = shape.size(); i-- > 0; next *= shape[i]) out[i] = next;
    return out;
  }

  std::string out;
};

struct TorchTensor {
  std::string name, type;  // type: "HalfStorage" and the like
  std::vector<int64_t> shape;
  std::string bytes;
};

/// What torch.save() makes of a dictionary of these.
inline std::string torch_file(const std::vector<TorchTensor>& tensors, bool large = false) {
  Pickler p;
  p.raw("}q").raw(std::string_view("\0", 1)).raw("(");
  std::vector<ZipFile> files = {{"archive/data.pkl", ""}, {"archive/byteorder", "little"}};
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TorchTensor& t = tensors[i];
    int64_t elements = 1;
    for (const int64_t d : t.shape) elements *= d;
    p.text(t.name).tensor(t.type, std::to_string(i), elements, 0, t.shape,
                          Pickler::strides(t.shape));
    files.push_back({"archive/data/" + std::to_string(i), t.bytes});
  }
  files[0].bytes = p.raw("u.").out;
  return zip_of(files, large);
}

}  // namespace stepladder::testing
