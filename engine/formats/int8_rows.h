// What the two int8 formats share: both store int8 codes with one scale per output row and differ
// in the activations they run with. With 16-bit ones the scales may also be of groups along k.
#pragma once

#include "formats/linear.h"
#include "formats/quantization.h"

namespace stepladder {

constexpr const char* kInt8Tensors[] = {"weight",       "weight_packed", "weight_scale",
                                        "weight_shape", "weight_g_idx",  "weight_zero_point"};

/// Whether a layer is int8 with these activations: per channel or, with a16, in groups.
bool recognises_int8(const Checkpoint&, const std::string& prefix, Act);
/// Reads compressed-tensors int-quantized (weight: I8) or pack-quantized (weight_packed: I32, value
/// + 128, low byte first).
std::unique_ptr<WeightReader> open_int8(const char* name, const Checkpoint&,
                                        const std::string& prefix, int n, int k);
/// Codes in -127..127 with scale amax / 127; a row of zeros has scale 1.
CanonicalWeight cast_int8(const char* name, std::span<const float> values, int n, int k, int group);

/// The same as a WeightFormat has them.
template <Act A>
struct Int8Format {
  static constexpr const char* kName = A == Act::a16 ? "w8a16" : "w8a8";
  static bool recognises(const Checkpoint& c, const std::string& prefix) {
    return recognises_int8(c, prefix, A);
  }
  static std::unique_ptr<WeightReader> open(const Checkpoint& c, const std::string& prefix, int n,
                                            int k) {
    return open_int8(kName, c, prefix, n, k);
  }
  static CanonicalWeight cast(std::span<const float> values, int n, int k, int group) {
    return cast_int8(kName, values, n, k, group);
  }
};

/// Packs tiles of scales and steps of [16 rows][4 k], a byte being the value + offset; fills what
/// w8_bytes says.
size_t w8_bytes(int n, int k);
void pack_w8(const WeightRows&, int offset, std::byte* out);
/// Puts the f32 scale of every row into its tile.
void pack_w8_scales(const WeightRows&, std::byte* tiles);

}  // namespace stepladder
