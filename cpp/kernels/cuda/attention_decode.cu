// Attention of sequences with one new token over their pages, on tensor cores.
//
// The query heads of a key head are the rows of a product with 16 keys; a unit of 64 keys is a tile for each
// of a block's four warps. All units of all sequences and key heads lie in one line, which is cut into even
// ranges, one for each block. A warp copies its tiles into a ring of its own in shared memory, some tiles
// ahead, and keeps maximum, sum and weighted values of its keys (Dao et al. 2022, arXiv:2205.14135); where
// the keys of a head end, the warps put theirs together. Of a head that lies in several ranges each block
// leaves its part in memory, and the block that comes last puts the parts together, always in the same order.
#include <algorithm>

#include "kernels/cuda/paged_tile.h"
#include "kernels/cuda/processors.h"

namespace autodeploy::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarpSize;
constexpr uint32_t kAllLanes = 0xffffffffu;

// Shared memory of a multiprocessor of compute capability 9.0 in use by its blocks, and what a block needs
// besides its ring: two numbers of each sequence.
constexpr int kRingOfOne = 204 * 1024, kRingOfTwo = 104 * 1024;

template <int kKeyLen, int kValueLen>
struct DecodeShape {
  static constexpr int kValuesAt = kTileKeys * kRowBytes<kKeyLen>;
  static constexpr int kStageBytes = kValuesAt + kTileKeys * kRowBytes<kValueLen>;
  static constexpr int kBlocksPerSm = kKeyLen + kValueLen <= 256 ? 2 : 1;
  static constexpr int kRing = kBlocksPerSm == 2 ? kRingOfTwo : kRingOfOne;
  static constexpr int kStages = std::min(kRing / (kWarps * kStageBytes), 6);
  static constexpr int kRingBytes = kWarps * kStages * kStageBytes;
  // Where registers are short, queries stay in shared memory.
  static constexpr bool kSharedQueries = kKeyLen + kValueLen > 320;
  static constexpr int kQueryBytes = kDecodeRows * kRowBytes<kKeyLen>;
  static constexpr int kFreshAt = kRingBytes + kQueryBytes;  // the new key and value
  static constexpr int kFixedBytes = kFreshAt + kRowBytes<kKeyLen> + kRowBytes<kValueLen>;
  // Where warps leave their values for each other: in a stage of the ring.
  static constexpr int kPartRow = kValueLen + 8;  // floats
  static_assert(kStages >= 2 && kPartRow * 4 * kDecodeRows <= kStageBytes);
};

template <class Shape>
size_t shared_bytes(int num_seqs) {
  return Shape::kFixedBytes + sizeof(int) * (2 * static_cast<size_t>(num_seqs) + 1);
}

// The pages of a sequence in ascending order; a lane holds one of 32 pages, and one of the 32 that follow.
class PageReader {
 public:
  AD_DEVICE void start(const PagedAttention& a, int seq, int page, int num_pages) {
    pages_ = a.pages + a.page_start[seq];
    num_pages_ = num_pages;
    first_ = page & ~1;
    now_ = load(first_);
    next_ = load(first_ + kWarpSize);
  }
  // Pages are asked for in ascending order; page + 1 is at hand as well where page is even.
  AD_DEVICE void seek(int page) {
    while (page - first_ >= kWarpSize) {
      first_ += kWarpSize;
      now_ = next_;
      next_ = load(first_ + kWarpSize);
    }
  }
  AD_DEVICE int operator[](int page) const { return __shfl_sync(kAllLanes, now_, page - first_); }

 private:
  AD_DEVICE int load(int first) const {
    const int page = first + static_cast<int>(threadIdx.x) % kWarpSize;
    return page < num_pages_ ? pages_[page] : 0;
  }
  const int32_t* pages_ = nullptr;
  int num_pages_ = 0, first_ = 0;
  int now_ = 0, next_ = 0;
};

// How the line of units is laid out: sequence after sequence, and in it head after head (a key head and a
// tile of its query heads).
struct Line {
  const int* before = nullptr;  // [num_seqs + 1] units of a head in the sequences before
  const int* kv_len = nullptr;
  int num_seqs = 0, heads = 0;

  AD_DEVICE int seq_of(int64_t unit) const {
    int low = 0, high = num_seqs;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (int64_t{before[middle]} * heads <= unit)
        low = middle;
      else
        high = middle;
    }
    return low;
  }
  AD_DEVICE int units(int seq) const { return before[seq + 1] - before[seq]; }
  AD_DEVICE int64_t start(int seq, int head) const {
    return int64_t{before[seq]} * heads + int64_t{head} * units(seq);
  }
};

// Fills before[] and kv_len[] in shared memory.
AD_DEVICE void lay_out(const PagedAttention& a, int num_seqs, int* before, int* kv_len) {
  __shared__ int sums[kWarps];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpSize, warp = thread / kWarpSize;
  int carry = 0;
  for (int base = 0; base < num_seqs; base += kThreads) {
    const int seq = base + thread;
    int sum = 0;
    if (seq < num_seqs) {
      const int len = a.kv_len[seq];
      kv_len[seq] = len;
      if (len > 0) sum = (len + kDecodeUnit - 1) / kDecodeUnit - first_key(a, len - 1) / kDecodeUnit;
    }
#pragma unroll
    for (int d = 1; d < kWarpSize; d *= 2) {
      const int other = __shfl_up_sync(kAllLanes, sum, static_cast<unsigned>(d));
      if (lane >= d) sum += other;
    }
    if (lane == kWarpSize - 1) sums[warp] = sum;
    __syncthreads();
    int all = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) sum += sums[w];
      all += sums[w];
    }
    if (seq < num_seqs) before[seq + 1] = carry + sum;
    carry += all;
    __syncthreads();
  }
  if (thread == 0) before[0] = 0;
  __syncthreads();
}

// Sequence, head and unit of a place in the line.
struct Place {
  int seq = 0, head = 0;
  int unit = 0, end = 0;  // in the sequence

  AD_DEVICE void enter(const PagedAttention& a, const Line& line) {
    unit = first_key(a, line.kv_len[seq] - 1) / kDecodeUnit;
    end = unit + line.units(seq);
  }
  Place() = default;
  AD_DEVICE Place(const PagedAttention& a, const Line& line, int64_t at) {
    seq = line.seq_of(at);
    const int64_t in_seq = at - line.start(seq, 0);
    head = static_cast<int>(in_seq / line.units(seq));
    enter(a, line);
    unit += static_cast<int>(in_seq - int64_t{head} * line.units(seq));
  }
  // To the first unit of the next head; there is one.
  AD_DEVICE void next_head(const PagedAttention& a, const Line& line) {
    if (++head == line.heads) {
      head = 0;
      do ++seq;
      while (line.units(seq) == 0);
    }
    enter(a, line);
  }
};

// Brings a warp's tiles into its ring, in the order of the line: what lies in the pages, and zeros in the
// place of a new key and value, which are not there yet.
template <int kKeyLen, int kValueLen>
class TileSource {
  using Shape = DecodeShape<kKeyLen, kValueLen>;

 public:
  AD_DEVICE TileSource(const PagedAttention& a, const Line& line, const Place& at, int64_t tiles, int warp,
                       uint8_t* ring)
      : a_(a), line_(line), at_(at), left_(tiles), warp_(warp), ring_(ring) {
    if (left_ > 0) enter();
  }
  // Begins the copy of the next tile; an empty group behind the end.
  AD_DEVICE void next() {
    if (left_ > 0) {
      if (at_.unit == at_.end) {
        at_.next_head(a_, line_);
        enter();
      }
      copy(at_.unit * kDecodeUnit + warp_ * kTileKeys);
      ++at_.unit;
      --left_;
    }
    commit_copies();
    slot_ = slot_ + 1 == Shape::kStages ? 0 : slot_ + 1;
  }

 private:
  AD_DEVICE void enter() {
    const int len = line_.kv_len[at_.seq];
    first_ = first_key(a_, len - 1);
    end_ = len;
    kv_head_ = at_.head % a_.kv_heads;
    const int shift = a_.page_shift;
    reader_.start(a_, at_.seq, (at_.unit * kDecodeUnit) >> shift, (len + (1 << shift) - 1) >> shift);
  }
  AD_DEVICE void copy(int key) {
    const int page = key >> a_.page_shift;
    reader_.seek(page);
    const int this_page = reader_[page], next_page = a_.page_shift < 4 ? reader_[page + 1] : this_page;
    if (key >= end_ || key + kTileKeys <= first_) return;
    const int first = first_ - key, end = end_ - key - (a_.k.data ? 1 : 0);
    uint8_t* to = ring_ + slot_ * Shape::kStageBytes;
    copy_tile<kKeyLen>(
        to,
        tile_rows<kKeyLen>(a_.k_pages, a_.k_page_bytes, a_.page_shift, kv_head_, key, this_page, next_page),
        first, end);
    copy_tile<kValueLen>(
        to + Shape::kValuesAt,
        tile_rows<kValueLen>(a_.v_pages, a_.v_page_bytes, a_.page_shift, kv_head_, key, this_page, next_page),
        first, end);
  }

  const PagedAttention& a_;
  const Line& line_;
  Place at_;
  int64_t left_;
  const int warp_;
  uint8_t* const ring_;
  int slot_ = 0;
  int first_ = 0, end_ = 0, kv_head_ = 0;
  PageReader reader_;
};

// Of a warp's keys, for 16 query heads: a lane has rows lane / 4 and that + 8.
template <class T, int kKeyLen, int kValueLen>
struct WarpState {
  using Shape = DecodeShape<kKeyLen, kValueLen>;
  static constexpr int kSteps = kKeyLen / 16, kColumns = kValueLen / 8;

  uint32_t q[Shape::kSharedQueries ? 1 : kSteps][4];
  const uint8_t* shared_q;  // the lane's row for load_matrix_x4
  float o[kColumns][4];
  float most[2], sum[2];  // sum: of this lane's keys

  // `first` is the first of `rows` heads; `queries` is shared memory. A barrier of the block: behind it the
  // stages through which warps put a piece together are free again.
  AD_DEVICE void load_queries(const PagedAttention& a, int token, int first, int rows, uint8_t* queries) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    constexpr int kPieces = kKeyLen / 8;
    for (int i = static_cast<int>(threadIdx.x); i < kDecodeRows * kPieces; i += kThreads) {
      const int row = i / kPieces, piece = i % kPieces;
      Piece<T> x = {};
      if (row < rows)
        x = turned_piece(a.turn, a.q.row<const T>(token, first + row), a.q.wide, token, piece * 8);
      *reinterpret_cast<Piece<T>*>(queries + row * kRowBytes<kKeyLen> + piece * 16) = x;
    }
    __syncthreads();
    shared_q = queries + lane % 16 * kRowBytes<kKeyLen> + lane / 16 * 16;
    if constexpr (!Shape::kSharedQueries) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) load_matrix_x4(q[s], shared_q + s * 32);
    }
  }
  AD_DEVICE void clear() {
#pragma unroll
    for (int h = 0; h < 2; ++h) most[h] = kNoScore, sum[h] = 0;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) o[c][i] = 0;
    }
  }
  // 16 keys from `key` on, of which those in [first, end) are seen; keys and values lie in `stage`.
  AD_DEVICE void attend(const PagedAttention& a, const uint8_t* stage, int key, int first, int end,
                        int rows) {
    const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
    float s[2][4] = {};
    const uint8_t* keys = stage + ((lane & 7) + (lane >> 4) * 8) * kRowBytes<kKeyLen> + (lane >> 3 & 1) * 16;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      uint32_t k[4];
      load_matrix_x4(k, keys + i * 32);
      uint32_t(&step)[4] = q[Shape::kSharedQueries ? 0 : i];
      if constexpr (Shape::kSharedQueries) load_matrix_x4(step, shared_q + i * 32);
      mma_16x8x16<T>(s[0], step, {k[0], k[1]});
      mma_16x8x16<T>(s[1], step, {k[2], k[3]});
    }
    if (a.cap_inner > 0) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) s[j][i] = tanh_fast(s[j][i] * a.cap_inner);
      }
    }
    if (key < first || key + kTileKeys > end) {
      const int at = key + lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int own = at + j * 8 + i % 2;
          if (own < first || own >= end) s[j][i] = kNoScore;
        }
      }
    }
    // In two parts, so that they are as exact as float32 needs.
    uint32_t weights[4] = {}, rests[4] = {};
    weigh(a, s, 0, weights, rests);
    if (rows > 8) weigh(a, s, 1, weights, rests);
    const uint8_t* values = stage + Shape::kValuesAt +
                            ((lane & 7) + (lane >> 3 & 1) * 8) * kRowBytes<kValueLen> + (lane >> 4) * 16;
#pragma unroll
    for (int c = 0; c < kColumns; c += 2) {
      uint32_t v[4];
      load_matrix_x4_transposed(v, values + c * 16);
      mma_16x8x16<T>(o[c], weights, {v[0], v[1]});
      mma_16x8x16<T>(o[c + 1], weights, {v[2], v[3]});
      mma_16x8x16<T>(o[c], rests, {v[0], v[1]});
      mma_16x8x16<T>(o[c + 1], rests, {v[2], v[3]});
    }
  }

 private:
  // Row h of the lane's two: scores to weights, and what was before to the new maximum.
  AD_DEVICE void weigh(const PagedAttention& a, const float (&s)[2][4], int h, uint32_t (&weights)[4],
                       uint32_t (&rests)[4]) {
    float top = fmaxf(fmaxf(s[0][2 * h], s[0][2 * h + 1]), fmaxf(s[1][2 * h], s[1][2 * h + 1]));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2)) * a.scale_log2;
    const float now = fmaxf(most[h], top);
    if (__any_sync(kAllLanes, now > most[h])) {
      const float keep = now > most[h] ? exp2_fast(most[h] - now) : 1.0f;
      sum[h] *= keep;
#pragma unroll
      for (int c = 0; c < kColumns; ++c) o[c][2 * h] *= keep, o[c][2 * h + 1] *= keep;
      most[h] = now;
    }
    const float still = most[h] == kNoScore ? 0.0f : most[h];
    float w[2][2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        w[j][i] = exp2_fast(s[j][2 * h + i] * a.scale_log2 - still);
        sum[h] += w[j][i];
      }
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      weights[2 * j + h] = pack_pair<T>(w[j][0], w[j][1]);
      rests[2 * j + h] = pack_rest<T>(w[j][0], w[j][1], weights[2 * j + h]);
    }
  }
};

// Four neighbouring channels.
struct Run {
  float x[4] = {};

  AD_DEVICE void add(float share, const float4& v) {
    x[0] += share * v.x, x[1] += share * v.y, x[2] += share * v.z, x[3] += share * v.w;
  }
};

template <class T>
AD_DEVICE void store_run(const HeadRows& out, int64_t token, int64_t head, int channel, const Run& run,
                         float by) {
  T* to = out.row<T>(token, head) + channel;
  if (out.wide) {
    const uint2 bits = {pack_pair<T>(run.x[0] * by, run.x[1] * by),
                        pack_pair<T>(run.x[2] * by, run.x[3] * by)};
    *reinterpret_cast<uint2*>(to) = bits;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = from_float<T>(run.x[i] * by);
  }
}

// A block's part of a head: maxima and sums of kDecodeRows rows, then values [rows, kValueLen].
constexpr int kPartHead = 2 * kDecodeRows;
constexpr int kPartsTogether = 8;

template <class T, int kKeyLen, int kValueLen>
__global__ void __launch_bounds__(kThreads, DecodeShape<kKeyLen, kValueLen>::kBlocksPerSm)
    decode_kernel(const PagedAttention a, const int num_seqs) {
  using Shape = DecodeShape<kKeyLen, kValueLen>;
  AD_DYNAMIC_SHARED(uint8_t, shared);
  __shared__ float tops[kWarps][kDecodeRows], sums[kWarps][kDecodeRows];
  __shared__ int is_last;
  // The step's lengths and pages, and the keys and values of earlier steps, are there before the step begins;
  // those of an earlier layer are not.
  const bool early = a.k.data != nullptr;
  if (!early) wait_for_previous();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpSize, warp = thread / kWarpSize;
  int* before = reinterpret_cast<int*>(shared + Shape::kFixedBytes);
  int* kv_lens = before + num_seqs + 1;
  lay_out(a, num_seqs, before, kv_lens);

  const int head_tiles = (a.group + kDecodeRows - 1) / kDecodeRows;
  const Line line{before, kv_lens, num_seqs, a.kv_heads * head_tiles};
  const int64_t total = int64_t{before[num_seqs]} * line.heads;
  const int64_t share = max((total + gridDim.x - 1) / gridDim.x, int64_t{a.min_units});
  const int64_t begin = blockIdx.x * share, end = min(begin + share, total);
  if (begin >= end) return;

  uint8_t* ring = shared + warp * Shape::kStages * Shape::kStageBytes;
  Place at(a, line, begin);
  TileSource<kKeyLen, kValueLen> source(a, line, at, end - begin, warp, ring);
#pragma unroll
  for (int i = 0; i < Shape::kStages - 1; ++i) source.next();
  // Not earlier: what the next kernel asks for would come before these keys and values.
  let_next_start();
  if (early) wait_for_previous();

  WarpState<T, kKeyLen, kValueLen> state;
  int slot = 0;
  for (int64_t unit = begin;;) {
    // A piece: units of one head in this block's range.
    const int kv_len = kv_lens[at.seq], first = first_key(a, kv_len - 1);
    const int kv_head = at.head % a.kv_heads, first_row = at.head / a.kv_heads * kDecodeRows;
    const int first_head = kv_head * a.group + first_row, rows = min(kDecodeRows, a.group - first_row);
    const int count = static_cast<int>(min(int64_t{at.end - at.unit}, end - unit));
    // The new key and value come from the step's; the first of a key head's tiles puts them into their page.
    const bool has_fresh = a.k.data && at.unit + count == at.end, appends = has_fresh && first_row == 0;
    uint8_t *const fresh_key = shared + Shape::kFreshAt, *const fresh_value = fresh_key + kRowBytes<kKeyLen>;
    int last_page = 0;
    if (appends) last_page = a.pages[a.page_start[at.seq] + ((kv_len - 1) >> a.page_shift)];
    if (has_fresh && warp == (kv_len - 1) / kTileKeys % kWarps) {
      for (int c = lane; c < kKeyLen / 8; c += kWarpSize)
        *reinterpret_cast<Piece<T>*>(fresh_key + c * 16) =
            turned_piece(a.turn, a.k.row<const T>(at.seq, kv_head), a.k.wide, at.seq, c * 8);
      for (int c = lane; c < kValueLen / 8; c += kWarpSize)
        *reinterpret_cast<Piece<T>*>(fresh_value + c * 16) =
            load_piece(a.v.row<const T>(at.seq, kv_head) + c * 8, a.v.wide);
    }
    state.load_queries(a, at.seq, first_head, rows, shared + Shape::kRingBytes);
    state.clear();
    for (int i = 0; i < count; ++i) {
      source.next();  // into the stage of the tile before, which all lanes have read
      wait_copies<Shape::kStages - 1>();
      __syncwarp();
      const int key = (at.unit + i) * kDecodeUnit + warp * kTileKeys;
      uint8_t* stage = ring + slot * Shape::kStageBytes;
      if (key < kv_len && key + kTileKeys > first) {
        const int fresh = kv_len - 1 - key;
        if (has_fresh && fresh < kTileKeys) {
          for (int c = lane * 16; c < kKeyLen * 2; c += kWarpSize * 16)
            *reinterpret_cast<uint4*>(stage + fresh * kRowBytes<kKeyLen> + c) =
                *reinterpret_cast<const uint4*>(fresh_key + c);
          for (int c = lane * 16; c < kValueLen * 2; c += kWarpSize * 16)
            *reinterpret_cast<uint4*>(stage + Shape::kValuesAt + fresh * kRowBytes<kValueLen> + c) =
                *reinterpret_cast<const uint4*>(fresh_value + c);
          __syncwarp();
        }
        state.attend(a, stage, key, first, kv_len, rows);
        if (appends && fresh < kTileKeys) {
          const int64_t in_page =
              (int64_t{kv_head} << a.page_shift) + ((kv_len - 1) & ((1 << a.page_shift) - 1));
          uint8_t* k = a.k_pages + last_page * a.k_page_bytes + in_page * kKeyLen * 2;
          uint8_t* v = a.v_pages + last_page * a.v_page_bytes + in_page * kValueLen * 2;
          for (int c = lane * 16; c < kKeyLen * 2; c += kWarpSize * 16)
            *reinterpret_cast<uint4*>(k + c) = *reinterpret_cast<const uint4*>(fresh_key + c);
          for (int c = lane * 16; c < kValueLen * 2; c += kWarpSize * 16)
            *reinterpret_cast<uint4*>(v + c) = *reinterpret_cast<const uint4*>(fresh_value + c);
        }
      }
      __syncwarp();
      slot = slot + 1 == Shape::kStages ? 0 : slot + 1;
    }
    unit += count;

    // The warps' parts together, through the stages that they have read last.
    const int free_slot = slot == 0 ? Shape::kStages - 1 : slot - 1;
    {
      float* part = reinterpret_cast<float*>(ring + free_slot * Shape::kStageBytes);
      const int g = lane / 4, t = lane % 4;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float sum = state.sum[h];
        sum += __shfl_xor_sync(kAllLanes, sum, 1);
        sum += __shfl_xor_sync(kAllLanes, sum, 2);
        const int row = g + 8 * h;
        if (row >= rows) continue;
        if (t == 0) tops[warp][row] = state.most[h], sums[warp][row] = sum;
#pragma unroll
        for (int c = 0; c < kValueLen / 8; ++c)
          *reinterpret_cast<float2*>(part + row * Shape::kPartRow + c * 8 + 2 * t) =
              float2{state.o[c][2 * h], state.o[c][2 * h + 1]};
      }
    }
    __syncthreads();
    const int64_t head_begin = line.start(at.seq, at.head), head_end = head_begin + line.units(at.seq);
    const bool whole = head_begin >= begin && head_end <= end;
    const int part_floats = kPartHead + min(kDecodeRows, a.group) * kValueLen;
    const bool leads = unit - count == begin;  // a block leaves at most its first piece and its last one
    float* own_part = a.partials + (int64_t{blockIdx.x} * 2 + (leads ? 0 : 1)) * part_floats;
    constexpr int kRuns = kValueLen / 4;
    for (int i = thread; i < rows * kRuns; i += kThreads) {
      const int row = i / kRuns, channel = i % kRuns * 4;
      float most = kNoScore, sum = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) most = fmaxf(most, tops[w][row]);
      const float still = most == kNoScore ? 0.0f : most;
      Run run;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float* part =
            reinterpret_cast<const float*>(shared + (w * Shape::kStages + free_slot) * Shape::kStageBytes);
        const float weight = exp2_fast(tops[w][row] - still);
        sum += weight * sums[w][row];
        run.add(weight, *reinterpret_cast<const float4*>(part + row * Shape::kPartRow + channel));
      }
      if (whole) {
        store_run<T>(a.out, at.seq, first_head + row, channel, run,
                     inverse_sum<T>(a, at.seq, first_head + row, most, sum));
      } else {
        if (channel == 0) own_part[row] = most, own_part[kDecodeRows + row] = sum;
        *reinterpret_cast<float4*>(own_part + kPartHead + row * kValueLen + channel) =
            float4{run.x[0], run.x[1], run.x[2], run.x[3]};
      }
    }
    if (!whole) {
      const int64_t first_block = head_begin / share;
      const int blocks = static_cast<int>((head_end - 1) / share - first_block) + 1;
      __threadfence();
      __syncthreads();
      if (thread == 0) {
        int32_t* counter = a.counters + int64_t{at.seq} * line.heads + at.head;
        const int came = atomicAdd(counter, 1);
        is_last = came == blocks - 1;
        if (is_last) *counter = 0;
        __threadfence();
      }
      __syncthreads();
      if (is_last) {
        const auto part_of = [&](int i) {
          const int64_t block = first_block + i;
          const bool first_piece = i > 0 || head_begin == block * share;
          return a.partials + (block * 2 + (first_piece ? 0 : 1)) * part_floats;
        };
        for (int i = thread; i < rows * kRuns; i += kThreads) {
          const int row = i / kRuns, channel = i % kRuns * 4;
          float most = kNoScore, sum = 0;
          Run run;
          // Some parts' loads at a time: they take as long as one.
          for (int p = 0; p < blocks; p += kPartsTogether) {
            float tops_of[kPartsTogether], sums_of[kPartsTogether];
            float4 values_of[kPartsTogether];
#pragma unroll
            for (int u = 0; u < kPartsTogether; ++u) {
              tops_of[u] = kNoScore, sums_of[u] = 0, values_of[u] = {0, 0, 0, 0};
              if (p + u >= blocks) continue;
              const float* part = part_of(p + u);
              tops_of[u] = __ldcg(part + row), sums_of[u] = __ldcg(part + kDecodeRows + row);
              values_of[u] =
                  __ldcg(reinterpret_cast<const float4*>(part + kPartHead + row * kValueLen + channel));
            }
            float now = most;
#pragma unroll
            for (int u = 0; u < kPartsTogether; ++u) now = fmaxf(now, tops_of[u]);
            const float still = now == kNoScore ? 0.0f : now, keep = exp2_fast(most - still);
            sum *= keep;
#pragma unroll
            for (int k = 0; k < 4; ++k) run.x[k] *= keep;
#pragma unroll
            for (int u = 0; u < kPartsTogether; ++u) {
              const float weight = exp2_fast(tops_of[u] - still);
              sum += weight * sums_of[u];
              run.add(weight, values_of[u]);
            }
            most = now;
          }
          store_run<T>(a.out, at.seq, first_head + row, channel, run,
                       inverse_sum<T>(a, at.seq, first_head + row, most, sum));
        }
      }
    }
    if (unit == end) break;
    at.next_head(a, line);
  }
}

}  // namespace

int decode_blocks(int key_len, int value_len) {
  int per_sm = 1;
  dispatch_widths(key_len, value_len, [&](auto k, auto v) { per_sm = DecodeShape<k, v>::kBlocksPerSm; });
  return per_sm * num_multiprocessors();
}

int64_t decode_partial_floats(int blocks, int value_len, int group) {
  return int64_t{blocks} * 2 * (kPartHead + std::min(kDecodeRows, group) * value_len);
}

bool prepare_decode(DType dtype, int key_len, int value_len) {
  bool ready = false;
  dispatch_widths(key_len, value_len, [&](auto k, auto v) {
    dispatch_half(dtype, [&](auto t) {
      ready = allow_shared(decode_kernel<typename decltype(t)::type, k, v>,
                           shared_bytes<DecodeShape<k, v>>(kMaxDecodeSeqs));
    });
  });
  return ready;
}

void launch_decode(DType dtype, int key_len, int value_len, const PagedAttention& a, int num_seqs, int blocks,
                   Stream stream) {
  if (num_seqs == 0) return;
  dispatch_widths(key_len, value_len, [&](auto k, auto v) {
    dispatch_half(dtype, [&](auto t) {
      const LaunchConfig config{dim3(static_cast<unsigned>(blocks)), dim3(kThreads), stream,
                                shared_bytes<DecodeShape<k, v>>(num_seqs), true};
      launch(config, decode_kernel<typename decltype(t)::type, k, v>, a, num_seqs);
    });
  });
}

}  // namespace autodeploy::cuda
