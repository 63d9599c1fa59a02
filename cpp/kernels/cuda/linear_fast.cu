// linear in half precision: few rows by the kernels that stream the weights - on Hopper's matrix units where
// there are any - more by cuBLASLt, or by our own where it is absent or does not take the operands.
#include <algorithm>
#include <memory>
#include <string>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/linear_fast.h"
#include "kernels/cuda/linear_small.h"
#include "kernels/cuda/linear_tensor.h"
#include "kernels/cuda/linear_wgmma.h"
#include "kernels/cuda/processors.h"

namespace autodeploy::cuda {
namespace {

// False where cuBLASLt does not take the operands; then nothing was launched.
bool run_lt(LtLinear& lt, const KernelCall& call, const DeviceRows& x, const DeviceRows& y, int64_t n,
            int64_t k) {
  if (x.dims > 1 || y.dims > 1 || (x.rows > 1 && (x.stride[0] < k || y.stride[0] < n))) return false;
  return !lt.run(call.device->stream, x.rows, x.data, x.rows > 1 ? x.stride[0] : k, call.in[1].data,
                 call.in[2].data, y.data, x.rows > 1 ? y.stride[0] : n, call.workspace, LtLinear::kWorkspace);
}

class FastLinear final : public Kernel {
 public:
  FastLinear(DType dtype, int64_t n, int64_t k, int64_t max_rows, bool bias_f32, std::unique_ptr<LtLinear> lt)
      : dtype_(dtype),
        n_(n),
        k_(k),
        bias_f32_(bias_f32),
        lt_(std::move(lt)),
        processors_(num_multiprocessors()),
        wgmma_(WgmmaLinear<StoreLinear>::make(dtype, args(), processors_)),
        name_(std::string("linear.small") + (wgmma_ ? "+wgmma" : "") + (lt_ ? "+cublaslt" : "+tensor")),
        workspace_(std::max({lt_ ? int64_t{LtLinear::kWorkspace} : 0,
                             tensor_linear_workspace(max_rows, k, n, processors_),
                             wgmma_ ? wgmma_->workspace_bytes(max_rows) : 0})) {}

  const char* name() const override { return name_.c_str(); }
  int64_t workspace_bytes() const override { return workspace_; }

  void run(const KernelCall& call) const override {
    const DeviceRows x(call.in[0], 1), y(call.out[0], 1);
    const Stream stream = stream_of(call);
    const int64_t m = x.rows;
    SmallLinearArgs a = args();
    a.x = x, a.y = y;
    a.weight = call.in[1].data, a.bias = call.in[2].data;
    if (wgmma_ && wgmma_takes(x, k_)) {
      a.rows = static_cast<int32_t>(m);
      wgmma_->run(a, StoreLinear{}, call.workspace, stream);
      return;
    }
    if (m > kMaxSmallRows && lt_ && run_lt(*lt_, call, x, y, n_, k_)) return;
    const bool x_aligned = rows_aligned_16(x);
    if (m > kMaxSmallRows && x_aligned) {
      TensorLinearArgs t;
      t.x = x, t.y = y;
      t.weight = a.weight, t.bias = a.bias;
      t.rows = static_cast<int32_t>(m), t.cols = a.cols, t.outputs = a.outputs;
      t.bias_f32 = bias_f32_, t.pairs = stores_pairs(y, n_);
      run_tensor_linear(dtype_, t, processors_, call.workspace, stream);
      return;
    }
    a.x_aligned = x_aligned;
    for (int64_t from = 0; from < m; from += kMaxSmallRows) {
      a.first_row = static_cast<int32_t>(from);
      a.rows = static_cast<int32_t>(std::min<int64_t>(m - from, kMaxSmallRows));
      run_small_linear(dtype_, a, StoreLinear{}, processors_, stream);
    }
  }

 private:
  SmallLinearArgs args() const {
    SmallLinearArgs a;
    a.cols = static_cast<int32_t>(k_), a.outputs = static_cast<int32_t>(n_);
    a.bias_f32 = bias_f32_;
    return a;
  }

  DType dtype_;
  int64_t n_, k_;
  bool bias_f32_;
  std::unique_ptr<LtLinear> lt_;
  int processors_;
  std::unique_ptr<WgmmaLinear<StoreLinear>> wgmma_;  // or nullptr
  std::string name_;
  int64_t workspace_;
};

// Any float type; the plain kernel serves what cuBLASLt does not take.
class LtOnlyLinear final : public Kernel {
 public:
  LtOnlyLinear(int64_t n, int64_t k, std::unique_ptr<LtLinear> lt, std::unique_ptr<Kernel> plain)
      : n_(n), k_(k), lt_(std::move(lt)), plain_(std::move(plain)) {}

  const char* name() const override { return "linear.cublaslt"; }
  int64_t workspace_bytes() const override {
    return std::max(int64_t{LtLinear::kWorkspace}, plain_->workspace_bytes());
  }
  void run(const KernelCall& call) const override {
    const DeviceRows x(call.in[0], 1), y(call.out[0], 1);
    if (!run_lt(*lt_, call, x, y, n_, k_)) plain_->run(call);
  }

 private:
  int64_t n_, k_;
  std::unique_ptr<LtLinear> lt_;
  std::unique_ptr<Kernel> plain_;
};

}  // namespace

std::unique_ptr<Kernel> make_linear(const KernelSpec& spec, std::string* why);

std::unique_ptr<Kernel> make_linear_cublaslt(const KernelSpec& spec, std::string* why) {
  auto plain = make_linear(spec, why);  // checks the spec, too
  if (!plain) return nullptr;
  const OperandSpec &x = spec.in[0], &weight = spec.in[1], &bias = spec.in[2];
  const std::vector<Dim>& shape = weight.shape;
  if (weight.dtype != x.dtype || spec.out[0].dtype != x.dtype || (bias.present && bias.dtype != x.dtype)) {
    *why = "its operands have different dtypes";
    return nullptr;
  }
  if (!shape[0].is_static() || !shape[1].is_static() ||
      weight.stride != std::vector<Dim>{shape[1], fixed(1)} ||
      (bias.present && bias.stride != std::vector<Dim>{fixed(1)})) {
    *why = "the weights don't lie in one piece of a fixed size";
    return nullptr;
  }
  auto lt = LtLinear::make(x.dtype, shape[0].constant, shape[1].constant, bias.present, why);
  if (!lt) return nullptr;
  return std::make_unique<LtOnlyLinear>(shape[0].constant, shape[1].constant, std::move(lt),
                                        std::move(plain));
}

std::unique_ptr<Kernel> make_linear_fast(const KernelSpec& spec, std::string* why) {
  const SpecCheck check(spec);
  check.arity(3, 1);
  const OperandSpec& x = check.input(0, "x [M, K]", 1, 1, true);
  const OperandSpec& weight = check.input(1, "weight [N, K]", 2, 1);
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
  if (!weight.constant || !aligned_16(weight.constant) ||
      weight.stride != std::vector<Dim>{fixed(k), fixed(1)}) {
    *why = "the weights are no whole param that begins at a 16-byte boundary";
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
