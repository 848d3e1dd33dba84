// Products that no format has: nibbles with a scale per channel or per group, and int8 tokens with
// one scale each. They hold the shared bodies of every instruction set to what QQQ and QoQ ask of
// them, long sums of nibbles above all.
#pragma once

#include <string>

#include "formats/linear.h"

namespace stepladder {

/// The kernel for groups (or channels) on an instruction set this build has.
const LinearKernel* nibble_kernel(const std::string& isa, bool grouped);

}  // namespace stepladder
