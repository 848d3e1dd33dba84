// Bytes that can be read at any offset: a file on disk, or memory where a test stands in for one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace stepladder {

/// Random access to a fixed number of bytes. read() may be called from several threads.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  /// The path, or whatever else names the source in messages.
  virtual const std::string& where() const = 0;
  virtual uint64_t size() const = 0;
  /// Fills `out` from `offset` on; throws Error(io) naming the source and `what` is being read.
  virtual void read(uint64_t offset, std::span<std::byte> out, std::string_view what) const = 0;
};

/// A regular file, opened for reading and read in pieces; never mapped, so that a file which
/// shrinks while it is read is an Error(io) and not a signal.
class File final : public ByteSource {
 public:
  /// Throws Error(io) naming the path when it is not a readable regular file.
  explicit File(std::string path);
  ~File() override;
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  const std::string& where() const override { return path_; }
  /// Bytes the file had when it was opened.
  uint64_t size() const override { return size_; }
  void read(uint64_t offset, std::span<std::byte> out, std::string_view what) const override;
  /// Tells the system that these bytes are read soon, though not in their order.
  void expect(uint64_t offset, uint64_t bytes) const noexcept;

 private:
  std::string path_;
  int descriptor_ = -1;
  uint64_t size_ = 0;
};

/// A view of bytes in memory.
class MemoryBytes final : public ByteSource {
 public:
  MemoryBytes(std::string_view bytes, std::string where)
      : bytes_(bytes), where_(std::move(where)) {}
  const std::string& where() const override { return where_; }
  uint64_t size() const override { return bytes_.size(); }
  void read(uint64_t offset, std::span<std::byte> out, std::string_view what) const override;

 private:
  std::string_view bytes_;
  std::string where_;
};

/// Text of unknown origin for a message: in double quotes, valid UTF-8 without control characters,
/// cut off after `limit` bytes.
std::string quote(std::string_view text, size_t limit = 120);

}  // namespace stepladder
