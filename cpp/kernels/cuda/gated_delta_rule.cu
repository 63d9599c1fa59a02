// gated_delta_rule: linear attention with a memory that is corrected and decays (arXiv:2412.06464,
// arXiv:2510.26692), token by token. The columns of a head's memory, one for each channel of v, do not depend
// on each other and stay in registers: state [Hv, Dv, Dk]. A block takes some columns of a head of a
// sequence; q and k of some tokens at a time are normalised into shared memory.
#include <cmath>

#include "kernels/cpu/mixer_checks.h"
#include "kernels/cuda/float_view.h"
#include "kernels/cuda/slots.h"
#include "kernels/cuda/spec.h"
#include "kernels/cuda/state_row.h"

namespace autodeploy::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / kWarpSize;

struct DeltaArgs {
  SlotStep step;
  FloatView q, k, v, g, beta, y;
  SlotComponent state;
  int width = 0, columns = 0;  // channels of k, of v
  int key_group = 1;           // value heads of a key head
  bool l2norm = false;
  float scale = 0, eps = 0;
};

// What a block works on at a time, in shared memory.
template <class Row, bool kChannels>
struct DeltaTile {
  static constexpr int kTokens = Row::kWidth <= 256    ? 8
                                 : Row::kWidth <= 512  ? 4
                                 : Row::kWidth <= 1024 ? 2
                                                       : 1;
  static constexpr int kColumns = kThreads / Row::kLanes;
  static constexpr int kVectors = kChannels ? 3 : 2;  // k, q, decays of channels
  static constexpr int kFloats = kTokens * (kVectors * Row::kWidth + kColumns + 3);

  float *keys, *queries, *decays, *values, *marks;  // marks: decay, beta and q . k of each token

  AD_DEVICE explicit DeltaTile(float* shared)
      : keys(shared),
        queries(keys + kTokens * Row::kWidth),
        decays(queries + kTokens * Row::kWidth),
        values(shared + kTokens * kVectors * Row::kWidth),
        marks(values + kTokens * kColumns) {}

  // A warp for each token.
  AD_DEVICE void load(const DeltaArgs& a, int64_t first, int tokens, int head, int first_column) {
    const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpSize, warp = thread / kWarpSize;
    const int key_head = head / a.key_group;
    for (int t = warp; t < tokens; t += kWarps) {
      const int64_t token = first + t;
      float *k = keys + t * Row::kWidth, *q = queries + t * Row::kWidth;
      float k_square = 0, q_square = 0, product = 0;
      for (int c = lane; c < Row::kWidth; c += kWarpSize) {
        const float x = c < a.width ? a.k.at(token, key_head, c) : 0.0f;
        const float z = c < a.width ? a.q.at(token, key_head, c) : 0.0f;
        k[c] = x, q[c] = z;
        k_square += x * x, q_square += z * z, product += x * z;
        if constexpr (kChannels)
          decays[t * Row::kWidth + c] = c < a.width ? expf(a.g.at(token, head, c)) : 0.0f;
      }
      product = warp_sum(product);
      if (a.l2norm) {
        const float by_k = 1.0f / sqrtf(warp_sum(k_square) + a.eps);
        const float by_q = 1.0f / sqrtf(warp_sum(q_square) + a.eps);
        for (int c = lane; c < Row::kWidth; c += kWarpSize) k[c] *= by_k, q[c] *= by_q;
        product *= by_k * by_q;
      }
      if (lane == 0) {
        marks[3 * t] = !kChannels && a.g.data ? expf(a.g.at(token, head)) : 1.0f;
        marks[3 * t + 1] = a.beta.at(token, head);
        marks[3 * t + 2] = product;
      }
    }
    for (int i = thread; i < tokens * kColumns; i += kThreads) {
      const int column = first_column + i % kColumns;
      values[i] = column < a.columns ? a.v.at(first + i / kColumns, head, column) : 0.0f;
    }
  }
};

template <class Row, bool kChannels>
__global__ void __launch_bounds__(kThreads) delta_kernel(DeltaArgs a) {
  using Tile = DeltaTile<Row, kChannels>;
  AD_DYNAMIC_SHARED(float, shared);
  wait_for_previous();
  let_next_start();
  Tile tile(shared);
  const int seq = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.z);
  const int first_column = static_cast<int>(blockIdx.y) * Tile::kColumns;
  const int own = static_cast<int>(threadIdx.x) / Row::kLanes, column = first_column + own;
  const bool aligned = a.width % 4 == 0, exists = column < a.columns;
  float* state = a.state.of<float>(a.step.slot[seq]) + (int64_t{head} * a.columns + column) * a.width;
  Row s;
  s.clear();
  if (exists && a.step.has_state[seq]) s.load(state, a.width, aligned);
  const int64_t stop = a.step.query_start[seq + 1];
  for (int64_t first = a.step.query_start[seq]; first < stop; first += Tile::kTokens) {
    const int tokens = static_cast<int>(min(int64_t{Tile::kTokens}, stop - first));
    tile.load(a, first, tokens, head, first_column);
    __syncthreads();
    for (int t = 0; t < tokens; ++t) {
      const float decay = tile.marks[3 * t], beta = tile.marks[3 * t + 1];
      float found[2] = {}, read[2] = {};
#pragma unroll
      for (int p = 0; p < Row::kPacks; ++p) {
        const auto k = Row::part(tile.keys + t * Row::kWidth, p),
                   q = Row::part(tile.queries + t * Row::kWidth, p);
        Pack<float, 4> keep = {{decay, decay, decay, decay}};
        if constexpr (kChannels) keep = Row::part(tile.decays + t * Row::kWidth, p);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          s.x[p][i] *= keep.x[i];
          found[i % 2] += k.x[i] * s.x[p][i];
          read[i % 2] += q.x[i] * s.x[p][i];
        }
      }
      const float change = beta * (tile.values[t * Tile::kColumns + own] - Row::sum(found[0] + found[1]));
      // What q reads of the memory before the change, and of the change.
      const float y = Row::sum(read[0] + read[1]) + tile.marks[3 * t + 2] * change;
#pragma unroll
      for (int p = 0; p < Row::kPacks; ++p) {
        const auto k = Row::part(tile.keys + t * Row::kWidth, p);
#pragma unroll
        for (int i = 0; i < 4; ++i) s.x[p][i] += k.x[i] * change;
      }
      if (exists && Row::lane() == 0) a.y.set(first + t, head, column, a.scale * y);
    }
    __syncthreads();
  }
  if (exists) s.store(state, a.width, aligned);
}

struct DeltaState {
  bool l2norm = false, per_channel = false;
  float scale = 0, eps = 0;
};

void run_delta(const DeltaState& s, const KernelCall& call) {
  const TensorView &k = call.in[1], &v = call.in[2];
  DeltaArgs a;
  a.step = SlotStep(*call.device);
  a.q = FloatView(call.in[0]), a.k = FloatView(k), a.v = FloatView(v), a.y = FloatView(call.out[0]);
  a.g = FloatView(call.in[3]), a.beta = FloatView(call.in[4]);
  a.state = SlotComponent(*call.states[0], 0);
  a.width = static_cast<int>(k.shape[2]), a.columns = static_cast<int>(v.shape[2]);
  a.key_group = static_cast<int>(v.shape[1] / k.shape[1]);
  a.l2norm = s.l2norm, a.scale = s.scale, a.eps = s.eps;
  const auto run = [&](auto row, auto per_channel) {
    constexpr bool kChannels = decltype(per_channel)::value;
    using Tile = DeltaTile<decltype(row), kChannels>;
    static_assert(Tile::kFloats * sizeof(float) <= 48 * 1024);
    const dim3 grid(static_cast<unsigned>(call.device->num_seqs), blocks_for(a.columns, Tile::kColumns),
                    static_cast<unsigned>(v.shape[1]));
    launch({grid, dim3(kThreads), stream_of(call), Tile::kFloats * sizeof(float), true},
           delta_kernel<decltype(row), kChannels>, a);
  };
  dispatch_state_row(a.width, [&](auto row) {
    if (s.per_channel)
      run(row, std::true_type{});
    else
      run(row, std::false_type{});
  });
}

}  // namespace

std::unique_ptr<Kernel> make_gated_delta_rule(const KernelSpec& spec, std::string* why) {
  check_gated_delta_rule(spec);
  if (!all_float(spec, {0, 1, 2, 3, 4}, why)) return nullptr;
  if (!state_rows_fit(spec.in[2].shape[1].constant, spec.in[1].shape[2].constant, why)) return nullptr;
  const DeltaState state{spec.attrs.boolean("l2norm"), spec.in[3].present && spec.in[3].shape.size() == 3,
                         static_cast<float>(spec.attrs.number("scale")),
                         static_cast<float>(spec.attrs.number("eps"))};
  return make_function_kernel("gated_delta_rule.plain", state, run_delta);
}

}  // namespace autodeploy::cuda
