// The generic linear layer over the layout "described", which is readable and runs any format:
//
//   codes    [n][k] packed row by row: 16 bits, 8 bits, or two 4-bit codes a byte, low nibble first
//   scales   [n][groups] f32, from the next 64-byte border on; absent when the format has none
//   offsets  [n][groups] f32 behind them, likewise
//
// Each output is one chain of additions in the order of k within a group, then one addition per
// group: its sum times the scale, less the tokens' own sum times the offset. 16 outputs run side by
// side so that the chains overlap.
#include "backends/cpu/simd.h"

namespace stepladder::SL_ISA {
namespace {

constexpr int kTile = 16;   // outputs side by side
constexpr int kChunk = 64;  // codes of a row decoded at a time
constexpr int kRows = 32;   // rows a decoded chunk serves

struct Described {
  DType code;
  const uint8_t* codes;
  const float *scales, *offsets;  // null when the format has none
  int64_t row_bytes;
  int groups, group;  // at least one group; k per group
};

SL_INLINE Described described(const PackedWeight& w) {
  const FormatDesc desc = described_as(w.desc);
  const int width = desc.code == DType::bf16 || desc.code == DType::f16 ? 16
                    : desc.code == DType::i8                            ? 8
                                                                        : 4;
  Described d;
  d.code = desc.code;
  d.codes = static_cast<const uint8_t*>(w.data);
  d.row_bytes = (int64_t{w.k} * width + 7) / 8;
  const int64_t codes_end = (d.row_bytes * w.n + 63) / 64 * 64;
  d.scales = desc.scaled ? reinterpret_cast<const float*>(d.codes + codes_end) : nullptr;
  d.group = desc.scaled && desc.group ? desc.group : w.k;
  d.groups = w.k / d.group;
  d.offsets = desc.offset ? d.scales + int64_t{w.n} * d.groups : nullptr;
  return d;
}

/// The value of code `at` in a packed row, exactly.
SL_INLINE float decode(DType t, const uint8_t* row, int at) {
  if (t == DType::bf16 || t == DType::f16) {
    uint16_t x;
    __builtin_memcpy(&x, row + int64_t{at} * 2, 2);
    return from_16(t, x);
  }
  if (t == DType::i8) return static_cast<float>(static_cast<int8_t>(row[at]));
  const int nibble = at % 2 ? row[at / 2] >> 4 : row[at / 2] & 15;
  if (t == DType::u4) return static_cast<float>(nibble);
  if (t == DType::e2m1) return from_e2m1(static_cast<uint8_t>(nibble));
  return static_cast<float>(nibble < 8 ? nibble : nibble - 16);
}

/// to[i][j] = code k0 + i of output n0 + j; outputs past the end read as zeros.
template <class T>
SL_INLINE void decode_chunk(const PackedWeight& w, const Described& d, int n0, int k0, int count,
                            float factor, T (*to)[kTile]) {
  for (int j = 0; j < kTile; ++j) {
    const uint8_t* row = d.codes + d.row_bytes * (n0 + j);
    for (int i = 0; i < count; ++i)
      to[i][j] =
          n0 + j < w.n ? static_cast<T>(decode(d.code, row, k0 + i) * factor) : static_cast<T>(0);
  }
}

SL_INLINE float scale_of(const PackedWeight& w, const Described& d, int n, int g) {
  return d.scales && n < w.n ? d.scales[int64_t{n} * d.groups + g] : 1.f;
}

SL_INLINE float offset_of(const PackedWeight& w, const Described& d, int n, int g) {
  return n < w.n ? d.offsets[int64_t{n} * d.groups + g] : 0.f;
}

SL_INLINE void finish(const LinearArgs& a, int n0, int row, const float* total) {
  float* y = row_of<float>(a.y, row);
  for (int j = 0; j < kTile && n0 + j < a.weight.n; ++j) {
    const int n = n0 + j;
    const float v = a.weight.bias ? total[j] + a.weight.bias[n] : total[j];
    y[n] = a.accumulate ? y[n] + v : v;
  }
}

SL_INLINE void tile_a16(const LinearArgs& a, const Described& d, int n0, int r0, int rows) {
  float total[kRows][kTile] = {}, sum[kRows][kTile], w[kChunk][kTile], x_sum[kRows];
  for (int g = 0; g < d.groups; ++g) {
    for (int r = 0; r < rows; ++r) {
      x_sum[r] = 0.f;
      for (int j = 0; j < kTile; ++j) sum[r][j] = 0.f;
    }
    for (int c = 0; c < d.group; c += kChunk) {
      const int k0 = g * d.group + c, count = d.group - c < kChunk ? d.group - c : kChunk;
      decode_chunk(a.weight, d, n0, k0, count, 1.f, w);
      for (int r = 0; r < rows; ++r) {
        float x[kChunk];
        widen(a.x.dtype, row_of<uint16_t>(a.x, r0 + r) + k0, x, count);
        for (int i = 0; i < count; ++i)
          for (int j = 0; j < kTile; ++j) sum[r][j] = sum[r][j] + x[i] * w[i][j];
        if (d.offsets)
          for (int i = 0; i < count; ++i) x_sum[r] = x_sum[r] + x[i];
      }
    }
    float scale[kTile];
    for (int j = 0; j < kTile; ++j) scale[j] = scale_of(a.weight, d, n0 + j, g);
    for (int r = 0; r < rows; ++r)
      for (int j = 0; j < kTile; ++j) total[r][j] = total[r][j] + sum[r][j] * scale[j];
    if (d.offsets)
      for (int j = 0; j < kTile; ++j) {
        const float offset = offset_of(a.weight, d, n0 + j, g);
        for (int r = 0; r < rows; ++r) total[r][j] = total[r][j] - x_sum[r] * offset;
      }
  }
  for (int r = 0; r < rows; ++r) finish(a, n0, r0 + r, total[r]);
}

// A sum ends where a weight's scale does or, over int8 rows that stand for groups, a token's.
// E2M1 codes enter the integer sum doubled, which makes them whole; the factor comes off again
// with the scale, where a power of two costs no rounding.
SL_INLINE void tile_a8(const LinearArgs& a, const Described& d, int n0, int r0, int rows) {
  const float doubled = d.code == DType::e2m1 ? 2.f : 1.f;
  const int64_t k = a.x.cols;
  const int64_t x_scales = k / a.x8.group, x_sums = k / a.x8.sum_group;
  const int piece = a.x8.group < d.group ? a.x8.group : d.group;
  float total[kRows][kTile] = {};
  int32_t sum[kRows][kTile], w[kChunk][kTile];
  for (int from = 0; from < k; from += piece) {
    for (int r = 0; r < rows; ++r)
      for (int j = 0; j < kTile; ++j) sum[r][j] = 0;
    for (int c = 0; c < piece; c += kChunk) {
      const int k0 = from + c, count = piece - c < kChunk ? piece - c : kChunk;
      decode_chunk(a.weight, d, n0, k0, count, doubled, w);
      for (int r = 0; r < rows; ++r) {
        const int8_t* q = a.x8.q + (r0 + r) * k + k0;
        for (int i = 0; i < count; ++i)
          for (int j = 0; j < kTile; ++j) sum[r][j] += q[i] * w[i][j];
      }
    }
    const int g = from / d.group;
    float scale[kTile];
    for (int j = 0; j < kTile; ++j) scale[j] = scale_of(a.weight, d, n0 + j, g) / doubled;
    for (int r = 0; r < rows; ++r) {
      const float x_scale = a.x8.scale[(r0 + r) * x_scales + from / a.x8.group];
      for (int j = 0; j < kTile; ++j)
        total[r][j] = total[r][j] + static_cast<float>(sum[r][j]) * x_scale * scale[j];
      if (!d.offsets) continue;
      const float x_sum = static_cast<float>(a.x8.sum[(r0 + r) * x_sums + g]) * x_scale;
      for (int j = 0; j < kTile; ++j)
        total[r][j] = total[r][j] - x_sum * offset_of(a.weight, d, n0 + j, g);
    }
  }
  for (int r = 0; r < rows; ++r) finish(a, n0, r0 + r, total[r]);
}

}  // namespace

void described_linear(const LinearArgs& a, Lane lane) {
  const Described d = described(a.weight);
  const int live = live_rows(a.live);
  for (int at = first_part(lane); at < lane.parts; at = next_part(lane, at)) {
    const Share s = share(a.weight.n, part_of(lane, at), kTile);
    for (int n0 = s.begin; n0 < s.end; n0 += kTile)
      for (int r0 = 0; r0 < live; r0 += kRows) {
        const int rows = live - r0 < kRows ? live - r0 : kRows;
        if (a.act == Act::a16)
          tile_a16(a, d, n0, r0, rows);
        else
          tile_a8(a, d, n0, r0, rows);
      }
  }
}

}  // namespace stepladder::SL_ISA
