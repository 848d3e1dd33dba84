// A Hugging Face model directory as a Checkpoint: which files it consists of, and that they agree
// with each other.
#include "io/checkpoint.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "core/error.h"
#include "io/file.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "io/torch_file.h"

namespace stepladder {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// A tree of JSON takes up to forty times its text; published config files have a few kilobytes.
constexpr size_t kMaxConfig = size_t{1} << 20;
constexpr uint64_t kMaxIndex = uint64_t{64} << 20;
constexpr const char* kTorchFile = "pytorch_model.bin";
constexpr size_t kMaxTensors = size_t{1} << 20, kMaxShards = 4096;

std::string shape_text(std::span<const int64_t> shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

json read_object(const std::string& path) {
  json out = parse_json(read_text(path, kMaxConfig), path);
  check(out.is_object(), Code::model_format, path, ": not a JSON object");
  return out;
}

bool exists(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error) || error;  // what cannot be looked at fails when it is opened
}

// The index of a checkpoint in shards: which file each tensor is said to be in.
struct Index final : JsonEvents {
  explicit Index(const std::string& where) : where(where) {}

  const std::string& where;
  std::vector<std::string> shards;                 // in order of first mention
  std::map<std::string, int, std::less<>> placed;  // tensor -> shard

  void open_object() override { ++depth, check_place(depth == 2); }
  void open_array() override { ++depth, check_place(false); }
  void close() override { --depth; }
  void key(std::string& name) override {
    if (depth == 1) {
      in_map = name == "weight_map";
      check(!in_map || !seen_map, Code::model_format, where, ": weight_map stands twice");
      seen_map |= in_map;
    } else if (in_map) {
      tensor = std::move(name);
    }
  }
  void string(std::string& value) override {
    check_place(depth == 2);
    if (!in_map) return;
    const auto [known, fresh_shard] = numbers.try_emplace(value, static_cast<int>(shards.size()));
    if (fresh_shard) shards.push_back(value);
    check(shards.size() <= kMaxShards, Code::model_format, where, ": names more than ", kMaxShards,
          " files");
    check(placed.try_emplace(tensor, known->second).second, Code::model_format, where,
          ": the tensor ", quote(tensor), " stands twice in weight_map; each belongs to one file");
    check(placed.size() <= kMaxTensors, Code::model_format, where, ": names more than ",
          kMaxTensors, " tensors");
  }
  void count(uint64_t) override { check_place(false); }
  void negative(int64_t) override { check_place(false); }
  void real(double) override { check_place(false); }
  void boolean(bool) override { check_place(false); }
  void null() override { check_place(false); }

  void check_place(bool fits) const {
    check(fits || !in_map, Code::model_format, where,
          ": weight_map may only hold file names under tensor names");
    check(depth != 0, Code::model_format, where, ": not a JSON object");
  }

  std::map<std::string, int, std::less<>> numbers;  // shard -> its place in shards
  std::string tensor;
  int depth = 0;
  bool in_map = false, seen_map = false;
};

// `inner` is `outer` or lies below it; both without links.
bool is_within(const fs::path& inner, const fs::path& outer) {
  const auto [end, rest] = std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end());
  return end == outer.end();
}

// The file an index names, resolved; refuses names that leave the model. In a Hugging Face cache
// (CACHE/models--ORG--NAME/snapshots/REVISION) the files are links into the model's own blobs
// folder, and those may be links into CACHE/blobs, which models share.
std::string shard_path(const std::string& directory, const std::string& name,
                       const std::string& index) {
  const fs::path relative(name);
  const bool plain = !name.empty() && name.size() <= 1024 && relative.is_relative() &&
                     std::none_of(name.begin(), name.end(),
                                  [](unsigned char c) { return c < 0x20 || c == '\\'; }) &&
                     std::none_of(relative.begin(), relative.end(), [](const fs::path& part) {
                       return part == ".." || part == "." || part.empty();
                     });
  check(plain, Code::model_format, index, ": names the file ", quote(name),
        "; shards must be plain names of files inside the model's directory");
  const fs::path path = fs::path(directory) / relative;

  std::error_code error;
  const fs::path root = fs::canonical(directory, error);
  check(!error, Code::io, "cannot resolve ", directory, ": ", error.message());
  const fs::path file = fs::canonical(path, error);
  check(!error, Code::io, index, " names ", path.string(),
        ", which cannot be opened: ", error.message(), "; fetch the missing file");
  bool inside = is_within(file, root);
  for (fs::path above = root; !inside && above.has_relative_path(); above = above.parent_path())
    if (above.filename().string().starts_with("models--"))
      inside = is_within(file, above) || is_within(file, above.parent_path() / "blobs");
  check(inside, Code::model_format, index, ": names ", path.string(), ", a link to ", file.string(),
        " outside the model's directory; copy the file into the directory");
  return file.string();
}

class Directory final : public Checkpoint {
 public:
  Directory(const std::string& path, bool torch_too) : where_(path) {
    check_directory();
    config_ = read_object(inside("config.json"));
    generation_ = exists(inside("generation_config.json"))
                      ? read_object(inside("generation_config.json"))
                      : json::object();
    if (exists(inside("model.safetensors"))) {
      add_file(inside("model.safetensors"), inside("model.safetensors"), read_safetensors_header);
    } else if (exists(inside("model.safetensors.index.json"))) {
      add_shards(inside("model.safetensors.index.json"));
    } else if (torch_too && exists(inside(kTorchFile))) {
      add_file(inside(kTorchFile), inside(kTorchFile), read_torch_header);
    } else {
      fail_without_weights();
    }
  }

  const std::string& where() const override { return where_; }
  const json& config() const override { return config_; }
  const json& generation() const override { return generation_; }
  std::vector<std::string> names() const override {
    std::vector<std::string> out;
    out.reserve(tensors_.size());
    for (const auto& [name, place] : tensors_) out.push_back(name);
    return out;
  }
  const TensorInfo* find(std::string_view name) const override {
    const auto at = tensors_.find(name);
    return at == tensors_.end() ? nullptr : &at->second.info;
  }
  void read_slice(std::string_view name, const Slice& slice,
                  std::span<std::byte> out) const override {
    const auto at = tensors_.find(name);
    check(at != tensors_.end(), Code::model_format, where_, " has no tensor ", quote(name));
    const Place& place = at->second;
    check_slice(name, place.info, slice, out.size());
    const std::string what = "tensor " + quote(name);
    const bool whole = slice.bytes == slice.stride;  // runs without gaps are one
    // Whoever reads runs reads those between them next.
    if (!whole && slice.runs > 1 && slice.offset == 0)
      files_[place.file]->expect(place.offset, place.info.bytes);
    const size_t runs = whole ? 1 : slice.runs, bytes = whole ? out.size() : slice.bytes;
    for (size_t i = 0; i < runs; ++i)
      files_[place.file]->read(place.offset + slice.offset + i * slice.stride,
                               out.subspan(i * bytes, bytes), what);
  }

 private:
  struct Place {
    TensorInfo info;
    size_t file;
    uint64_t offset;
  };

  std::string inside(const char* name) const { return (fs::path(where_) / name).string(); }

  void check_directory() const {
    std::error_code error;
    const fs::file_status status = fs::status(where_, error);
    check(status.type() != fs::file_type::not_found, Code::io, "no such model directory: ", where_,
          "; check the path");
    check(!error, Code::io, "cannot look at ", where_, ": ", error.message());
    check(fs::is_directory(status), Code::io, where_,
          " is not a directory; pass the folder that holds config.json and model.safetensors");
    check(exists(inside("config.json")), Code::io, where_,
          " has no config.json; pass the folder of a Hugging Face model, or make one with "
          "`stepladder convert model.gguf DIR`");
  }

  // Opens `path`, which messages call `shown`, and takes its tensors in.
  void add_file(const std::string& path, const std::string& shown,
                std::vector<StoredTensor> (*read_header)(const ByteSource&)) {
    files_.push_back(std::make_unique<File>(path));
    for (StoredTensor& t : read_header(*files_.back())) {
      t.info.file = shown;
      const auto [at, fresh] = tensors_.try_emplace(
          std::move(t.name), Place{std::move(t.info), files_.size() - 1, t.offset});
      check(fresh, Code::model_format, "tensor ", quote(at->first), " is in both ",
            at->second.info.file, " and ", shown, "; each tensor belongs to one shard");
    }
    check(tensors_.size() <= kMaxTensors, Code::model_format, where_, ": more than ", kMaxTensors,
          " tensors");
  }

  void add_shards(const std::string& path) {
    Index index(path);
    {
      const File file(path);
      check(file.size() <= kMaxIndex, Code::model_format, path, " has ", file.size(),
            " bytes, and Stepladder reads at most ", kMaxIndex, " of an index");
      walk_json(file, 0, file.size(), index);
    }
    check(!index.placed.empty(), Code::model_format, path, ": weight_map is missing or empty");
    for (const std::string& name : index.shards)
      add_file(shard_path(where_, name, path), (fs::path(where_) / name).string(),
               read_safetensors_header);
    for (const auto& [tensor, shard] : index.placed) {
      const auto at = tensors_.find(tensor);
      const std::string& said = index.shards[static_cast<size_t>(shard)];
      check(at != tensors_.end(), Code::model_format, path, ": tensor ", quote(tensor),
            " should be in ", said, ", which does not have it; fetch the shard again");
      check(at->second.file == static_cast<size_t>(shard), Code::model_format, path, ": tensor ",
            quote(tensor), " should be in ", said, " but is in ", at->second.info.file);
    }
  }

  [[noreturn]] void fail_without_weights() const {
    std::error_code ignored;
    std::string other;
    for (const fs::directory_entry& entry : fs::directory_iterator(where_, ignored)) {
      const fs::path name = entry.path().filename();
      const std::string ending = name.extension().string();
      if (ending == ".bin" || ending == ".pt" || ending == ".pth" || ending == ".gguf" ||
          ending == ".safetensors")
        other = name.string();
      if (ending == ".gguf") break;
    }
    if (other.empty())
      fail(Code::io, where_, " has neither model.safetensors nor model.safetensors.index.json; ",
           "fetch the weights");
    fail(Code::unsupported, where_,
         " has neither model.safetensors nor model.safetensors.index.json, only ", quote(other),
         other.ends_with(".gguf")          ? "; run `stepladder convert` on it"
         : other.ends_with(".safetensors") ? "; its name is not one that Hugging Face loads"
                                           : "; save the model again as safetensors");
  }

  std::string where_;
  json config_, generation_;
  std::vector<std::unique_ptr<File>> files_;
  std::map<std::string, Place, std::less<>> tensors_;
};

}  // namespace

const TensorInfo& Checkpoint::need(std::string_view name) const {
  const TensorInfo* info = find(name);
  check(info != nullptr, Code::model_format, where(), " has no tensor ", quote(name),
        ", which its config.json calls for");
  return *info;
}

const TensorInfo& Checkpoint::need(std::string_view name, std::string_view dtype,
                                   std::span<const int64_t> shape) const {
  const TensorInfo& info = need(name);
  const bool any_float = dtype.empty();
  check(any_float ? info.dtype == "BF16" || info.dtype == "F16" || info.dtype == "F32"
                  : info.dtype == dtype,
        Code::model_format, info.file, ": tensor ", quote(name), " is ", info.dtype, ", not ",
        any_float ? "BF16, F16 or F32" : dtype);
  check(std::equal(shape.begin(), shape.end(), info.shape.begin(), info.shape.end()),
        Code::model_format, info.file, ": tensor ", quote(name), " has the shape ",
        shape_text(info.shape), ", but config.json calls for ", shape_text(shape));
  return info;
}

void Checkpoint::check_slice(std::string_view name, const TensorInfo& info, const Slice& s,
                             size_t out) {
  check(s.runs > 0 && s.offset + (s.runs - 1) * s.stride + s.bytes <= info.bytes &&
            out == s.runs * s.bytes,
        Code::internal, info.file, ": tensor ", quote(name), " has ", info.bytes, " bytes, not ",
        out, " from ", s.offset, " on in ", s.runs, " runs");
}

std::vector<float> Checkpoint::load_floats(std::string_view name,
                                           std::span<const int64_t> shape) const {
  const TensorInfo& info = need(name, "", shape);
  if (info.dtype == "F32") {
    std::vector<float> out(info.bytes / sizeof(float));
    read(name, std::as_writable_bytes(std::span(out)));
    return out;
  }
  std::vector<uint16_t> halves(info.bytes / sizeof(uint16_t));
  read(name, std::as_writable_bytes(std::span(halves)));
  const DType dtype = info.dtype == "BF16" ? DType::bf16 : DType::f16;
  std::vector<float> out(halves.size());
  for (size_t i = 0; i < out.size(); ++i) out[i] = from_16(dtype, halves[i]);
  return out;
}

std::vector<float> Checkpoint::load_finite(const std::string& name, int n) const {
  const int64_t shape[] = {n};
  auto values = load_floats(name, shape);
  for (float x : values)
    check(std::isfinite(x), Code::model_format, need(name).file, ": tensor ", name,
          " holds a value that is not finite; the file is damaged");
  return values;
}

std::unique_ptr<Checkpoint> open_checkpoint(const std::string& directory) {
  return std::make_unique<Directory>(directory, false);
}

std::unique_ptr<Checkpoint> open_head_checkpoint(const std::string& directory) {
  return std::make_unique<Directory>(directory, true);
}

}  // namespace stepladder
