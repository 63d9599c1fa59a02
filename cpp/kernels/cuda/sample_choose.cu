// Choosing tokens, a block of threads for each row: which tokens top_k, top_p and min_p leave, the draw, and
// log probabilities. Nothing is sorted: thresholds are found digit by digit in histograms. Blocks of tokens
// whose largest logit is below a threshold are passed over, which leaves few in most rows. Histograms count
// and add integers, so that the order of their atomics makes no difference.
#include "kernels/cuda/sample_row.h"

namespace autodeploy::cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / kWarpSize;
constexpr int kBins = 4096;
constexpr uint32_t kAll = 0xffffffffu;
constexpr int kPerLane = kSampleBlock / kWarpSize;

struct Place {
  int at;         // -1: no item has any weight
  double before;  // the weight of those before it
};

struct Shared {
  uint32_t bins[kBins];
  double sums[kWarps + 1];
  Place place;
  int first, last;
  int token;
  int num_listed;
  SampleParams params;
  float listed_value[kMaxTopLogprobs];
  int listed_token[kMaxTopLogprobs];
};

AD_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
AD_DEVICE int lane_index() { return static_cast<int>(threadIdx.x) % kWarpSize; }
AD_DEVICE int warp_index() { return static_cast<int>(threadIdx.x) / kWarpSize; }

AD_DEVICE double scan_warp(double v) {
#pragma unroll
  for (int d = 1; d < kWarpSize; d *= 2) {
    const double up = __shfl_up_sync(kAll, v, d);
    if (lane_index() >= d) v += up;
  }
  return v;
}

// The sum over the threads before this one, and over all. `sums` may be used again after the call.
AD_DEVICE double scan_block(double v, double* sums, double* total) {
  const double inclusive = scan_warp(v);
  if (lane_index() == kWarpSize - 1) sums[warp_index()] = inclusive;
  __syncthreads();
  if (warp_index() == 0) {
    const double warps = scan_warp(sums[lane_index()]);
    double before = __shfl_up_sync(kAll, warps, 1);
    if (lane_index() == 0) before = 0;
    __syncwarp();
    sums[lane_index()] = before;
    if (lane_index() == kWarpSize - 1) sums[kWarps] = warps;
  }
  __syncthreads();
  double exclusive = __shfl_up_sync(kAll, inclusive, 1);
  if (lane_index() == 0) exclusive = 0;
  const double result = sums[warp_index()] + exclusive;
  *total = sums[kWarps];
  __syncthreads();
  return result;
}

// Of items with weights >= 0, the first at which the sum from the beginning passes target(total): is at least
// that (kReach) or more; else the last that has any weight. Counts are exact in float64.
template <bool kReach, class Weight, class Target>
AD_DEVICE Place find_place(int n, Weight weight, Target target_of, Shared& s) {
  const int per = (n + kThreads - 1) / kThreads, begin = thread_index() * per, end = min(n, begin + per);
  double sum = 0;
#pragma unroll 1
  for (int i = begin; i < end; ++i) sum += weight(i);
  if (thread_index() == 0) {
    s.first = kThreads;
    s.last = -1;
    s.place = {-1, 0.0};
  }
  double total;
  const double before = scan_block(sum, s.sums, &total);
  const double target = target_of(total);
  const auto passes = [&](double v) { return kReach ? v >= target : v > target; };
  // The first thread is looked for rather than a thread that the target falls into, since rounding may
  // leave gaps between the threads' ranges.
  const uint32_t any = __ballot_sync(kAll, sum > 0);
  const uint32_t passing = __ballot_sync(kAll, sum > 0 && passes(before + sum));
  if (lane_index() == 0) {
    if (passing) atomicMin(&s.first, warp_index() * kWarpSize + __ffs(passing) - 1);
    if (any) atomicMax(&s.last, warp_index() * kWarpSize + kWarpSize - 1 - __clz(any));
  }
  __syncthreads();
  if (thread_index() == (s.first < kThreads ? s.first : s.last)) {
    Place place{-1, before};
    double here = before;
#pragma unroll 1
    for (int i = begin; i < end; ++i) {
      const double w = weight(i);
      if (!(w > 0)) continue;
      place = {i, here};
      here += w;
      if (passes(here)) break;
    }
    s.place = place;
  }
  __syncthreads();
  const Place place = s.place;
  __syncthreads();
  return place;
}

AD_DEVICE void clear_bins(int n, Shared& s) {
  for (int i = thread_index(); i < n; i += kThreads) s.bins[i] = 0;
  __syncthreads();
}

// Calls f(b), by all lanes of a warp, for the blocks of tokens with active(b), which a single lane asks.
template <class Active, class F>
AD_DEVICE void for_blocks(int num_blocks, Active active, F f) {
  for (int base = 0; base < num_blocks; base += kThreads) {
    const int mine = base + lane_index() * kWarps + warp_index();
    uint32_t mask = __ballot_sync(kAll, mine < num_blocks && active(mine));
    while (mask != 0) {
      const int b = base + (__ffs(mask) - 1) * kWarps + warp_index();
      mask &= mask - 1;
      f(b);
    }
  }
}

// Calls f(i, x) for the tokens of block b.
template <class Value, class F>
AD_DEVICE void for_tokens_of(int b, int vocab, Value value, F f) {
  constexpr int kLoads = 4;  // at once; more take registers that others need
#pragma unroll 1
  for (int begin = b * kSampleBlock + lane_index(), end = (b + 1) * kSampleBlock; begin < end;
       begin += kLoads * kWarpSize) {
    float x[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int i = begin + j * kWarpSize;
      if (i < vocab) x[j] = value(i);
    }
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      const int i = begin + j * kWarpSize;
      if (i < vocab) f(i, x[j]);
    }
  }
}

// Calls f(i, x) for the tokens of the blocks with active(b).
template <class Active, class Value, class F>
AD_DEVICE void for_tokens(int vocab, Active active, Value value, F f) {
  for_blocks(sample_blocks(vocab), active, [&](int b) { for_tokens_of(b, vocab, value, f); });
}

// The same, with f's results of a block of tokens summed up as sums[b], 0 for other blocks.
template <class Active, class Value, class F>
AD_DEVICE void sum_blocks(int vocab, Active active, Value value, F f, double* sums) {
  const auto is_active = [&](int b) {
    const bool result = active(b);
    if (!result) sums[b] = 0;
    return result;
  };
  for_blocks(sample_blocks(vocab), is_active, [&](int b) {
    double sum = 0;
    for_tokens_of(b, vocab, value, [&](int i, float x) { sum += f(i, x); });
    sum = warp_sum_double(sum);
    if (lane_index() == 0) sums[b] = sum;
  });
  __syncthreads();
}

// The token of block `place.at` at which the sum of weights, in order of tokens and from place.before on,
// passes the target, as in find_place; -1 where place.at is.
template <bool kReach, class Weight>
AD_DEVICE int find_token(int vocab, Place place, double target, Weight weight, Shared& s) {
  if (warp_index() == 0 && place.at >= 0) {
    const int begin = place.at * kSampleBlock + lane_index() * kPerLane, end = min(vocab, begin + kPerLane);
    double sum = 0;
#pragma unroll 1
    for (int i = begin; i < end; ++i) sum += weight(i);
    const double inclusive = scan_warp(sum);
    double here = __shfl_up_sync(kAll, inclusive, 1);
    here = place.before + (lane_index() == 0 ? 0 : here);
    const auto passes = [&](double v) { return kReach ? v >= target : v > target; };
    const uint32_t any = __ballot_sync(kAll, sum > 0);
    const uint32_t passing = __ballot_sync(kAll, sum > 0 && passes(here + sum));
    const int owner = passing ? __ffs(passing) - 1 : kWarpSize - 1 - __clz(any);
    if (lane_index() == owner) {
      int token = -1;
#pragma unroll 1
      for (int i = begin; i < end && !(token >= 0 && passes(here)); ++i) {
        const double w = weight(i);
        if (!(w > 0)) continue;
        token = i;
        here += w;
      }
      s.token = token;
    }
  }
  __syncthreads();
  const int token = place.at >= 0 ? s.token : -1;
  __syncthreads();
  return token;
}

// The key of the k-th largest of the keys that each(f) calls f for, k >= 1 and at most their number; after
// two digits of three a lower bound of it.
template <class Each>
AD_DEVICE uint32_t kth_largest(int num_digits, uint32_t k, Each each, Shared& s) {
  uint32_t prefix = 0, mask = 0, left = k;
  for (int digit = 0; digit < num_digits; ++digit) {
    const int shift = digit == 0 ? 21 : digit == 1 ? 10 : 0, width = digit < 2 ? 11 : 10;
    const int bins = 1 << width;
    clear_bins(bins, s);
    each([&](uint32_t key) {
      if ((key & mask) == prefix) atomicAdd(&s.bins[key >> shift & static_cast<uint32_t>(bins - 1)], 1u);
    });
    __syncthreads();
    const Place place = find_place<true>(
        bins, [&](int q) { return static_cast<double>(s.bins[bins - 1 - q]); },
        [&](double) { return static_cast<double>(left); }, s);
    left -= static_cast<uint32_t>(place.before);
    prefix |= static_cast<uint32_t>(bins - 1 - place.at) << shift;
    mask |= static_cast<uint32_t>(bins - 1) << shift;
  }
  return prefix;
}

// The same of a row's logits, whose largest in each block of tokens are block_max.
template <class Value>
AD_DEVICE uint32_t kth_largest_logit(int vocab, int k, const float* block_max, Value value, Shared& s) {
  const int num_blocks = sample_blocks(vocab);
  uint32_t bound = 0;
  // The k-th largest of the blocks' largest is no larger than the k-th largest of all.
  if (k <= num_blocks) {
    bound = kth_largest(
        2, static_cast<uint32_t>(k),
        [&](auto f) {
          for (int b = thread_index(); b < num_blocks; b += kThreads) f(key_of(block_max[b]));
        },
        s);
  }
  return kth_largest(
      3, static_cast<uint32_t>(k),
      [&](auto f) {
        for_tokens(
            vocab, [&](int b) { return key_of(block_max[b]) >= bound; }, value,
            [&](int, float x) {
              const uint32_t key = key_of(x);
              if (key >= bound) f(key);
            });
      },
      s);
}

// 2^-o in float64, o in [0, 200].
AD_DEVICE double power_of_half(int o) { return ldexp(1.0, -o); }

template <class T>
class Chooser {
 public:
  AD_DEVICE Chooser(const SampleCall& call, int row, const SampleParams& p, float max, Shared& s)
      : call_(call),
        row_(row),
        p_(p),
        max_(max),
        logits_(call, row, p),
        block_max_(call.memory.block_max + static_cast<int64_t>(row) * call.num_blocks()),
        block_sum_(call.memory.block_sum + static_cast<int64_t>(row) * call.num_blocks()),
        s_(s) {}

  // A token of what the filters leave.
  AD_DEVICE int draw() {
    const bool filtered = p_.top_k > 0 || p_.top_p < 1 || p_.min_p > 0;
    if (p_.top_k > 0) {
      lowest_key_ =
          kth_largest_logit(call_.vocab, p_.top_k, block_max_, [&](int i) { return logits_.edited(i); }, s_);
    }
    if (p_.top_p < 1) apply_top_p();
    if (p_.min_p > lowest_) lowest_ = p_.min_p;
    const auto kept = [&](int i, float x) -> double {
      const float w = weight(x);
      const bool keep = key_of(x) >= lowest_key_ && w >= lowest_ && !(w == tied_ && i > last_tied_);
      return keep ? static_cast<double>(w) : 0.0;
    };
    if (filtered) {
      sum_blocks(
          call_.vocab, [&](int b) { return may_hold(b); }, [&](int i) { return logits_.edited(i); }, kept,
          block_sum_);
    }
    double target = 0;
    const Place place = find_place<false>(
        call_.num_blocks(), [&](int b) { return block_sum_[b]; },
        [&](double total) { return target = p_.uniform * total; }, s_);
    return find_token<false>(
        call_.vocab, place, target, [&](int i) { return kept(i, logits_.edited(i)); }, s_);
  }

  AD_DEVICE void logprobs(int token) {
    const float* largest = call_.memory.raw_block_max + static_cast<int64_t>(row_) * call_.num_blocks();
    const auto raw = [&](int i) { return logits_.raw(i); };
    // Of all chunks, by each warp for itself.
    const int64_t chunks = static_cast<int64_t>(row_) * call_.num_chunks();
    float raw_max = -INFINITY;
    for (int c = lane_index(); c < call_.num_chunks(); c += kWarpSize)
      raw_max = fmaxf(raw_max, call_.memory.chunk_raw_max[chunks + c]);
    raw_max = warp_max(raw_max);
    double total = 0;
#pragma unroll 1
    for (int c = lane_index(); c < call_.num_chunks(); c += kWarpSize) {
      const float chunk_max = call_.memory.chunk_raw_max[chunks + c];
      if (chunk_max == -INFINITY) continue;
      total += call_.memory.chunk_raw_sum[chunks + c] *
               exp(static_cast<double>(chunk_max) - static_cast<double>(raw_max));
    }
    const double log_total = log(warp_sum_double(total));
    const auto logprob = [&](float x) {
      return static_cast<float>(static_cast<double>(x) - static_cast<double>(raw_max) - log_total);
    };

    const float chosen = raw(token);
    double above = 0, num_above;
    for_tokens(
        call_.vocab, [&](int b) { return largest[b] > chosen; }, raw,
        [&](int, float x) { above += x > chosen ? 1.0 : 0.0; });
    scan_block(above, s_.sums, &num_above);
    const int num_top = min(p_.num_top, call_.vocab);
    if (thread_index() == 0) {
      call_.heads()[row_] = {token, 1 + static_cast<int>(num_above), logprob(chosen), num_top};
    }
    if (num_top <= 0) return;

    // All that are larger than the num_top-th, and of its equals the first ones.
    const uint32_t kth =
        num_top < call_.vocab ? kth_largest_logit(call_.vocab, num_top, largest, raw, s_) : 0;
    const auto active = [&](int b) { return key_of(largest[b]) >= kth; };
    if (thread_index() == 0) s_.num_listed = 0;
    __syncthreads();
    const auto list = [&](int i, float x) {
      const int at = atomicAdd(&s_.num_listed, 1);
      if (at >= kMaxTopLogprobs) return;
      s_.listed_value[at] = x;
      s_.listed_token[at] = i;
    };
    int last_tied = call_.vocab;
    if (kth > 0) {
      sum_blocks(
          call_.vocab, active, raw,
          [&](int i, float x) {
            const uint32_t key = key_of(x);
            if (key > kth) list(i, x);
            return key == kth ? 1.0 : 0.0;
          },
          block_sum_);
      const double missing = num_top - s_.num_listed;
      const Place place = find_place<true>(
          call_.num_blocks(), [&](int b) { return block_sum_[b]; }, [&](double) { return missing; }, s_);
      last_tied = find_token<true>(
          call_.vocab, place, missing, [&](int i) { return key_of(raw(i)) == kth ? 1.0 : 0.0; }, s_);
    }
    for_tokens(call_.vocab, active, raw, [&](int i, float x) {
      if (kth == 0 || (key_of(x) == kth && i <= last_tied)) list(i, x);
    });
    __syncthreads();
    const int i = thread_index();
    if (i >= num_top) return;
    const float x = s_.listed_value[i];
    const int t = s_.listed_token[i];
    int rank = 0;
#pragma unroll 1
    for (int j = 0; j < num_top; ++j) {
      const float other = s_.listed_value[j];
      rank += other > x || (other == x && s_.listed_token[j] < t);
    }
    call_.tops(row_)[rank] = {t, logprob(x)};
  }

 private:
  AD_DEVICE float weight(float x) const { return weight_of(x, max_, p_.scale); }
  // Whether a block of tokens may hold one that is left. A little slack, should weights that differ in the
  // last bit not be in the order of the logits.
  AD_DEVICE bool may_hold(int b) const {
    const float largest = block_max_[b];
    return key_of(largest) >= lowest_key_ && weight(largest) >= lowest_ * 0.999999f;
  }

  // Finds the smallest set of most likely tokens with a mass of top_p: the least weight in it, lowest_, and
  // of the tokens of that weight the last.
  AD_DEVICE void apply_top_p() {
    U64* masses = reinterpret_cast<U64*>(s_.bins);  // sums of mantissas, an octave each
    static_assert(sizeof(U64) * kSampleOctaves <= sizeof(Shared::bins));
    double total = 0;
    if (p_.top_k > 0) {
      clear_bins(2 * kSampleOctaves, s_);
      for_tokens(
          call_.vocab, [&](int b) { return key_of(block_max_[b]) >= lowest_key_; },
          [&](int i) { return logits_.edited(i); },
          [&](int, float x) {
            const uint32_t u = __float_as_uint(weight(x));
            if (u == 0 || key_of(x) < lowest_key_) return;
            const int octave = min(127 - static_cast<int>(u >> 23), kSampleOctaves - 1);
            atomicAdd(&masses[octave], static_cast<U64>((u & 0x7fffffu) | 0x800000u));
          });
      __syncthreads();
#pragma unroll 1
      for (int o = kSampleOctaves; o-- > 0;) total += octave_mass(masses[o], o);
    } else {
      if (thread_index() < kSampleOctaves) {
        const U64* chunks =
            call_.memory.octaves + static_cast<int64_t>(row_) * call_.num_chunks() * kSampleOctaves;
        U64 mass = 0;
        for (int c = 0; c < call_.num_chunks(); ++c) mass += chunks[c * kSampleOctaves + thread_index()];
        masses[thread_index()] = mass;
      }
      double sum = 0;
      for (int b = thread_index(); b < call_.num_blocks(); b += kThreads) sum += block_sum_[b];
      scan_block(sum, s_.sums, &total);  // also makes masses visible
    }
    const double mass = p_.top_p * total;
    double above = 0;
    int octave = 0;
#pragma unroll 1
    for (; octave < kSampleOctaves; ++octave) {
      const double here = octave_mass(masses[octave], octave);
      if (here > 0 && above + here >= mass) break;
      above += here;
    }
    __syncthreads();  // bins are used again
    // All tokens are needed, or the rounding of sums decides.
    if (octave >= kSampleOctaves - 1) return;

    // Within the octave by the upper 11 bits of the mantissa: how many, and the sum of the lower 12 bits.
    constexpr int kUpper = 2048, kLowerBits = 12;
    static_assert(2 * kUpper <= kBins && 1 << kLowerBits <= kBins);
    lowest_ = __uint_as_float(static_cast<uint32_t>(127 - octave) << 23);
    clear_bins(2 * kUpper, s_);
    const auto for_kept = [&](auto f) {
      for_tokens(
          call_.vocab, [&](int b) { return may_hold(b); }, [&](int i) { return logits_.edited(i); },
          [&](int i, float x) {
            if (key_of(x) >= lowest_key_) f(i, __float_as_uint(weight(x)));
          });
    };
    const double unit = power_of_half(octave + 23);
    const auto exponent = static_cast<uint32_t>(127 - octave);
    for_kept([&](int, uint32_t u) {
      if (u >> 23 != exponent) return;
      const uint32_t bin = u >> kLowerBits & (kUpper - 1);
      atomicAdd(&s_.bins[bin], 1u);
      atomicAdd(&s_.bins[kUpper + bin], u & ((1u << kLowerBits) - 1));
    });
    __syncthreads();
    const auto upper_mass = [&](int q) {
      const auto bin = static_cast<uint32_t>(kUpper - 1 - q);
      const double count = s_.bins[bin], lower = s_.bins[kUpper + bin];
      return (count * static_cast<double>(0x800000u | bin << kLowerBits) + lower) * unit;
    };
    Place place = find_place<true>(kUpper, upper_mass, [&](double) { return mass - above; }, s_);
    above += place.before;
    const uint32_t prefix = exponent << 11 | static_cast<uint32_t>(kUpper - 1 - place.at);

    // And by the lower bits.
    lowest_ = __uint_as_float(prefix << kLowerBits);
    clear_bins(1 << kLowerBits, s_);
    for_kept([&](int, uint32_t u) {
      if (u >> kLowerBits == prefix) atomicAdd(&s_.bins[u & ((1u << kLowerBits) - 1)], 1u);
    });
    __syncthreads();
    const auto value_of = [&](int q) {
      return __uint_as_float(prefix << kLowerBits | static_cast<uint32_t>((1 << kLowerBits) - 1 - q));
    };
    place = find_place<true>(
        1 << kLowerBits,
        [&](int q) {
          return static_cast<double>(s_.bins[(1 << kLowerBits) - 1 - q]) * static_cast<double>(value_of(q));
        },
        [&](double) { return mass - above; }, s_);
    above += place.before;
    lowest_ = value_of(place.at);
    const double count = s_.bins[(1 << kLowerBits) - 1 - place.at];
    __syncthreads();  // bins are used again
    double needed = ceil((mass - above) / static_cast<double>(lowest_));
    if (needed < 1) needed = 1;
    if (needed >= count) return;

    // Of equal ones the first.
    const auto is_tied = [&](float x) {
      return key_of(x) >= lowest_key_ && weight(x) == lowest_ ? 1.0 : 0.0;
    };
    sum_blocks(
        call_.vocab, [&](int b) { return may_hold(b); }, [&](int i) { return logits_.edited(i); },
        [&](int, float x) { return is_tied(x); }, block_sum_);
    place = find_place<true>(
        call_.num_blocks(), [&](int b) { return block_sum_[b]; }, [&](double) { return needed; }, s_);
    last_tied_ =
        find_token<true>(call_.vocab, place, needed, [&](int i) { return is_tied(logits_.edited(i)); }, s_);
    tied_ = lowest_;
  }

  AD_DEVICE static double octave_mass(U64 mantissas, int octave) {
    return static_cast<double>(mantissas) * power_of_half(octave + 23);
  }

  const SampleCall& call_;
  const int row_;
  const SampleParams& p_;
  const float max_;
  const RowLogits<T> logits_;
  const float* block_max_;
  double* block_sum_;
  Shared& s_;
  // What is left: logits of at least this key, weights of at least lowest_, and of those of weight tied_ the
  // tokens up to last_tied_.
  uint32_t lowest_key_ = 0;
  float lowest_ = 0, tied_ = -1;
  int last_tied_ = -1;
};

template <class T>
__global__ void __launch_bounds__(kThreads) choose_kernel(const __grid_constant__ SampleCall call) {
  __shared__ Shared shared;
  wait_for_previous();
  let_next_start();
  const int row = static_cast<int>(blockIdx.x);
  if (row >= call.header().num_rows) return;
  // Kept here rather than in registers.
  if (thread_index() == 0) shared.params = call.params(row);
  __syncthreads();
  const SampleParams& p = shared.params;
  const U64 best = best_of_chunks(call.memory.chunk_best + static_cast<int64_t>(row) * call.num_chunks(),
                                  call.num_chunks());
  int token = -1;
  if (is_choosable(best)) {
    Chooser<T> chooser(call, row, p, best_value(best), shared);
    token = p.flags & kSampleGreedy ? best_token(best) : chooser.draw();
    if (p.num_top >= 0 && token >= 0) chooser.logprobs(token);
  }
  if (thread_index() != 0) return;
  call.memory.sampled[row] = token;
  if (p.num_top < 0 || token < 0) call.heads()[row] = {token, 0, 0.0f, 0};
  if (token >= 0 && (p.flags & kSamplePenalty))
    call.memory.counts[static_cast<int64_t>(p.slot) * call.vocab + token] += 1;
}

}  // namespace

void launch_choose(Stream stream, const SampleCall& call, DType dtype) {
  dispatch_act(dtype, [&](auto t) {
    launch({dim3(static_cast<unsigned>(call.rows)), dim3(kThreads), stream, 0, true},
           choose_kernel<typename decltype(t)::type>, call);
  });
}

}  // namespace autodeploy::cuda
