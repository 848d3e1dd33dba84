// How a weight matrix's numbers are stored, as plain data, and a weight packed for a kernel.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace stepladder {

/// Precision of the activations a linear layer multiplies with, which a level may ask for. a16: the
/// model's 16-bit type; a8: int8.
enum class Act : uint8_t { a16, a8 };
/// What int8 activations share a scale over: a token, or of each token the k of a weight group.
enum class Per : uint8_t { token, group };
/// How a weight takes its activations; with a16 there are no scales, and `per` is token.
struct ActMode {
  Act act = Act::a16;
  Per per = Per::token;
};
constexpr ActMode kA16{Act::a16, Per::token};
constexpr ActMode kA8PerToken{Act::a8, Per::token}, kA8PerGroup{Act::a8, Per::group};

/// One code per weight; `group` consecutive k share a scale (0: one scale per output channel,
/// and no scale at all when `scaled` is false). A weight is
///     q * scale - offset                               with `offset`, which a group has beside it
///     (round(q * scale) - offset) * channel's scale    with `two_level`: what stands in brackets
/// is a whole number, rounded in f32 with ties to even and kept within int8.
struct FormatDesc {
  const char* name;  // the folder's name: "dense", "w8a16", ...
  DType code;        // bf16 f16 i8 i4 u4 e2m1
  int group = 0;     // k per scale; 0 = the whole row
  bool scaled = false;
  DType scale = DType::f32;  // f32 bf16 f16 e8m0, as the checkpoint has it
  bool offset = false;
  bool two_level = false;  // integer codes only

  /// Scales along k.
  constexpr int groups(int k) const { return scaled ? (group ? k / group : 1) : 0; }
};

/// How the generic path takes a weight: as it is, or of two levels as the int8 rows it stands for.
SL_INLINE constexpr FormatDesc described_as(const FormatDesc& d) {
  if (!d.two_level) return d;
  return {d.name, DType::i8, 0, true, DType::f32, false, false};
}

/// The layout "described", which the generic path of every backend runs, of what described_as()
/// says: codes [n][k] row by row, of 16 bits, 8 bits, or two 4-bit codes a byte (low nibble first,
/// i4 in two's complement); from the next multiple of 64 bytes on, at described_scales(), the
/// scales [n][groups] as f32, and then the offsets likewise.
SL_INLINE constexpr size_t described_row_bytes(const FormatDesc& d, int k) {
  return (size_t(k) * bits(d.code) + 7) / 8;
}
SL_INLINE constexpr size_t described_scales(const FormatDesc& d, int n, int k) {
  return (described_row_bytes(d, k) * n + 63) / 64 * 64;
}

/// A weight [n, k] in some kernel's layout, in backend memory.
struct PackedWeight {
  FormatDesc desc{};
  int n = 0, k = 0;
  const void* data = nullptr;   // layout-specific bytes: the part of its copy that is read
  size_t bytes = 0;             // of data; what one forward pass reads
  const float* bias = nullptr;  // [n] or null
};

}  // namespace stepladder
