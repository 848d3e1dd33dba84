// Reading files in pieces with pread, and text of unknown origin made fit for messages.
#include "io/file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <system_error>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/error.h"
#include "io/checkpoint.h"

namespace stepladder {
namespace {

// One system call never asks for more: the kernel caps a read near 2 GiB anyway, and shorter
// pieces keep a signal from waiting on a slow disk for long.
constexpr size_t kPiece = size_t{16} << 20;

std::string reason(int error) { return std::generic_category().message(error); }

[[noreturn]] void fail_open(const std::string& path, int error) {
  const char* hint = error == ENOENT   ? ": check the path"
                     : error == EACCES ? ": check the file's permissions"
                     : error == EMFILE ? ": raise the limit on open files (ulimit -n)"
                                       : "";
  fail(Code::io, "cannot open ", path, ": ", reason(error), hint);
}

// Length of the well-formed UTF-8 sequence that `text` starts with, 0 when it is not one.
size_t sequence_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i)
    if ((byte(i) & 0xc0) != 0x80) return 0;
  // Overlong forms, surrogates and values above U+10FFFF.
  if ((first == 0xe0 && byte(1) < 0xa0) || (first == 0xed && byte(1) > 0x9f) ||
      (first == 0xf0 && byte(1) < 0x90) || (first == 0xf4 && byte(1) > 0x8f))
    return 0;
  return length;
}

}  // namespace

File::File(std::string path) : path_(std::move(path)) {
  check(path_.find('\0') == std::string::npos, Code::io, "cannot open ", quote(path_, 4096),
        ": the path holds a NUL byte");
  // Without O_NONBLOCK a named pipe would wait for a writer for ever.
  do descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  while (descriptor_ < 0 && errno == EINTR);
  if (descriptor_ < 0) fail_open(path_, errno);
  struct stat status{};
  const int error = ::fstat(descriptor_, &status) == 0 ? 0 : errno;
  if (error != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor_);
    if (error != 0) fail_open(path_, error);
    fail(Code::io, "cannot read ", path_, ": it is not a regular file");
  }
  size_ = static_cast<uint64_t>(status.st_size);
}

File::~File() { ::close(descriptor_); }

void File::read(uint64_t offset, std::span<std::byte> out, std::string_view what) const {
  check(offset <= size_ && out.size() <= size_ - offset, Code::io, path_, ": ", what,
        " would end at byte ", offset + out.size(), " of a file of ", size_);
  size_t done = 0;
  while (done < out.size()) {
    const size_t piece = std::min(out.size() - done, kPiece);
    const ssize_t got =
        ::pread(descriptor_, out.data() + done, piece, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    check(got >= 0, Code::io, "cannot read ", what, " of ", path_, ": ", reason(errno));
    check(got > 0, Code::io, path_, " ended at byte ", offset + done, " while ", what,
          " was read, and had ", size_,
          " bytes when it was opened: it was cut short; fetch or write it again");
    done += static_cast<size_t>(got);
  }
}

void File::expect(uint64_t offset, uint64_t bytes) const noexcept {
#if defined(POSIX_FADV_WILLNEED)
  constexpr uint64_t kAhead = uint64_t{1} << 20;  // the kernel takes no more of one call
  for (uint64_t at = 0; at < bytes; at += kAhead)
    ::posix_fadvise(descriptor_, static_cast<off_t>(offset + at),
                    static_cast<off_t>(std::min(kAhead, bytes - at)), POSIX_FADV_WILLNEED);
#endif
}

void MemoryBytes::read(uint64_t offset, std::span<std::byte> out, std::string_view what) const {
  check(offset <= bytes_.size() && out.size() <= bytes_.size() - offset, Code::io, where_, ": ",
        what, " would end at byte ", offset + out.size(), " of ", bytes_.size());
  if (!out.empty()) std::memcpy(out.data(), bytes_.data() + offset, out.size());
}

std::string quote(std::string_view text, size_t limit) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  while (!text.empty()) {
    if (out.size() > limit) return out + "...\"";
    const size_t length = sequence_length(text);
    const unsigned char first = static_cast<unsigned char>(text[0]);
    if (length == 0 || first < 0x20 || first == 0x7f) {
      out += "\\x";
      out += kHex[first >> 4];
      out += kHex[first & 15];
      text.remove_prefix(1);
    } else {
      out += text.substr(0, length);
      text.remove_prefix(length);
    }
  }
  return out + '"';
}

std::string read_text(const std::string& path, size_t limit) {
  const File file(path);
  check(file.size() <= limit, Code::model_format, path, " has ", file.size(),
        " bytes, and Stepladder reads at most ", limit,
        " of such a file: it is not what its name says");
  std::string text(static_cast<size_t>(file.size()), '\0');
  file.read(0, std::as_writable_bytes(std::span(text)), "the text");
  return text;
}

}  // namespace stepladder
