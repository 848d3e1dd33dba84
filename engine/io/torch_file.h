// The tensors of a pytorch_model.bin: a ZIP archive of raw storages and a pickle that names them.
//
// The pickle is read as data. Of its instructions those are known that a dictionary of tensors
// consists of, and of the functions it may name the few that rebuild one; nothing is executed, and
// anything else is refused by name.
#pragma once

#include <vector>

#include "io/file.h"
#include "io/safetensors.h"

namespace stepladder {

/// The tensors in the order of their names; they lie in the file as they are, one after the other
/// along the last dimension, and may share bytes. Throws Error(model_format) on a damaged file and
/// Error(unsupported) on one that holds something else, naming the file and what it is.
std::vector<StoredTensor> read_torch_header(const ByteSource& file);

}  // namespace stepladder
