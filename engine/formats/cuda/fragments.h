// Weights in the order in which a warp's tensor instructions take them.
//
// A tile is 16 outputs; along k it is cut into units of 128 k, or of 64 where codes have 16 bits,
// and blocks of 32. A lane (g = lane / 4, t = lane % 4) has of each block the eight k from 8 t on,
// of rows g and g + 8: for either half of a block, the instruction's 16 k, they are its fragment,
// if activations are read in the same order, which is one aligned load of eight values.
//
//   unit     of [tile][unit], all there is of it in one piece, which one bulk copy moves
//              codes   [vector][lane] 16 bytes; what lies past k stands for zeros
//              scales  in groups: [g][span], pairs of rows g and g + 8; a span is the part of a
//                      unit that has one scale, a larger group's stands in each of its units
//   scales   one a row: from the next multiple of 256 bytes on, [tile][16]
//
// Of 16 bits: vector v has half v % 2 of block v / 2, as (g; k, k+1) (g+8; k, k+1) (g; k+2, k+3)
// (g+8; k+2, k+3) with k = 8 t + 4 (v % 2). Of 8: vector b has block b, eight bytes of row g, then
// of g + 8. Of 4: vector v has blocks 2 v and 2 v + 1, of each a word of row g and one of g + 8;
// nibble j of a word is k 2 j for j < 4, then 2 j - 7, so that one shift and mask gives neighbours
// in the halves of a word.
#pragma once

#include "core/format.h"
#include "core/round_up.h"

namespace stepladder::cuda {

constexpr int kTileRows = 16, kBlock = 32;
constexpr int kUnitVectorBytes = 32 * 16;  // a vector of all lanes

/// Blocks of a unit.
constexpr int unit_blocks(int code_bits) { return code_bits == 16 ? 2 : 4; }

struct FragmentLayout {
  int tiles = 0, units = 0;
  int blocks = 0;                // of a unit
  int spans = 0;                 // scales of a row in a unit, 1 2 or 4; 0: one a row, or none
  int scale_bytes = 0;           // of one scale; 0 = none
  size_t code_bytes = 0;         // of a unit
  size_t unit_bytes = 0;         // codes and scales
  size_t scales = 0, bytes = 0;  // where scales of rows begin, and all

  /// Byte of a row's scale for the k of a block.
  size_t scale_at(int row, int block) const {
    if (spans == 0) return scales + size_t(row) * scale_bytes;
    const int g = row % 8, half = row % kTileRows / 8, span = block % blocks * spans / blocks;
    return (size_t(row / kTileRows) * units + block / blocks) * unit_bytes + code_bytes +
           size_t((g * spans + span) * 2 + half) * scale_bytes;
  }
};
inline FragmentLayout fragment_layout(const FormatDesc& d, int n, int k) {
  FragmentLayout l;
  const int groups = d.groups(k), group = groups ? k / groups : 0;
  l.blocks = unit_blocks(bits(d.code));
  const int unit = l.blocks * kBlock;
  l.tiles = (n + kTileRows - 1) / kTileRows, l.units = (k + unit - 1) / unit;
  l.scale_bytes = groups ? bits(d.scale) / 8 : 0;
  if (groups > 1 || (groups && d.scale == DType::e8m0)) l.spans = group >= unit ? 1 : unit / group;
  l.code_bytes = size_t(unit) * kTileRows * bits(d.code) / 8;
  l.unit_bytes = l.code_bytes + size_t(l.spans) * kTileRows * l.scale_bytes;
  l.scales = round_up(l.unit_bytes * l.units * l.tiles, size_t{256});
  l.bytes = l.scales + (l.spans ? 0 : size_t(l.tiles) * kTileRows * l.scale_bytes);
  return l;
}

}  // namespace stepladder::cuda
