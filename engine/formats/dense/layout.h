// Packing of dense weights; the layout is drawn in formats/tiles.h.
#pragma once

#include "formats/kernel.h"

namespace stepladder::dense {

bool supports(const FormatDesc&, int n, int k);
size_t packed_bytes(const FormatDesc&, int n, int k);
void pack(const WeightRows&, std::byte* out);

}  // namespace stepladder::dense
