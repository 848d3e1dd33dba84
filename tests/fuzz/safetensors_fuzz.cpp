// Any bytes as a .safetensors file: refused with Error(model_format), or every tensor lies inside
// the file, in order, without a gap, and can be read.
#include <numeric>

#include "core/error.h"
#include "fuzz.h"
#include "io/file.h"
#include "io/safetensors.h"

using namespace stepladder;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const MemoryBytes file({reinterpret_cast<const char*>(data), size}, "fuzz");
  std::vector<StoredTensor> tensors;
  try {
    tensors = read_safetensors_header(file);
  } catch (const Error& e) {
    fuzz::require(e.code() == Code::model_format, "a bad header is a model_format error");
    fuzz::require(std::string(e.what()).size() < 10000, "messages are short");
    return 0;
  }
  uint64_t expected = tensors.empty() ? size : tensors.front().offset;
  for (const StoredTensor& t : tensors) {
    fuzz::require(t.offset == expected, "tensors follow each other");
    uint64_t total = static_cast<uint64_t>(safetensors_bits(t.info.dtype));
    for (int64_t d : t.info.shape) total *= static_cast<uint64_t>(d);
    fuzz::require(total != 0 || t.info.bytes == 0, "an empty tensor has no bytes");
    fuzz::require(total == t.info.bytes * 8, "dtype and shape give the bytes");
    std::vector<std::byte> bytes(t.info.bytes);
    file.read(t.offset, bytes, t.name);
    expected += t.info.bytes;
  }
  fuzz::require(expected == size, "the last tensor ends with the file");
  return 0;
}

namespace stepladder::fuzz {
namespace {

std::string with_header(const std::string& header, size_t data) {
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>(header.size() >> (8 * i));
  return out + header + std::string(data, 'x');
}

}  // namespace

std::vector<std::string> seeds() {
  return {
      with_header("{}", 0),
      with_header(R"({"w":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}   )", 12),
      with_header(R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[],)"
                  R"("data_offsets":[0,4]},"b":{"dtype":"I64","shape":[0,7],"data_offsets":[4,4]},)"
                  R"("c":{"dtype":"F4","shape":[2,3],"data_offsets":[4,7]}})",
                  7),
      with_header(R"({"b":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[8,11]},)"
                  R"("\u00e9":{"dtype":"F8_E4M3","shape":[1,8,1],"data_offsets":[0,8]}})",
                  11),
  };
}

}  // namespace stepladder::fuzz
