// The header of a .safetensors file:
//   [N: u64 little-endian] [header: N bytes of JSON] [data]
// where the header maps each name to {dtype, shape, data_offsets} and the tensors fill the data
// without a gap, an overlap or a rest.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/checkpoint.h"
#include "io/file.h"

namespace stepladder {

/// A tensor and the byte of the file at which it starts.
struct StoredTensor {
  std::string name;
  TensorInfo info;
  uint64_t offset = 0;
};

/// Bits of one element of a safetensors type such as "BF16"; 0 when there is no such type.
int safetensors_bits(std::string_view dtype);

/// Reads and checks the header; the tensors come in the order of their data. Throws
/// Error(model_format) naming the file, and the tensor where it is one that breaks a rule.
std::vector<StoredTensor> read_safetensors_header(const ByteSource& file);

}  // namespace stepladder
