// selective_scan: the state space recurrence of Mamba (Gu and Dao 2023, arXiv:2312.00752), token by token. A
// channel's states stay in registers: state [C, N]. A block takes some channels of a sequence; b, c, x and dt
// of some tokens at a time are put into shared memory.
#include <cmath>

#include "kernels/cpu/mixer_checks.h"
#include "kernels/cuda/float_view.h"
#include "kernels/cuda/slots.h"
#include "kernels/cuda/spec.h"
#include "kernels/cuda/state_row.h"

namespace autodeploy::cuda {
namespace {

constexpr int kThreads = 128;

struct ScanArgs {
  SlotStep step;
  FloatView x, dt, a, b, c, d, dt_bias, y;
  SlotComponent state;
  int channels = 0, width = 0;  // C, N
  bool softplus = false;
};

template <class Row>
struct ScanTile {
  static constexpr int kTokens = Row::kWidth <= 256 ? 8 : Row::kWidth <= 1024 ? 4 : 2;
  static constexpr int kChannels = kThreads / Row::kLanes;
  static constexpr int kFloats = 2 * kTokens * (Row::kWidth + kChannels);
};

template <class Row>
__global__ void __launch_bounds__(kThreads) scan_kernel(ScanArgs a) {
  AD_DYNAMIC_SHARED(float, shared);
  constexpr int kTokens = ScanTile<Row>::kTokens, kChannels = ScanTile<Row>::kChannels;
  wait_for_previous();
  let_next_start();
  const int thread = static_cast<int>(threadIdx.x), seq = static_cast<int>(blockIdx.x);
  const int first_channel = static_cast<int>(blockIdx.y) * kChannels, own = thread / Row::kLanes;
  const int channel = first_channel + own;
  float *ins = shared, *outs = ins + kTokens * Row::kWidth, *xs = outs + kTokens * Row::kWidth,
        *steps = xs + kTokens * kChannels;
  const bool aligned = a.width % 4 == 0, exists = channel < a.channels;
  float* state = a.state.of<float>(a.step.slot[seq]) + int64_t{channel} * a.width;
  Row h, rates;
  h.clear(), rates.clear();
  float skip = 0;
  if (exists) {
    if (a.step.has_state[seq]) h.load(state, a.width, aligned);
#pragma unroll
    for (int p = 0; p < Row::kPacks; ++p) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (Row::first(p) + i < a.width) rates.x[p][i] = a.a.at(channel, Row::first(p) + i);
      }
    }
    if (a.d.data) skip = a.d.at(channel);
  }
  const int64_t stop = a.step.query_start[seq + 1];
  for (int64_t first = a.step.query_start[seq]; first < stop; first += kTokens) {
    const int tokens = static_cast<int>(min(int64_t{kTokens}, stop - first));
    for (int i = thread; i < tokens * Row::kWidth; i += kThreads) {
      const int t = i / Row::kWidth, n = i % Row::kWidth;
      ins[i] = n < a.width ? a.b.at(first + t, n) : 0.0f;
      outs[i] = n < a.width ? a.c.at(first + t, n) : 0.0f;
    }
    for (int i = thread; i < tokens * kChannels; i += kThreads) {
      const int64_t token = first + i / kChannels;
      const int c = first_channel + i % kChannels;
      float x = 0, step = 0;
      if (c < a.channels) {
        x = a.x.at(token, c), step = a.dt.at(token, c);
        if (a.dt_bias.data) step += a.dt_bias.at(c);
        if (a.softplus && step <= 20.0f) step = log1pf(expf(step));
      }
      xs[i] = x, steps[i] = step;
    }
    __syncthreads();
    for (int t = 0; t < tokens; ++t) {
      const float x = xs[t * kChannels + own], step = steps[t * kChannels + own], in = step * x;
      float sums[2] = {};
#pragma unroll
      for (int p = 0; p < Row::kPacks; ++p) {
        const auto b = Row::part(ins + t * Row::kWidth, p), c = Row::part(outs + t * Row::kWidth, p);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          h.x[p][i] = expf(step * rates.x[p][i]) * h.x[p][i] + in * b.x[i];
          sums[i % 2] += h.x[p][i] * c.x[i];
        }
      }
      const float y = Row::sum(sums[0] + sums[1]) + skip * x;
      if (exists && Row::lane() == 0) a.y.set(first + t, channel, y);
    }
    __syncthreads();
  }
  if (exists) h.store(state, a.width, aligned);
}

void run_scan(const bool& softplus, const KernelCall& call) {
  ScanArgs a;
  a.step = SlotStep(*call.device);
  a.x = FloatView(call.in[0]), a.dt = FloatView(call.in[1]), a.a = FloatView(call.in[2]);
  a.b = FloatView(call.in[3]), a.c = FloatView(call.in[4]), a.d = FloatView(call.in[5]);
  a.dt_bias = FloatView(call.in[6]), a.y = FloatView(call.out[0]);
  a.state = SlotComponent(*call.states[0], 0);
  a.channels = static_cast<int>(call.in[2].shape[0]), a.width = static_cast<int>(call.in[2].shape[1]);
  a.softplus = softplus;
  dispatch_state_row(a.width, [&](auto row) {
    using Tile = ScanTile<decltype(row)>;
    static_assert(Tile::kFloats * sizeof(float) <= 48 * 1024);
    const dim3 grid(static_cast<unsigned>(call.device->num_seqs), blocks_for(a.channels, Tile::kChannels));
    launch({grid, dim3(kThreads), stream_of(call), Tile::kFloats * sizeof(float), true},
           scan_kernel<decltype(row)>, a);
  });
}

}  // namespace

std::unique_ptr<Kernel> make_selective_scan(const KernelSpec& spec, std::string* why) {
  check_selective_scan(spec);
  if (!all_float(spec, {0, 1, 2, 3, 4, 5, 6}, why)) return nullptr;
  if (!state_rows_fit(1, spec.in[2].shape[1].constant, why)) return nullptr;
  return make_function_kernel("selective_scan.plain", spec.attrs.boolean("softplus"), run_scan);
}

}  // namespace autodeploy::cuda
