#include "kernels/cuda/linear_fused.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/cuda/linear_epilogue.h"
#include "kernels/cuda/linear_fast.h"
#include "kernels/cuda/linear_small.h"
#include "kernels/cuda/linear_wgmma.h"
#include "kernels/cuda/processors.h"

namespace autodeploy::cuda {
namespace {

int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// ---- the gate for many rows: 8 outputs a thread ----

struct GateArgs {
  const void* products = nullptr;                         // [rows, cols], contiguous
  void* y = nullptr;                                      // [rows, outputs]
  int64_t rows = 0, cols = 0, outputs = 0, a = 0, b = 0;  // the slices' offsets; all but rows multiples of 8
  GateStore gate;
};

constexpr int kGateThreads = 256;

template <class T>
__global__ void __launch_bounds__(kGateThreads) gate_kernel(GateArgs g) {
  wait_for_previous();
  let_next_start();
  const int64_t pieces = g.outputs / 8, i = int64_t{blockIdx.x} * kGateThreads + threadIdx.x;
  if (i >= g.rows * pieces) return;
  const int64_t row = i / pieces, col = i % pieces * 8;
  const T* products = static_cast<const T*>(g.products) + row * g.cols + col;
  float a[8], b[8];
  unpack_8<T>(*reinterpret_cast<const uint4*>(products + g.a), a);
  unpack_8<T>(*reinterpret_cast<const uint4*>(products + g.b), b);
#pragma unroll
  for (int k = 0; k < 8; ++k) a[k] = g.gate.gate<T>(a[k], b[k]);
  *reinterpret_cast<uint4*>(static_cast<T*>(g.y) + row * g.outputs + col) = pack_8<T>(a);
}

// ---- parts ----

std::unique_ptr<Kernel> make_part(const KernelSpec& spec, std::string* why) {
  std::string reasons;
  for (const KernelEntry& e : kernel_table()) {
    if (spec.op != e.op) continue;
    std::string reason;
    if (auto kernel = e.make(spec, &reason)) return kernel;
    reasons += std::string(reasons.empty() ? ": " : "; ") + e.name + ": " + reason;
  }
  *why = "no kernel serves its part " + spec.op + reasons;
  return nullptr;
}

// Strides of a contiguous value, whose dims but the first are fixed.
std::vector<Dim> contiguous(const std::vector<Dim>& shape, int64_t step = 1) {
  std::vector<Dim> stride(shape.size());
  for (size_t i = shape.size(); i-- > 0;) {
    stride[i] = fixed(step);
    step *= shape[i].constant;
  }
  return stride;
}
OperandSpec value_operand(DType t, std::vector<Dim> shape) {
  OperandSpec o;
  o.present = true;
  o.dtype = t;
  o.stride = contiguous(shape);
  o.shape = std::move(shape);
  return o;
}

// The view of a contiguous [lead..., last], where `lead` are the first dims of `like`.
TensorView value_like(const TensorView& like, int lead, int64_t last, DType t, void* data) {
  TensorView v;
  v.data = data;
  v.dtype = t;
  v.ndim = lead + 1;
  for (int d = 0; d < lead; ++d) v.shape[static_cast<size_t>(d)] = like.shape[static_cast<size_t>(d)];
  v.shape[static_cast<size_t>(lead)] = last;
  int64_t step = 1;
  for (int d = lead; d >= 0; --d) {
    v.stride[static_cast<size_t>(d)] = step;
    step *= v.shape[static_cast<size_t>(d)];
  }
  return v;
}

// A view's dims from `from` on.
TensorView inner_of(const TensorView& view, int from) {
  TensorView v = view;
  v.ndim = view.ndim - from;
  for (int d = 0; d < v.ndim; ++d) {
    v.shape[static_cast<size_t>(d)] = view.shape[static_cast<size_t>(d + from)];
    v.stride[static_cast<size_t>(d)] = view.stride[static_cast<size_t>(d + from)];
  }
  return v;
}

struct Form {
  bool norm = false, add = false, region = false;
  // Positions of operands.
  size_t residual() const { return 1; }
  size_t norm_weight() const { return add ? 2 : 1; }
  size_t weight() const { return (norm ? 1u : 0u) + (add ? 1u : 0u) + 1; }
  size_t bias() const { return weight() + 1; }
  size_t others() const { return bias() + 1; }
  size_t normed() const { return add ? 2 : 1; }  // of the results
};

class FusedLinear final : public Kernel {
 public:
  FusedLinear(const KernelSpec& spec, Form form) : form_(form), processors_(num_multiprocessors()) {
    const SpecCheck check(spec);
    const OperandSpec& x = check.input(0, "x [M, K]", 1, 1, true);
    const OperandSpec& weight = check.input(form.weight(), "weight [N, K]", 2, 1);
    check.that(spec.in.size() >= form.others() && (form.region || spec.in.size() == form.others()),
               "the operands of its parts", std::to_string(spec.in.size()));
    dtype_ = x.dtype;
    lead_ = static_cast<int>(x.shape.size()) - 1;
    n_ = check.static_dim(weight, "weight", 0), k_ = check.static_dim(weight, "weight", 1);
    max_rows_ = check.max_rows(x, 1);
    const OperandSpec* bias = check.optional_input(form.bias(), "bias [N]", 1, 1);
    bias_f32_ = bias && bias->dtype == DType::kF32;
    if (form.norm) {
      eps_ = static_cast<float>(check.finite("eps"));
      offset_ = static_cast<float>(check.finite("offset"));
      check.that(spec.out.size() >= form.normed() && spec.out.size() <= form.normed() + 1,
                 "y, the sum where one is added, and at most the normed rows",
                 std::to_string(spec.out.size()) + " results");
      keeps_normed_ = spec.out.size() > form.normed() && spec.out[form.normed()].present;
    } else {
      check.that(spec.out.size() == 1, "one result", std::to_string(spec.out.size()));
    }
    if (form.region) {
      slices_ = spec.attrs.integers("slices");
      slice_stride_ = check.integer("slice_stride", 1, 1 << 20);
      const OperandSpec& y = spec.out[0];
      outputs_ = 1;
      for (size_t d = static_cast<size_t>(lead_); d < y.shape.size(); ++d)
        outputs_ *= check.static_dim(y, "y", d);
      const auto others = static_cast<size_t>(std::count(slices_.begin(), slices_.end(), -1));
      check.that(spec.region && slices_.size() == spec.region->inputs.size() &&
                     spec.in.size() == form.others() + others &&
                     y.shape.size() > static_cast<size_t>(lead_) &&
                     std::equal(x.shape.begin(), x.shape.end() - 1, y.shape.begin()),
                 "a region with an operand for each input that is no slice, over x's rows",
                 std::to_string(slices_.size()) + " slices, y " + shape_text(y.shape));
      for (int64_t c : slices_)
        check.that(c == -1 || (c >= 0 && c + (outputs_ - 1) * slice_stride_ < n_),
                   "slices within the product", std::to_string(c));
    } else {
      outputs_ = n_;
    }
  }

  // What the composite's kernels don't serve is declined; then the parts run one by one.
  bool init(const KernelSpec& spec, std::string* why) {
    const OperandSpec& x = spec.in[0];
    for (size_t d = 1; d + 1 < x.shape.size(); ++d) {
      if (!x.shape[d].is_static()) return *why = "a dim of x but the first depends on the step", false;
    }
    if (dtype_ != DType::kBF16 && dtype_ != DType::kF16) return *why = "it takes bf16 and f16", false;
    if (!init_norm(spec, why) || !init_linear(spec, why) || !init_region(spec, why)) return false;
    name_ = spec.op + ".small";
    workspace_ = normed_bytes_ + product_bytes_ + part_bytes_;
    return true;
  }

  const char* name() const override { return name_.c_str(); }
  int64_t workspace_bytes() const override { return workspace_; }

  void run(const KernelCall& call) const override {
    const TensorView& x = call.in[0];
    const DeviceRows x_rows(x, 1);
    if (x_rows.rows == 0) return;
    const bool wgmma = has_wgmma_ && wgmma_takes(x_rows, k_), small = !wgmma && x_rows.rows <= kMaxSmallRows;
    const bool norm_inside = small && form_.norm && small_linear_norms(x_rows.rows, k_) &&
                             rows_aligned_16(x_rows) &&
                             (!form_.add || rows_aligned_16(DeviceRows(call.in[form_.residual()], 1)));
    TensorView input = x;
    if (form_.norm && !norm_inside) {
      input = keeps_normed_ ? call.out[form_.normed()] : value_like(x, lead_, k_, dtype_, call.workspace);
      run_norm(call, input);
    }
    if (wgmma && gate_wgmma_) {
      gate_wgmma_->run(call_args(call, input), gate_, call.workspace + normed_bytes_ + product_bytes_,
                       stream_of(call));
      return;
    }
    if (small && (form_.region || norm_inside)) {
      run_small(call, input, norm_inside);
      return;
    }
    if (!form_.region) {
      run_linear(call, input, call.out[0]);
      return;
    }
    const TensorView product = value_like(x, lead_, n_, dtype_, call.workspace + normed_bytes_);
    run_linear(call, input, product);
    run_region(call, product, x_rows.rows);
  }

 private:
  bool init_norm(const KernelSpec& spec, std::string* why) {
    if (!form_.norm) return true;
    KernelSpec part = bare(spec, form_.add ? "add_rms_norm" : "rms_norm");
    part.attrs.set("eps", spec.attrs.number("eps"));
    part.attrs.set("offset", spec.attrs.number("offset"));
    const OperandSpec normed = value_operand(dtype_, spec.in[0].shape);
    part.in = {spec.in[0]};
    if (form_.add) part.in.push_back(spec.in[form_.residual()]);
    const OperandSpec& weight = spec.in[form_.norm_weight()];
    part.in.push_back(weight);
    part.out = {normed};
    if (form_.add) part.out.push_back(value_operand(dtype_, spec.in[0].shape));
    if (form_.add && spec.in[form_.residual()].dtype != dtype_)
      return *why = "the residual has another type", false;
    norm_weight_f32_ = weight.present && weight.dtype == DType::kF32;
    if (weight.present && (!weight.constant || !aligned_16(weight.constant)))
      return *why = "the norm's weight is no param that begins at a 16-byte boundary", false;
    if (k_ % 8 != 0) return *why = "rows of x are no multiple of 16 bytes", false;
    norm_ = make_part(part, why);
    if (!norm_) return false;
    normed_bytes_ = keeps_normed_ ? 0 : aligned(max_rows_ * k_ * 2);
    part_bytes_ = std::max(part_bytes_, norm_->workspace_bytes());
    return true;
  }

  bool init_linear(const KernelSpec& spec, std::string* why) {
    KernelSpec part = bare(spec, "linear");
    part.in = {form_.norm ? value_operand(dtype_, spec.in[0].shape) : spec.in[0], spec.in[form_.weight()],
               spec.in[form_.bias()]};
    std::vector<Dim> shape = spec.in[0].shape;
    shape.back() = fixed(n_);
    part.out = {value_operand(dtype_, shape)};
    linear_ = make_linear_fast(part, why);
    if (!linear_) return false;
    part_bytes_ = std::max(part_bytes_, linear_->workspace_bytes());
    return true;
  }

  bool init_region(const KernelSpec& spec, std::string* why) {
    if (!form_.region) return true;
    const auto count = static_cast<int>(slices_.size()) - static_cast<int>(others());
    if (count < 1 || count > 2) return *why = "the region reads other than one or two slices", false;
    if (!compile_epilogue(*spec.region, slices_, dtype_, &code_, why)) return false;
    int gated = 0;
    gate_on_ =
        others() == 0 && spec.region->inputs.size() == 2 && is_gate(*spec.region, dtype_, &gate_, &gated);
    gate_a_ = gate_on_ ? slices_[static_cast<size_t>(gated)] : 0;
    gate_b_ = gate_on_ ? slices_[static_cast<size_t>(1 - gated)] : 0;
    const OperandSpec& y = spec.out[0];
    if (gate_on_ ? y.dtype != dtype_ : y.dtype != code_.out_dtype)
      return *why = "the region's result has another type than y", false;
    const bool prepared = gate_on_     ? prepare_small_linear<GateStore>()
                          : count == 1 ? prepare_small_linear<RegionStore<1>>()
                                       : prepare_small_linear<RegionStore<2>>();
    if (!prepared) return *why = "the device has too little shared memory", false;
    product_bytes_ = aligned(max_rows_ * n_ * 2);
    if (gate_on_) {
      gate_wgmma_ = WgmmaLinear<GateStore>::make(dtype_, product_args(), processors_);
      if (gate_wgmma_) part_bytes_ = std::max(part_bytes_, gate_wgmma_->workspace_bytes(max_rows_));
    }
    if (gate_on_ && n_ % 8 == 0 && outputs_ % 8 == 0 && gate_a_ % 8 == 0 && gate_b_ % 8 == 0 &&
        slice_stride_ == 1) {
      gate_many_ = true;
      return true;
    }
    KernelSpec part = bare(spec, "region");
    part.region = spec.region;
    std::vector<Dim> shape = spec.in[0].shape;
    shape.back() = fixed(n_);
    const std::vector<Dim> outer = contiguous(shape);
    size_t other = form_.others();
    for (int64_t c : slices_) {
      if (c < 0) {
        part.in.push_back(spec.in[other++]);
        continue;
      }
      OperandSpec slice = value_operand(dtype_, y.shape);
      const std::vector<Dim> inner = contiguous(y.shape, slice_stride_);
      for (size_t d = 0; d < y.shape.size(); ++d)
        slice.stride[d] = d < static_cast<size_t>(lead_) ? outer[d] : inner[d];
      part.in.push_back(slice);
    }
    part.out = {y};
    region_ = make_part(part, why);
    if (!region_) return false;
    part_bytes_ = std::max(part_bytes_, region_->workspace_bytes());
    return true;
  }

  size_t others() const { return static_cast<size_t>(std::count(slices_.begin(), slices_.end(), -1)); }

  static KernelSpec bare(const KernelSpec& spec, const char* op) {
    KernelSpec part = spec;
    part.op = op;
    part.attrs = Attrs();
    part.attrs.set_owner(op);
    part.in.clear(), part.out.clear();
    part.region = nullptr;
    return part;
  }

  // A part's call; the arrays must outlive it.
  KernelCall part_call(const KernelCall& call, std::span<const TensorView> in,
                       std::span<const TensorView> out) const {
    KernelCall part = call;
    part.in = in, part.out = out;
    part.workspace = call.workspace + normed_bytes_ + product_bytes_;
    return part;
  }

  void run_norm(const KernelCall& call, const TensorView& normed) const {
    std::array<TensorView, 3> in;
    size_t n = 0;
    in[n++] = call.in[0];
    if (form_.add) in[n++] = call.in[form_.residual()];
    in[n++] = call.in[form_.norm_weight()];
    const std::array<TensorView, 2> out{normed, form_.add ? call.out[1] : TensorView{}};
    norm_->run(part_call(call, std::span(in).first(n), std::span(out).first(form_.add ? 2 : 1)));
  }

  void run_linear(const KernelCall& call, const TensorView& x, const TensorView& y) const {
    const std::array<TensorView, 3> in{x, call.in[form_.weight()], call.in[form_.bias()]};
    linear_->run(part_call(call, in, std::span(&y, 1)));
  }

  // What a launch knows of the product alone.
  SmallLinearArgs product_args() const {
    SmallLinearArgs a;
    a.cols = static_cast<int32_t>(k_), a.outputs = static_cast<int32_t>(outputs_);
    a.slice_stride = static_cast<int32_t>(slice_stride_);
    a.bias_f32 = bias_f32_;
    if (gate_on_)
      a.slice_offset[0] = static_cast<int32_t>(gate_a_), a.slice_offset[1] = static_cast<int32_t>(gate_b_);
    return a;
  }
  SmallLinearArgs call_args(const KernelCall& call, const TensorView& x) const {
    SmallLinearArgs a = product_args();
    a.x = DeviceRows(x, 1);
    a.y = DeviceRows(call.out[0], call.out[0].ndim - lead_);
    a.weight = call.in[form_.weight()].data, a.bias = call.in[form_.bias()].data;
    a.rows = static_cast<int32_t>(a.x.rows);
    a.x_aligned = rows_aligned_16(a.x);
    return a;
  }

  void run_small(const KernelCall& call, const TensorView& x, bool norm) const {
    SmallLinearArgs a = call_args(call, x);
    if (norm) {
      a.norm.on = true;
      a.norm.weight = call.in[form_.norm_weight()].data;
      a.norm.weight_f32 = norm_weight_f32_;
      a.norm.eps = eps_, a.norm.offset = offset_;
      if (form_.add) {
        a.norm.residual = DeviceRows(call.in[form_.residual()], 1);
        a.norm.sum = DeviceRows(call.out[1], 1);
      }
      if (keeps_normed_) a.norm.normed = DeviceRows(call.out[form_.normed()], 1);
    }
    const Stream stream = stream_of(call);
    if (!form_.region) {
      run_small_linear(dtype_, a, StoreLinear{}, processors_, stream);
      return;
    }
    if (gate_on_) {
      run_small_linear(dtype_, a, gate_, processors_, stream);
      return;
    }
    EpilogueCode code = code_;
    int slices = 0, others = 0;
    for (int64_t c : slices_) {
      if (c >= 0) {
        a.slice_offset[slices++] = static_cast<int32_t>(c);
        continue;
      }
      const TensorView& view = call.in[form_.others() + static_cast<size_t>(others)];
      OtherInput& other = code.others[others++];
      other.rows = DeviceRows(view, view.ndim - lead_);
      other.inner = DeviceRows(inner_of(view, lead_), 0);
      other.dtype = view.dtype;
    }
    if (slices == 1)
      run_small_linear(dtype_, a, RegionStore<1>{code}, processors_, stream);
    else
      run_small_linear(dtype_, a, RegionStore<2>{code}, processors_, stream);
  }

  void run_region(const KernelCall& call, const TensorView& product, int64_t rows) const {
    const TensorView& y = call.out[0];
    if (gate_many_) {
      const GateArgs g{product.data, y.data, rows, n_, outputs_, gate_a_, gate_b_, gate_};
      const LaunchConfig config{dim3(blocks_for(rows * (outputs_ / 8), kGateThreads)), dim3(kGateThreads),
                                stream_of(call), 0, true};
      if (dtype_ == DType::kBF16)
        launch(config, gate_kernel<bf16>, g);
      else
        launch(config, gate_kernel<f16>, g);
      return;
    }
    std::array<TensorView, kMaxEpilogueInputs> in;
    size_t n = 0, other = form_.others();
    for (int64_t c : slices_) {
      if (c < 0) {
        in[n++] = call.in[other++];
        continue;
      }
      TensorView slice = y;  // its shape
      slice.dtype = dtype_;
      slice.data = static_cast<uint8_t*>(product.data) + c * 2;
      int64_t step = slice_stride_;
      for (int d = y.ndim - 1; d >= 0; --d) {
        const auto i = static_cast<size_t>(d);
        slice.stride[i] = d < lead_ ? product.stride[i] : step;
        step *= y.shape[i];
      }
      in[n++] = slice;
    }
    region_->run(part_call(call, std::span(in).first(n), std::span(&y, 1)));
  }

  Form form_;
  int processors_;
  DType dtype_ = DType::kF32;
  int lead_ = 0;  // dims of rows
  int64_t n_ = 0, k_ = 0, outputs_ = 0, max_rows_ = 0;
  bool bias_f32_ = false, norm_weight_f32_ = false, keeps_normed_ = false;
  float eps_ = 0, offset_ = 0;
  std::vector<int64_t> slices_;
  int64_t slice_stride_ = 1;
  EpilogueCode code_;
  GateStore gate_;
  bool gate_on_ = false, gate_many_ = false;  // gate_many_: gate_kernel serves many rows
  int64_t gate_a_ = 0, gate_b_ = 0;
  bool has_wgmma_ = has_wgmma();
  std::unique_ptr<WgmmaLinear<GateStore>> gate_wgmma_;  // or nullptr
  std::unique_ptr<Kernel> norm_, linear_, region_;
  // Workspace: the normed rows, the product, what parts need.
  int64_t normed_bytes_ = 0, product_bytes_ = 0, part_bytes_ = 0, workspace_ = 0;
  std::string name_;
};

std::unique_ptr<Kernel> make(const KernelSpec& spec, std::string* why, Form form) {
  auto kernel = std::make_unique<FusedLinear>(spec, form);
  return kernel->init(spec, why) ? std::move(kernel) : nullptr;
}

}  // namespace

std::unique_ptr<Kernel> make_linear_region(const KernelSpec& spec, std::string* why) {
  return make(spec, why, {false, false, true});
}
std::unique_ptr<Kernel> make_rms_norm_linear(const KernelSpec& spec, std::string* why) {
  return make(spec, why, {true, false, false});
}
std::unique_ptr<Kernel> make_add_rms_norm_linear(const KernelSpec& spec, std::string* why) {
  return make(spec, why, {true, true, false});
}
std::unique_ptr<Kernel> make_rms_norm_linear_region(const KernelSpec& spec, std::string* why) {
  return make(spec, why, {true, false, true});
}
std::unique_ptr<Kernel> make_add_rms_norm_linear_region(const KernelSpec& spec, std::string* why) {
  return make(spec, why, {true, true, true});
}

}  // namespace autodeploy::cuda
