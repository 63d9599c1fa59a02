// softmax and log_softmax along a dim, computed in float32.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/half.h"
#include "kernels/cpu/intrinsics.h"
#include "kernels/generic/op_checks.h"
#include "kernels/generic/strided.h"

#define AD_ISA_SOURCE "kernels/generic/softmax_row.inc"
#include "kernels/cpu/foreach_isa.inc"
#undef AD_ISA_SOURCE

namespace autodeploy {
namespace {

using RowFn = void (*)(const float*, float*, int64_t);

struct SoftmaxState {
  int64_t dim;
  RowFn row;
  int64_t line_bytes;  // scratch of one thread, for lines that are not contiguous
};

void run_softmax(const SoftmaxState& s, const KernelCall& call) {
  const AxisLines x(call.in[0], s.dim), y(call.out[0], s.dim);
  const int64_t n = x.len();
  call.pool->parallel_for(x.count(), grain_of(n * 12), [&](int64_t begin, int64_t end, int thread) {
    float* scratch = reinterpret_cast<float*>(call.workspace + thread * s.line_bytes);
    for (int64_t line = begin; line < end; ++line) {
      const float* in = call.in[0].as<const float>() + x.offset(line);
      float* out = call.out[0].as<float>() + y.offset(line);
      const bool gathers = x.stride() != 1, scatters = y.stride() != 1;
      if (gathers) {
        for (int64_t i = 0; i < n; ++i) scratch[i] = in[i * x.stride()];
      }
      s.row(gathers ? scratch : in, scatters ? scratch : out, n);
      if (scatters) {
        for (int64_t i = 0; i < n; ++i) out[i * y.stride()] = scratch[i];
      }
    }
  });
}

std::unique_ptr<Kernel> make(const KernelSpec& spec, std::string* why, const char* name, RowFn rows[3]) {
  SoftmaxState s{check_softmax(spec), nullptr, 0};
  if (!serves_float32(spec, {0}, why)) return nullptr;
  s.row = rows[isa_available(Isa::kAvx512) ? 2 : isa_available(Isa::kAvx2) ? 1 : 0];
  s.line_bytes = (max_size(spec, spec.in[0].shape[static_cast<size_t>(s.dim)]) * 4 + 63) / 64 * 64;
  return std::make_unique<StatedKernel<SoftmaxState>>(name, s, run_softmax, s.line_bytes * spec.num_threads);
}

}  // namespace

std::unique_ptr<Kernel> make_softmax(const KernelSpec& spec, std::string* why) {
  RowFn rows[] = {AD_PICK_ISA(Isa::kPortable, softmax_row), AD_PICK_ISA(Isa::kAvx2, softmax_row),
                  AD_PICK_ISA(Isa::kAvx512, softmax_row)};
  return make(spec, why, "softmax", rows);
}

std::unique_ptr<Kernel> make_log_softmax(const KernelSpec& spec, std::string* why) {
  RowFn rows[] = {AD_PICK_ISA(Isa::kPortable, log_softmax_row), AD_PICK_ISA(Isa::kAvx2, log_softmax_row),
                  AD_PICK_ISA(Isa::kAvx512, log_softmax_row)};
  return make(spec, why, "log_softmax", rows);
}

}  // namespace autodeploy
