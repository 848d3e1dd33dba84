#include "io/zip.h"

#include <algorithm>
#include <vector>

#include "core/error.h"

namespace stepladder {
namespace {

constexpr uint32_t kEnd = 0x06054b50, kEnd64 = 0x06064b50, kLocator64 = 0x07064b50,
                   kCentral = 0x02014b50, kLocal = 0x04034b50;
constexpr size_t kEndBytes = 22, kLocatorBytes = 20, kEnd64Bytes = 56, kCentralBytes = 46,
                 kLocalBytes = 30, kMostComment = 65535;
constexpr uint64_t kMaxDirectory = uint64_t{16} << 20;
constexpr uint16_t kExtra64 = 1, kEncrypted = 1;

/// Little-endian numbers of a piece of the archive.
class Piece {
 public:
  Piece(const ByteSource& archive, uint64_t offset, size_t bytes, const char* what)
      : bytes_(bytes) {
    check(offset <= archive.size() && bytes <= archive.size() - offset, Code::model_format,
          archive.where(), ": ", what, " would lie beyond the end of the file; fetch it again");
    archive.read(offset, bytes_, what);
  }
  size_t size() const { return bytes_.size(); }
  uint64_t number(size_t at, int width) const {
    uint64_t out = 0;
    for (int i = width; i-- > 0;)
      out = out << 8 | static_cast<uint64_t>(bytes_[at + static_cast<size_t>(i)]);
    return out;
  }
  uint16_t u16(size_t at) const { return static_cast<uint16_t>(number(at, 2)); }
  uint32_t u32(size_t at) const { return static_cast<uint32_t>(number(at, 4)); }
  uint64_t u64(size_t at) const { return number(at, 8); }
  std::string text(size_t at, size_t length) const {
    return {reinterpret_cast<const char*>(bytes_.data()) + at, length};
  }

 private:
  std::vector<std::byte> bytes_;
};

struct Directory {
  uint64_t offset = 0, bytes = 0;
};

/// The record at the end of the archive says where the directory is.
Directory find_directory(const ByteSource& archive) {
  const std::string& where = archive.where();
  const uint64_t size = archive.size();
  const auto tail = static_cast<size_t>(std::min<uint64_t>(size, kEndBytes + kMostComment));
  const Piece piece(archive, size - tail, tail, "the end of the archive");
  size_t at = tail < kEndBytes ? 0 : tail - kEndBytes + 1;
  while (at > 0 && piece.u32(at - 1) != kEnd) --at;
  check(at > 0, Code::model_format, where,
        " is no ZIP archive, which torch.save() writes since PyTorch 1.6; save it again");
  --at;
  Directory out{piece.u32(at + 16), piece.u32(at + 12)};
  const bool large = out.offset == UINT32_MAX || out.bytes == UINT32_MAX;
  if (large && at >= kLocatorBytes && piece.u32(at - kLocatorBytes) == kLocator64) {
    const Piece end(archive, piece.u64(at - kLocatorBytes + 8), kEnd64Bytes, "the ZIP64 record");
    check(end.u32(0) == kEnd64, Code::model_format, where, ": the ZIP64 record is damaged");
    out = {end.u64(48), end.u64(40)};
  }
  check(out.bytes <= kMaxDirectory, Code::model_format, where, ": a ZIP directory of ", out.bytes,
        " bytes; Stepladder reads at most ", kMaxDirectory);
  return out;
}

/// Sizes and place of an entry that do not fit 32 bits stand behind its name.
void read_extra(const Piece& d, size_t at, size_t end, uint64_t& stored, uint64_t& bytes,
                uint64_t& local) {
  while (at + 4 <= end) {
    const size_t id = d.u16(at), next = at + 4 + d.u16(at + 2);
    at += 4;
    if (next > end) return;
    if (id == kExtra64)
      for (uint64_t* value : {&bytes, &stored, &local})
        if (*value == UINT32_MAX && at + 8 <= next) *value = d.u64(at), at += 8;
    at = next;
  }
}

}  // namespace

std::map<std::string, ZipEntry, std::less<>> read_zip_directory(const ByteSource& archive) {
  const std::string& where = archive.where();
  const Directory directory = find_directory(archive);
  const Piece d(archive, directory.offset, static_cast<size_t>(directory.bytes),
                "the ZIP directory");
  std::map<std::string, ZipEntry, std::less<>> out;
  for (size_t at = 0; at < d.size();) {
    check(d.size() - at >= kCentralBytes && d.u32(at) == kCentral, Code::model_format, where,
          ": the ZIP directory is damaged");
    const size_t name_bytes = d.u16(at + 28), extra = d.u16(at + 30), comment = d.u16(at + 32);
    const size_t next = at + kCentralBytes + name_bytes + extra + comment;
    check(next <= d.size(), Code::model_format, where, ": the ZIP directory is damaged");
    const std::string name = d.text(at + kCentralBytes, name_bytes);
    check(d.u16(at + 10) == 0 && !(d.u16(at + 8) & kEncrypted), Code::unsupported, where, ": ",
          quote(name), " is compressed or encrypted in the archive; torch.save() does neither");
    uint64_t stored = d.u32(at + 20), bytes = d.u32(at + 24), local = d.u32(at + 42);
    read_extra(d, at + kCentralBytes + name_bytes, next - comment, stored, bytes, local);
    const Piece header(archive, local, kLocalBytes, "the header of an archived file");
    check(header.u32(0) == kLocal && stored == bytes, Code::model_format, where, ": the entry of ",
          quote(name), " in the archive is damaged");
    const uint64_t begin = local + kLocalBytes + header.u16(26) + header.u16(28);
    check(begin <= archive.size() && bytes <= archive.size() - begin, Code::model_format, where,
          ": ", quote(name), " would lie beyond the end of the file; fetch it again");
    check(out.try_emplace(name, ZipEntry{begin, bytes}).second, Code::model_format, where, ": ",
          quote(name), " is in the archive twice");
    at = next;
  }
  return out;
}

}  // namespace stepladder
