// Packing of w8a16 weights; the layout is drawn in formats/tiles.h.
#pragma once

#include "formats/kernel.h"

namespace stepladder::w8a16 {

bool supports(const FormatDesc&, int n, int k);
size_t packed_bytes(const FormatDesc&, int n, int k);
void pack(const WeightRows&, std::byte* out);

/// The layout of instruction sets without byte tables.
size_t plain_bytes(const FormatDesc&, int n, int k);
void pack_plain(const WeightRows&, std::byte* out);

}  // namespace stepladder::w8a16
