// Attention of sequences with any number of new tokens over their pages, on tensor cores, with a running
// maximum and sum (Dao 2023, arXiv:2307.08691).
//
// The query heads of a key head lie one after another for each token: a sequence's rows. A block takes a tile
// of rows and goes over the keys that they see, 64 at a time; warps have 16 or 32 rows each. Keys of the next
// step are copied while this one is computed, values likewise.
#include "kernels/cuda/paged_tile.h"

namespace autodeploy::cuda {
namespace {

constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr int kStepKeys = 64;

// kRowTiles: 16 rows each, of a warp.
template <int kKeyLen, int kValueLen, int kRowTiles_, int kWarps_>
struct PrefillShape {
  static constexpr int kRowTiles = kRowTiles_, kWarps = kWarps_;
  static constexpr int kThreads = kWarps * kWarpSize, kRows = kWarps * kRowTiles * 16;
  static constexpr int kQueryBytes = kRows * kRowBytes<kKeyLen>;
  static constexpr int kKeyBytes = kStepKeys * kRowBytes<kKeyLen>;
  static constexpr int kValueBytes = kStepKeys * kRowBytes<kValueLen>;
  static constexpr int kSharedBytes = kQueryBytes + 2 * (kKeyBytes + kValueBytes);
  static constexpr int kBlocksPerSm = kThreads > 128 ? 1 : 2;
  static_assert(kSharedBytes * kBlocksPerSm <= 226 * 1024 - 1024 && kValueLen <= kKeyLen);
};
// For many rows, and for few.
template <int kKeyLen, int kValueLen>
using LargeShape = std::conditional_t<(kKeyLen > 128), PrefillShape<kKeyLen, kValueLen, 1, 8>,
                                      PrefillShape<kKeyLen, kValueLen, 2, 4>>;
template <int kKeyLen, int kValueLen>
using SmallShape = std::conditional_t<(kKeyLen > 128), PrefillShape<kKeyLen, kValueLen, 1, 8>,
                                      PrefillShape<kKeyLen, kValueLen, 1, 4>>;

struct PrefillArgs {
  PagedAttention a;
  int first_seq = 0, num_seqs = 0, tiles = 0;
  int first_token = 0;
};

// Tiles of sequence i are numbered from here on: no more than that number of the sequence behind it.
template <int kRows>
AD_DEVICE int64_t first_tile(const PrefillArgs& p, int seq) {
  return int64_t{p.a.query_start[seq] - p.first_token} * p.a.group / kRows + (seq - p.first_seq);
}

// The last sequence whose first tile is `tile` or before it; by a whole warp.
template <int kRows>
AD_DEVICE int seq_of_tile(const PrefillArgs& p, int64_t tile) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  int low = p.first_seq, high = p.num_seqs;
  while (high - low > 1) {
    const int step = (high - low + kWarpSize - 1) / kWarpSize;
    const int seq = low + lane * step;
    const uint32_t at_or_before =
        __ballot_sync(kAllLanes, seq < high && first_tile<kRows>(p, min(seq, high - 1)) <= tile);
    const int found = 31 - __clz(at_or_before | 1u);
    low += found * step;
    high = min(high, low + step);
  }
  return low;
}

// Pages of the tile of 16 keys that a warp copies in a step.
struct StepPages {
  int page = 0, next_page = 0;
};
AD_DEVICE StepPages pages_at(const PagedAttention& a, const int32_t* pages, int num_pages, int key) {
  StepPages s;
  const int page = key >> a.page_shift;
  if (page < num_pages) s.page = pages[page];
  if (a.page_shift < 4 && page + 1 < num_pages) s.next_page = pages[page + 1];
  return s;
}

template <class T, int kKeyLen, int kValueLen, class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocksPerSm) prefill_kernel(const PrefillArgs p) {
  constexpr int kRowTiles = Shape::kRowTiles, kRows = Shape::kRows, kThreads = Shape::kThreads;
  constexpr int kParts = Shape::kWarps / 4;  // warps that share a tile of 16 keys
  constexpr int kKeyRow = kRowBytes<kKeyLen>, kValueRow = kRowBytes<kValueLen>;
  AD_DYNAMIC_SHARED(uint8_t, shared);
  wait_for_previous();
  let_next_start();
  const PagedAttention& a = p.a;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpSize, warp = thread / kWarpSize;
  const int g = lane / 4, t = lane % 4;
  uint8_t* const queries = shared;
  uint8_t* const keys = queries + Shape::kQueryBytes;
  uint8_t* const values = keys + 2 * Shape::kKeyBytes;

  // Tiles that see many keys come first.
  const int kv_head = static_cast<int>(blockIdx.x) % a.kv_heads;
  const int tile = p.tiles - 1 - static_cast<int>(blockIdx.x) / a.kv_heads;
  const int seq = seq_of_tile<kRows>(p, tile);
  const int token = a.query_start[seq], tokens = a.query_start[seq + 1] - token;
  const int first_row = static_cast<int>(tile - first_tile<kRows>(p, seq)) * kRows;
  const int num_rows = min(tokens * a.group - first_row, kRows);
  if (num_rows <= 0) return;
  const int kv_len = a.kv_len[seq], past = kv_len - tokens;
  const int first_query = past + first_row / a.group,
            last_query = past + (first_row + num_rows - 1) / a.group;
  const int first = first_key(a, first_query), end = end_key(a, last_query, kv_len);
  const int begin = first / kStepKeys * kStepKeys;
  const int steps = max((end - begin + kStepKeys - 1) / kStepKeys, 0);
  const int32_t* pages = a.pages + a.page_start[seq];
  const int num_pages = (kv_len + (1 << a.page_shift) - 1) >> a.page_shift;

  const int own_tile = warp % 4, part = warp / 4;
  const auto copy_keys = [&](int key, int slot, const StepPages& s) {
    key += own_tile * kTileKeys;
    copy_tile<kKeyLen, kParts>(
        keys + slot * Shape::kKeyBytes + own_tile * kTileKeys * kKeyRow,
        tile_rows<kKeyLen>(a.k_pages, a.k_page_bytes, a.page_shift, kv_head, key, s.page, s.next_page),
        first - key, end - key, part);
  };
  const auto copy_values = [&](int key, int slot, const StepPages& s) {
    key += own_tile * kTileKeys;
    copy_tile<kValueLen, kParts>(
        values + slot * Shape::kValueBytes + own_tile * kTileKeys * kValueRow,
        tile_rows<kValueLen>(a.v_pages, a.v_page_bytes, a.page_shift, kv_head, key, s.page, s.next_page),
        first - key, end - key, part);
  };

  StepPages now = pages_at(a, pages, num_pages, begin + own_tile * kTileKeys);
  // Queries and the first keys; rows behind the last are zeros.
  {
    constexpr int kPieces = kKeyLen / 8;
    for (int i = thread; i < kRows * kPieces; i += kThreads) {
      const int row = i / kPieces, column = i % kPieces;
      const int flat = first_row + min(row, num_rows - 1), query = flat / a.group;
      const T* from =
          a.q.row<const T>(token + query, kv_head * a.group + flat - query * a.group) + column * 8;
      uint8_t* to = queries + row * kKeyRow + column * 16;
      if (a.q.wide && !a.turn.cos) {
        copy_async_16(to, from, row < num_rows);
      } else {
        Piece<T> x = {};
        if (row < num_rows) x = turned_piece(a.turn, from - column * 8, a.q.wide, token + query, column * 8);
        *reinterpret_cast<Piece<T>*>(to) = x;
      }
    }
  }
  if (steps > 0) copy_keys(begin, 0, now);
  commit_copies();
  if (steps > 0) copy_values(begin, 0, now);
  commit_copies();
  StepPages next = pages_at(a, pages, num_pages, begin + kStepKeys + own_tile * kTileKeys);

  const int warp_row = warp * kRowTiles * 16;
  // Behind the last key that any row of the warp sees, and the range of those that all see.
  const int top_query = past + (first_row + min(warp_row, num_rows - 1)) / a.group;
  const int bottom_query = past + (first_row + min(warp_row + kRowTiles * 16, num_rows) - 1) / a.group;
  const int any_high = warp_row < num_rows ? end_key(a, bottom_query, kv_len) : 0;
  const int all_low = first_key(a, bottom_query), all_high = end_key(a, top_query, kv_len);

  float o[kRowTiles][kValueLen / 8][4] = {};
  float most[kRowTiles][2], sum[kRowTiles][2];  // sum: of this lane's keys
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) most[m][0] = most[m][1] = kNoScore, sum[m][0] = sum[m][1] = 0;

  const uint8_t* query_lane = queries + (warp_row + lane % 16) * kKeyRow + lane / 16 * 16;
  const int key_lane = ((lane & 7) + (lane >> 4) * 8) * kKeyRow + (lane >> 3 & 1) * 16;
  const int value_lane = ((lane & 7) + (lane >> 3 & 1) * 8) * kValueRow + (lane >> 4) * 16;

  for (int step = 0; step < steps; ++step) {
    const int key = begin + step * kStepKeys, slot = step % 2;
    const bool more = step + 1 < steps;
    if (more) copy_keys(key + kStepKeys, slot ^ 1, next);
    commit_copies();
    wait_copies<2>();
    __syncthreads();  // this step's keys are there, and the values of the step before have been read
    if (more) copy_values(key + kStepKeys, slot ^ 1, next);
    commit_copies();
    if (more) next = pages_at(a, pages, num_pages, key + 2 * kStepKeys + own_tile * kTileKeys);
    const bool seen = key < any_high;
    float s[kRowTiles][kStepKeys / 8][4] = {};
    if (seen) {
      const uint8_t* from = keys + slot * Shape::kKeyBytes + key_lane;
#pragma unroll
      for (int i = 0; i < kKeyLen / 16; ++i) {
        uint32_t q[kRowTiles][4];
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) load_matrix_x4(q[m], query_lane + m * 16 * kKeyRow + i * 32);
#pragma unroll
        for (int n = 0; n < kStepKeys / 16; ++n) {
          uint32_t k[4];
          load_matrix_x4(k, from + n * 16 * kKeyRow + i * 32);
#pragma unroll
          for (int m = 0; m < kRowTiles; ++m) {
            mma_16x8x16<T>(s[m][2 * n], q[m], {k[0], k[1]});
            mma_16x8x16<T>(s[m][2 * n + 1], q[m], {k[2], k[3]});
          }
        }
      }
      if (a.cap_inner > 0) {
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
          for (int n = 0; n < kStepKeys / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) s[m][n][i] = tanh_fast(s[m][n][i] * a.cap_inner);
          }
        }
      }
      if (key < all_low || key + kStepKeys > all_high) {
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const int row = min(warp_row + m * 16 + h * 8 + g, num_rows - 1);
            const int query = past + (first_row + row) / a.group;
            // From the lane's first key on.
            const int low = first_key(a, query) - key - 2 * t, high = end_key(a, query, kv_len) - key - 2 * t;
#pragma unroll
            for (int n = 0; n < kStepKeys / 8; ++n) {
#pragma unroll
              for (int i = 0; i < 2; ++i) {
                if (n * 8 + i < low || n * 8 + i >= high) s[m][n][2 * h + i] = kNoScore;
              }
            }
          }
        }
      }
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float top = kNoScore;
#pragma unroll
          for (int n = 0; n < kStepKeys / 8; ++n) top = fmaxf(top, fmaxf(s[m][n][2 * h], s[m][n][2 * h + 1]));
          top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
          top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2)) * a.scale_log2;
          if (__any_sync(kAllLanes, top > most[m][h])) {
            const float keep = top > most[m][h] ? exp2_fast(most[m][h] - top) : 1.0f;
            most[m][h] = fmaxf(most[m][h], top);
            sum[m][h] *= keep;
#pragma unroll
            for (int c = 0; c < kValueLen / 8; ++c) o[m][c][2 * h] *= keep, o[m][c][2 * h + 1] *= keep;
          }
          const float still = most[m][h] == kNoScore ? 0.0f : most[m][h];
#pragma unroll
          for (int n = 0; n < kStepKeys / 8; ++n) {
#pragma unroll
            for (int i = 2 * h; i < 2 * h + 2; ++i) {
              s[m][n][i] = exp2_fast(s[m][n][i] * a.scale_log2 - still);
              sum[m][h] += s[m][n][i];
            }
          }
        }
      }
    }
    wait_copies<2>();
    __syncthreads();  // this step's values are there, and its keys have been read
    if (seen) {
      const uint8_t* from = values + slot * Shape::kValueBytes + value_lane;
#pragma unroll
      for (int n = 0; n < kStepKeys / 16; ++n) {
        // Weights in two parts, so that they are as exact as float32 needs.
        uint32_t w[kRowTiles][4], rest[kRowTiles][4];
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float* pair = &s[m][2 * n + i / 2][i % 2 * 2];
            w[m][i] = pack_pair<T>(pair[0], pair[1]);
            rest[m][i] = pack_rest<T>(pair[0], pair[1], w[m][i]);
          }
        }
#pragma unroll
        for (int c = 0; c < kValueLen / 8; c += 2) {
          uint32_t v[4];
          load_matrix_x4_transposed(v, from + n * 16 * kValueRow + c * 16);
#pragma unroll
          for (int m = 0; m < kRowTiles; ++m) {
            mma_16x8x16<T>(o[m][c], w[m], {v[0], v[1]});
            mma_16x8x16<T>(o[m][c + 1], w[m], {v[2], v[3]});
            mma_16x8x16<T>(o[m][c], rest[m], {v[0], v[1]});
            mma_16x8x16<T>(o[m][c + 1], rest[m], {v[2], v[3]});
          }
        }
      }
    }
  }
  wait_copies<0>();  // of queries, where there were no steps

  // Results, through the place of the warp's own queries.
  __syncwarp();
#pragma unroll
  for (int m = 0; m < kRowTiles; ++m) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float all = sum[m][h];
      all += __shfl_xor_sync(kAllLanes, all, 1);
      all += __shfl_xor_sync(kAllLanes, all, 2);
      const int row = warp_row + m * 16 + h * 8 + g, flat = first_row + min(row, num_rows - 1);
      const int query = flat / a.group, head = kv_head * a.group + flat - query * a.group;
      const float by = inverse_sum<T>(a, token + query, head, most[m][h], all);
      uint8_t* to = queries + row * kKeyRow + t * 4;
#pragma unroll
      for (int c = 0; c < kValueLen / 8; ++c)
        *reinterpret_cast<uint32_t*>(to + c * 16) =
            pack_pair<T>(o[m][c][2 * h] * by, o[m][c][2 * h + 1] * by);
    }
  }
  __syncwarp();
  constexpr int kPieces = kValueLen / 8;
  for (int i = lane; i < kRowTiles * 16 * kPieces; i += kWarpSize) {
    const int row = warp_row + i / kPieces, column = i % kPieces;
    if (row >= num_rows) continue;
    const int flat = first_row + row, query = flat / a.group;
    T* to = a.out.row<T>(token + query, kv_head * a.group + flat - query * a.group) + column * 8;
    const uint8_t* from = queries + row * kKeyRow + column * 16;
    if (a.out.wide) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
    } else {
#pragma unroll
      for (int c = 0; c < 8; ++c) to[c] = reinterpret_cast<const T*>(from)[c];
    }
  }
}

// f(TypeTag<T>, key_len, value_len, TypeTag<shape>)
template <class F>
void dispatch_prefill(DType dtype, int key_len, int value_len, bool small, F&& f) {
  dispatch_widths(key_len, value_len, [&](auto k, auto v) {
    dispatch_half(dtype, [&](auto t) {
      if (small)
        f(t, k, v, TypeTag<SmallShape<k, v>>{});
      else
        f(t, k, v, TypeTag<LargeShape<k, v>>{});
    });
  });
}

}  // namespace

bool prepare_prefill(DType dtype, int key_len, int value_len) {
  bool ready = serves_widths(key_len, value_len);
  for (const bool small : {false, true}) {
    dispatch_prefill(dtype, key_len, value_len, small, [&](auto t, auto k, auto v, auto shape) {
      using Shape = typename decltype(shape)::type;
      ready =
          ready && allow_shared(prefill_kernel<typename decltype(t)::type, k, v, Shape>, Shape::kSharedBytes);
    });
  }
  return ready;
}

void launch_prefill(DType dtype, int key_len, int value_len, const PagedAttention& a, int first_seq,
                    int num_seqs, int64_t first_token, int64_t num_tokens, int64_t max_query_len,
                    Stream stream) {
  if (num_seqs <= first_seq) return;
  constexpr int kFewRows = 64;
  dispatch_prefill(dtype, key_len, value_len, max_query_len * a.group <= kFewRows,
                   [&](auto t, auto k, auto v, auto shape) {
                     using Shape = typename decltype(shape)::type;
                     PrefillArgs p;
                     p.a = a;
                     p.first_seq = first_seq, p.num_seqs = num_seqs;
                     p.first_token = static_cast<int>(first_token);
                     p.tiles = static_cast<int>((num_tokens - first_token) * a.group / Shape::kRows) +
                               num_seqs - first_seq;
                     const LaunchConfig config{dim3(static_cast<unsigned>(p.tiles * a.kv_heads)),
                                               dim3(Shape::kThreads), stream, Shape::kSharedBytes, true};
                     launch(config, prefill_kernel<typename decltype(t)::type, k, v, Shape>, p);
                   });
}

}  // namespace autodeploy::cuda
