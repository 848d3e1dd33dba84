// Packs rows of a weight into fragments, for the formats' Packings.
#pragma once

#include "formats/kernel.h"

namespace stepladder::cuda {

/// For weights without offsets and second levels, with whole blocks of k, and groups of whole
/// blocks or of all of a row.
extern const Packing fragments;

}  // namespace stepladder::cuda
