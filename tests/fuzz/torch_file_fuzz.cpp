// Any bytes as a pytorch_model.bin: refused with a typed error, or every tensor lies inside the
// file and can be read.
#include "core/error.h"
#include "fuzz.h"
#include "io/file.h"
#include "io/torch_file.h"
#include "support/torch_writer.h"

using namespace stepladder;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  // As a whole file; and as the pickle in one, which random changes would hardly get to.
  for (const bool inside : {false, true}) {
    const std::string archive =
        inside ? testing::zip_of({{"a/data.pkl", std::string(bytes)}, {"a/data/0", "0123456789"}})
               : std::string(bytes);
    const MemoryBytes file(archive, "fuzz");
    try {
      for (const StoredTensor& t : read_torch_header(file)) {
        uint64_t total = static_cast<uint64_t>(safetensors_bits(t.info.dtype));
        for (int64_t d : t.info.shape) total *= static_cast<uint64_t>(d);
        fuzz::require(total == t.info.bytes * 8, "dtype and shape give the bytes");
        std::vector<std::byte> values(t.info.bytes);
        file.read(t.offset, values, t.name);
      }
    } catch (const Error& e) {
      fuzz::require(e.code() == Code::model_format || e.code() == Code::unsupported,
                    "a bad file is model_format or unsupported");
      fuzz::require(std::string(e.what()).size() < 10000, "messages are short");
    }
  }
  return 0;
}

namespace stepladder::fuzz {

std::vector<std::string> seeds() {
  testing::Pickler pickle;
  pickle.raw("}(").text("w").tensor("HalfStorage", "0", 5, 1, {2, 2}, {2, 1}).raw("u.");
  return {testing::torch_file({{"w", "HalfStorage", {2, 3}, "abcdefghijkl"}}),
          testing::torch_file({{"w", "FloatStorage", {1}, "abcd"}, {"d", "LongStorage", {0}, ""}},
                              true),
          pickle.out};
}

}  // namespace stepladder::fuzz
