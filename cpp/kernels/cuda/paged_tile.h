// What the kernels of paged attention share: which keys a query sees, tiles of 16 keys in shared memory, and
// the arithmetic of their scores.
#pragma once

#include "kernels/cuda/mma.h"
#include "kernels/cuda/paged_attention.h"

namespace autodeploy::cuda {

#if defined(__CUDACC__) || defined(AUTODEPLOY_SIMT_EMULATION)

constexpr int kTileKeys = 16;
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kNoScore = -INFINITY;

// Rows in shared memory are padded, so that 8 of them at the same column lie in different banks.
template <int kWidth>
constexpr int kRowBytes = kWidth * 2 + 16;

AD_DEVICE int first_key(const PagedAttention& a, int query) {
  int first = a.window > 0 && query >= a.window ? query - a.window + 1 : 0;
  if (a.chunk > 0) first = max(first, query / a.chunk * a.chunk);
  return first;
}
AD_DEVICE int end_key(const PagedAttention& a, int query, int kv_len) {
  const int end = a.causal ? query + 1 : kv_len;
  if (a.chunk == 0) return end;
  const int64_t chunk_end = (int64_t{query / a.chunk} + 1) * a.chunk;
  return chunk_end < end ? static_cast<int>(chunk_end) : end;
}

// The two halves of 16 rows of a key head: rows 0 .. 7 lie from `low` on, row r of 8 .. 15 at `high` + r
// rows.
struct TileRows {
  const uint8_t *low = nullptr, *high = nullptr;
};
// Of 16 keys from `key` on (a multiple of 16); `page` and `next_page` hold the first and the last 8.
template <int kWidth>
AD_DEVICE TileRows tile_rows(const uint8_t* data, int64_t page_bytes, int page_shift, int head, int key,
                             int page, int next_page) {
  constexpr int64_t kBytes = kWidth * 2;
  const int64_t in_page = ((int64_t{head} << page_shift) + (key & ((1 << page_shift) - 1))) * kBytes;
  TileRows rows;
  rows.low = data + page * page_bytes + in_page;
  rows.high = page_shift >= 4 ? rows.low : data + next_page * page_bytes + in_page - 8 * kBytes;
  return rows;
}

// Begins to copy rows [first, end) of a tile into shared memory and zeros into the others: the share `part`
// of kParts of a warp.
template <int kWidth, int kParts = 1>
AD_DEVICE void copy_tile(uint8_t* to, const TileRows& rows, int first, int end, int part = 0) {
  constexpr int kPieces = kWidth / 8;  // of 16 bytes, of a row
  constexpr int kRounds = kTileKeys * kPieces / kWarpSize;
  static_assert(kTileKeys * kPieces % kWarpSize == 0);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  // Where a round holds whole rows, the column is the same in all rounds.
  constexpr int kRoundRows = kWarpSize % kPieces == 0 ? kWarpSize / kPieces : 0;
  const int lane_row = lane / kPieces, lane_column = lane % kPieces;
  const uint8_t *low = rows.low + lane * 16, *high = rows.high + lane * 16;
  if constexpr (kRoundRows > 0) to += lane_row * kRowBytes<kWidth> + lane_column * 16;
#pragma unroll
  for (int i = 0; i < (kRounds + kParts - 1) / kParts; ++i) {
    const int round = i * kParts + part;
    if (kRounds % kParts != 0 && round >= kRounds) break;
    int row = lane_row + round * kRoundRows, column = lane_column;
    uint8_t* at = to + round * kRoundRows * kRowBytes<kWidth>;
    if constexpr (kRoundRows == 0) {
      const int piece = round * kWarpSize + lane;
      row = piece / kPieces, column = piece % kPieces;
      at = to + row * kRowBytes<kWidth> + column * 16;
    }
    const uint8_t* from = (row < 8 ? low : high) + round * (kWarpSize * 16);
    copy_async_16(at, from, row >= first && row < end);
  }
}

// Eight neighbouring channels.
template <class T>
using Piece = Pack<T, 8>;

template <class T>
AD_DEVICE Piece<T> load_piece(const T* from, bool wide) {
  if (wide) return *reinterpret_cast<const Piece<T>*>(from);
  Piece<T> x;
#pragma unroll
  for (int c = 0; c < 8; ++c) x.x[c] = from[c];
  return x;
}

// a * c + b * s, rounded as the plain formula has it.
AD_DEVICE float turned(float a, float c, float b, float s) {
  return __fadd_rn(__fmul_rn(a, c), __fmul_rn(b, s));
}

// kCount numbers of a table from `at` on.
template <class T, int kCount>
AD_DEVICE void load_numbers(const T* table, int64_t at, bool wide, float (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    Pack<T, 4> four;
    if (wide) {
      four = *reinterpret_cast<const Pack<T, 4>*>(table + at + i);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) four.x[j] = table[at + i + j];
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) x[i + j] = to_float(four.x[j]);
  }
}
// Of a token's cosines and sines, those from `at` on.
template <class T, int kCount>
AD_DEVICE void load_turn(const HeadTurn& turn, int64_t token, int at, float (&c)[kCount],
                         float (&s)[kCount]) {
  const int64_t cos_at = token * turn.cos_token + at, sin_at = token * turn.sin_token + at;
  if (turn.f32) {
    load_numbers(static_cast<const float*>(turn.cos), cos_at, turn.wide, c);
    load_numbers(static_cast<const float*>(turn.sin), sin_at, turn.wide, s);
  } else {
    load_numbers(static_cast<const T*>(turn.cos), cos_at, turn.wide, c);
    load_numbers(static_cast<const T*>(turn.sin), sin_at, turn.wide, s);
  }
}

// Channels [channel, channel + 8) of a token's query or key `row`, turned where `turn` says so.
template <class T>
AD_DEVICE Piece<T> turned_piece(const HeadTurn& turn, const T* row, bool wide, int64_t token, int channel) {
  const Piece<T> x = load_piece(row + channel, wide);
  if (!turn.cos || channel >= 2 * turn.half) return x;
  Piece<T> y;
  if (turn.interleaved) {
    float c[4], s[4];
    load_turn<T>(turn, token, channel / 2, c, s);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float a = to_float(x.x[2 * i]), b = to_float(x.x[2 * i + 1]);
      y.x[2 * i] = from_float<T>(turned(a, c[i], -b, s[i]));
      y.x[2 * i + 1] = from_float<T>(turned(b, c[i], a, s[i]));
    }
    return y;
  }
  const bool lower = channel < turn.half;
  const int at = lower ? channel : channel - turn.half;
  const Piece<T> other = load_piece(row + (lower ? channel + turn.half : at), wide);
  float c[8], s[8];
  load_turn<T>(turn, token, at, c, s);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float b = to_float(other.x[i]);
    y.x[i] = from_float<T>(turned(to_float(x.x[i]), c[i], lower ? -b : b, s[i]));
  }
  return y;
}

// tanh to a few units in the last place of 1.
AD_DEVICE float tanh_fast(float x) { return 1.0f - __fdividef(2.0f, exp2_fast(x * (2 * kLog2E)) + 1.0f); }

// In units of log2(e).
template <class T>
AD_DEVICE float sink_of(const PagedAttention& a, int64_t token, int64_t head) {
  const int64_t at = token * a.sink_token + head * a.sink_head;
  const float sink =
      a.sinks_f32 ? static_cast<const float*>(a.sinks)[at] : to_float(static_cast<const T*>(a.sinks)[at]);
  return sink * kLog2E;
}

// What the weights' sum is divided by: 1 / (sum + the sink's weight); `most` in units of log2(e). A query
// that sees no key gets zeros.
template <class T>
AD_DEVICE float inverse_sum(const PagedAttention& a, int64_t token, int64_t head, float most, float sum) {
  if (sum == 0) return 0;
  if (a.sinks) sum += exp2_fast(sink_of<T>(a, token, head) - most);
  return 1.0f / sum;
}

#endif

}  // namespace autodeploy::cuda
