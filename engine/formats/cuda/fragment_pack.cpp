#include "formats/cuda/fragment_pack.h"

#include <bit>
#include <cstdint>
#include <cstring>

#include "formats/cuda/fragments.h"
#include "formats/weight_rows.h"

namespace stepladder::cuda {
namespace {

/// Nibbles k 0..7 of a word in the order of the fragments: 0 2 4 6 1 3 5 7.
uint32_t in_pairs(uint32_t x) {
  uint32_t t = (x ^ (x >> 4)) & 0x00f000f0u;
  x ^= t ^ (t << 4);
  t = (x ^ (x >> 8)) & 0x0000ff00u;
  return x ^ t ^ (t << 8);
}

/// Calls put(block, t, codes) for each eight codes of a row, 4, 8 or 16 bytes; behind its end, up
/// to `blocks`, they stand for zeros.
template <class Put>
void each_piece(const WeightRows& w, int row, int blocks, Put&& put) {
  const int code_bits = bits(w.desc.code);
  for (int at = 0; at + 8 <= w.k; at += 8) {
    const std::byte* codes = w.words_across ? w.codes + (size_t(at / 8) * w.count + row) * 4
                                            : w.codes + (size_t(row) * w.k + at) * code_bits / 8;
    put(at / kBlock, at % kBlock / 8, codes);
  }
  std::byte zeros[16] = {};
  if (w.desc.code == DType::i4) std::memset(zeros, 0x88, sizeof(zeros));
  for (int block = w.k / kBlock; block < blocks; ++block)
    for (int t = 0; t < kBlock / 8; ++t) put(block, t, zeros);
}

void put_scale(DType t, float scale, std::byte* out) {
  if (t == DType::e8m0) {
    *reinterpret_cast<uint8_t*>(out) = to_e8m0(scale);
  } else if (t == DType::f32) {
    std::memcpy(out, &scale, 4);
  } else {
    const uint16_t x = to_16(t, scale);
    std::memcpy(out, &x, 2);
  }
}

bool hold(const FormatDesc& d, int, int k) {
  if (k % kBlock != 0 || d.offset || d.two_level) return false;
  if (d.groups(k) <= 1) return d.scale != DType::e8m0 || d.groups(k) == 0 || k == kBlock;
  const bool even = d.group >= kBlock && std::has_single_bit(unsigned(d.group));
  return even && (bits(d.scale) == 16 || (d.scale == DType::e8m0 && d.group == kBlock));
}

size_t bytes_of(const FormatDesc& d, int n, int k) { return fragment_layout(d, n, k).bytes; }

void pack(const WeightRows& w, std::byte* out) {
  const FragmentLayout l = fragment_layout(w.desc, w.n, w.k);
  const int code_bits = bits(w.desc.code);
  for (int i = 0; i < w.count; ++i) {
    const int row = w.first + i, tile = row / kTileRows, in_tile = row % kTileRows;
    const int g = in_tile % 8, half = in_tile / 8;
    std::byte* const codes = out + size_t(tile) * l.units * l.unit_bytes;
    each_piece(w, i, l.units * l.blocks, [&](int block, int t, const std::byte* piece) {
      std::byte* const unit = codes + size_t(block / l.blocks) * l.unit_bytes;
      const int lane = g * 4 + t, b = block % l.blocks;
      const auto vector = [&](int v) { return unit + v * kUnitVectorBytes + lane * 16; };
      if (code_bits == 16) {
        for (int pair = 0; pair < 4; ++pair)
          std::memcpy(vector(2 * b + pair / 2) + pair % 2 * 8 + half * 4, piece + pair * 4, 4);
      } else if (code_bits == 8) {
        std::memcpy(vector(b) + half * 8, piece, 8);
      } else {
        uint32_t word;
        std::memcpy(&word, piece, 4);
        word = in_pairs(word);
        std::memcpy(vector(b / 2) + b % 2 * 8 + half * 4, &word, 4);
      }
    });
    if (!l.scale_bytes) continue;
    const int groups = w.desc.groups(w.k), blocks = groups == 1 ? 1 : w.k / kBlock;
    for (int block = 0; block < blocks; ++block)
      put_scale(w.desc.scale, w.scales[size_t(i) * groups + int64_t{block} * groups / blocks],
                out + l.scale_at(row, block));
  }
}

}  // namespace

extern const Packing fragments{hold, bytes_of, pack};

}  // namespace stepladder::cuda
