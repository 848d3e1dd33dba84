// Weights in the order in which a warp's tensor instructions take them.
//
// A tile is 16 outputs; along k it is cut into units of 128 k, or of 64 where codes have 16 bits,
// and blocks of 32. A lane (g = lane / 4, t = lane % 4) has of each block the eight k from 8 t on,
// of rows g and g + 8: for either half of a block, the instruction's 16 k, they are its fragment,
// if activations are read in the same order, which is one aligned load of eight values.
//
//   codes    [tile][unit][vector][lane] 16 bytes; what lies past n or k is zeros
//   scales   from the next multiple of 256 bytes on
//              one a row      [tile][16]
//              in groups      [tile][place][g][span], pairs of rows g and g + 8; a place is a
//                             group, or a unit with its spans where it has several groups
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
  int blocks = 0;       // of a unit
  int spans = 0;        // scales of a row in a unit, 1 2 or 4; 0: one a row, or none
  int group_shift = 0;  // a group is 2^group_shift units, where spans is 1
  int places = 0;       // of scales in a tile
  int scale_bytes = 0;  // of one scale; 0 = none
  size_t unit_bytes = 0, tile_scales = 0;  // bytes of a unit's codes, and of a tile's scales
  size_t scales = 0, bytes = 0;            // where scales begin, and all

  /// Byte of a row's scale for the k of a block, from `scales` on.
  size_t scale_at(int row, int block) const {
    const int g = row % 8, half = row % kTileRows / 8, unit = block / blocks;
    const size_t tile = size_t(row / kTileRows) * tile_scales;
    if (spans == 0) return tile + size_t(row % kTileRows) * scale_bytes;
    const int place = spans == 1 ? unit >> group_shift : unit;
    const int span = block % blocks * spans / blocks;
    return tile + ((size_t(place) * 8 + g) * 2 * spans + 2 * span + half) * scale_bytes;
  }
};
inline FragmentLayout fragment_layout(const FormatDesc& d, int n, int k) {
  FragmentLayout l;
  const int groups = d.groups(k), group = groups ? k / groups : 0;
  l.blocks = unit_blocks(bits(d.code));
  const int unit = l.blocks * kBlock;
  l.tiles = (n + kTileRows - 1) / kTileRows, l.units = (k + unit - 1) / unit;
  l.unit_bytes = size_t(unit) * kTileRows * bits(d.code) / 8;
  l.scales = round_up(l.unit_bytes * l.units * l.tiles, size_t{256});
  l.scale_bytes = groups ? bits(d.scale) / 8 : 0;
  l.places = groups ? 1 : 0;
  if (groups > 1 || (groups && d.scale == DType::e8m0)) {
    l.spans = group >= unit ? 1 : unit / group;
    while (unit << (l.group_shift + 1) <= group) ++l.group_shift;
    l.places = l.spans == 1 ? groups : l.units;
  }
  l.tile_scales = size_t(l.places) * (l.spans ? l.spans : 1) * kTileRows * l.scale_bytes;
  l.bytes = l.scales + l.tiles * l.tile_scales;
  return l;
}

}  // namespace stepladder::cuda
