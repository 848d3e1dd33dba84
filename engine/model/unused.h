// Tensors a checkpoint holds that the model does not read: a sign that config.json and the weights
// do not belong together.
#pragma once

#include <string>

#include "model/config.h"

namespace stepladder {

/// One sentence with their number, some of their names and the likely reason; "" when there are
/// none. What is known to be left over (rotary_emb.inv_freq) does not count.
std::string unused_tensors(const Checkpoint&, const ModelConfig&);

}  // namespace stepladder
