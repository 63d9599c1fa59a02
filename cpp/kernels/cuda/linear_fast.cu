// linear in half precision: few rows by the kernels that stream the weights, more by cuBLASLt, or by our own
// where it is absent or does not take the operands.
#include <algorithm>
#include <memory>
#include <string>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/linear_fast.h"
#include "kernels/cuda/linear_small.h"
#include "kernels/cuda/linear_tensor.h"
#include "kernels/cuda/processors.h"

namespace autodeploy::cuda {
namespace {

class FastLinear final : public Kernel {
 public:
  FastLinear(DType dtype, int64_t n, int64_t k, int64_t max_rows, bool bias_f32, std::unique_ptr<LtLinear> lt)
      : dtype_(dtype),
        n_(n),
        k_(k),
        bias_f32_(bias_f32),
        lt_(std::move(lt)),
        name_(std::string("linear.small") + (lt_ ? "+cublaslt" : "+tensor")),
        processors_(num_multiprocessors()),
        workspace_(std::max(lt_ ? int64_t{LtLinear::kWorkspace} : 0,
                            tensor_linear_workspace(max_rows, k, n, processors_))) {}

  const char* name() const override { return name_.c_str(); }
  int64_t workspace_bytes() const override { return workspace_; }

  void run(const KernelCall& call) const override {
    const DeviceRows x(call.in[0], 1), y(call.out[0], 1);
    const Stream stream = stream_of(call);
    const int64_t m = x.rows;
    if (m > kMaxSmallRows && lt_ && x.dims <= 1 && y.dims <= 1) {
      const char* error =
          lt_->run(call.device->stream, m, x.data, x.stride[0], call.in[1].data, call.in[2].data, y.data,
                   y.stride[0], call.workspace, LtLinear::kWorkspace);
      if (error) note_launch_error(error);
      return;
    }
    const bool x_aligned = rows_aligned_16(x);
    if (m > kMaxSmallRows && x_aligned) {
      TensorLinearArgs a;
      a.x = x, a.y = y;
      a.weight = call.in[1].data, a.bias = call.in[2].data;
      a.rows = static_cast<int32_t>(m), a.cols = static_cast<int32_t>(k_),
      a.outputs = static_cast<int32_t>(n_);
      a.bias_f32 = bias_f32_, a.pairs = stores_pairs(y, n_);
      run_tensor_linear(dtype_, a, processors_, call.workspace, stream);
      return;
    }
    SmallLinearArgs a;
    a.x = x, a.y = y;
    a.weight = call.in[1].data, a.bias = call.in[2].data;
    a.cols = static_cast<int32_t>(k_), a.outputs = static_cast<int32_t>(n_);
    a.bias_f32 = bias_f32_, a.x_aligned = x_aligned;
    for (int64_t from = 0; from < m; from += kMaxSmallRows) {
      a.first_row = static_cast<int32_t>(from);
      a.rows = static_cast<int32_t>(std::min<int64_t>(m - from, kMaxSmallRows));
      run_small_linear(dtype_, a, StoreLinear{}, processors_, stream);
    }
  }

 private:
  DType dtype_;
  int64_t n_, k_;
  bool bias_f32_;
  std::unique_ptr<LtLinear> lt_;
  std::string name_;
  int processors_;
  int64_t workspace_;
};

}  // namespace

std::unique_ptr<Kernel> make_linear_fast(const KernelSpec& spec, std::string* why) {
  const SpecCheck check(spec);
  check.arity(3, 1);
  const OperandSpec& x = check.input(0, "x [M, K]", 1, 1, true);
  const OperandSpec& weight = check.input(1, "weight [N, K]", 2, 2);
  const OperandSpec* bias = check.optional_input(2, "bias [N]", 1, 1);
  const OperandSpec& y = check.output(0, "y [M, N]", 1, 1, true);
  const int64_t n = check.static_dim(weight, "weight", 0), k = check.static_dim(weight, "weight", 1);
  std::vector<Dim> expected = x.shape;
  expected.back() = fixed(k);
  check.shape(x, "x", expected);
  expected.back() = fixed(n);
  check.shape(y, "y", expected);
  if (bias) check.shape(*bias, "bias", {fixed(n)});
  const DType dtype = x.dtype;
  if (dtype != DType::kBF16 && dtype != DType::kF16) {
    *why = "it takes bf16 and f16";
    return nullptr;
  }
  if (weight.dtype != dtype || y.dtype != dtype ||
      (bias && bias->dtype != dtype && bias->dtype != DType::kF32)) {
    *why = "its operands have different dtypes";
    return nullptr;
  }
  if (k % 8 != 0 || n > INT32_MAX || k > INT32_MAX / 16 || check.max_rows(x, 1) > INT32_MAX) {
    *why = "rows of the weights are no multiple of 16 bytes, or a dim is too large";
    return nullptr;
  }
  // Params are read while earlier kernels still run.
  if (!weight.constant || !aligned_16(weight.constant)) {
    *why = "the weights are no param that begins at a 16-byte boundary";
    return nullptr;
  }
  if (!prepare_small_linear<StoreLinear>() || !prepare_tensor_linear()) {
    *why = "the device has too little shared memory";
    return nullptr;
  }
  const bool bias_f32 = bias && bias->dtype == DType::kF32;
  std::string no_lt;
  std::unique_ptr<LtLinear> lt;
  if (!bias_f32) lt = LtLinear::make(dtype, n, k, bias != nullptr, &no_lt);
  return std::make_unique<FastLinear>(dtype, n, k, check.max_rows(x, 1), bias_f32, std::move(lt));
}

}  // namespace autodeploy::cuda
