#include "runtime/cuda/rates.h"

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "core/error.h"
#include "kernels/cuda/fill_dummy.h"
#include "kernels/cuda/spec.h"
#include "runtime/cuda/device_api.h"

namespace autodeploy::cuda {
namespace {

constexpr int kRepeats = 5, kInARow = 4;

// Seconds that a piece of work takes, put into the queue several times in a row: the least of some tries.
template <class Work>
double least_seconds(Queue& queue, const Work& work) {
  work();
  queue.wait();
  Event begin(true), end(true);
  double least = 1e30;
  for (int r = 0; r < kRepeats; ++r) {
    begin.record(queue.stream());
    for (int i = 0; i < kInARow; ++i) work();
    end.record(queue.stream());
    queue.wait();
    least = std::min(least, 1e-3 * static_cast<double>(end.milliseconds_since(begin)) / kInARow);
  }
  return std::max(least, 1e-9);  // an emulated device may be faster than its clock
}

double copy_rate(Queue& queue, int64_t bytes) {
  const DeviceMemory from(bytes, "a copy's source"), to(bytes, "a copy's destination");
  queue.fill(from.data(), 1, bytes);
  return 2.0 * static_cast<double>(bytes) /
         least_seconds(queue, [&] { queue.copy_on_device(to.data(), from.data(), bytes); });
}

// A row-major matrix of numbers that differ, since the power that a product takes depends on them.
class Matrix {
 public:
  Matrix(Queue& queue, DType type, int64_t rows, int64_t cols, uint32_t stream)
      : memory_(rows * cols * dtype_size(type), "a product's operand") {
    view_.data = memory_.data();
    view_.dtype = type;
    view_.ndim = 2;
    view_.shape = {rows, cols};
    view_.stride = {cols, 1};
    DummyFill fill;
    fill.stream[0] = stream;
    fill.factor = 2, fill.zero = 255;
    fill.step = 0x1p-12f;
    fill_dummy(queue.stream(), fill, memory_.data(), type, 0, rows * cols);
  }
  const TensorView& view() const { return view_; }
  OperandSpec spec(bool param) const {
    OperandSpec o;
    o.present = true;
    o.dtype = view_.dtype;
    // Rows of values are those of a step.
    o.shape = {param ? Dim{view_.shape[0]} : Dim{0, 1}, Dim{view_.shape[1]}};
    o.stride = {Dim{view_.shape[1]}, Dim{1}};
    if (param) o.constant = view_.data;
    return o;
  }

 private:
  DeviceMemory memory_;
  TensorView view_;
};

// The kernel that serves large products: the library's where it is there.
std::unique_ptr<Kernel> choose_linear(const KernelSpec& spec) {
  std::string reasons;
  for (const bool library : {true, false}) {
    for (const KernelEntry& entry : kernel_table()) {
      if (spec.op != entry.op || (library && std::string(entry.name).find("cublaslt") == std::string::npos))
        continue;
      std::string why;
      if (auto kernel = entry.make(spec, &why)) return kernel;
      reasons += detail::concat("; ", entry.name, ": ", why);
    }
  }
  throw Error(ErrorKind::kUnsupported,
              detail::concat("[cuda] expected a kernel for a product, found none", reasons));
}

}  // namespace

std::string measure_rates(int index, const RateOptions& options) {
  const DeviceInfo info = use_device(index);
  for (const auto& [name, value] :
       {std::pair("copy_bytes", options.copy_bytes), std::pair("rows", options.rows),
        std::pair("cols", options.cols), std::pair("depth", options.depth)}) {
    AD_CHECK(value >= 1 && value <= int64_t{1} << 40, ErrorKind::kInvalidArgument, "[rates] ", name,
             ": expected a number from 1 to 2**40, found ", value);
  }
  Queue queue;
  const double copied = copy_rate(queue, options.copy_bytes);

  const Matrix x(queue, options.act, options.rows, options.depth, 1),
      weight(queue, options.act, options.cols, options.depth, 2),
      y(queue, options.act, options.rows, options.cols, 3);
  KernelSpec spec;
  spec.op = "linear";
  spec.in = {x.spec(false), weight.spec(true), OperandSpec{}};
  spec.out = {y.spec(false)};
  spec.max_tokens = spec.max_rows = spec.max_seqs = options.rows;
  const std::unique_ptr<Kernel> kernel = choose_linear(spec);
  const DeviceMemory workspace(kernel->workspace_bytes(), "a product's workspace");
  DeviceStep step;
  step.stream = queue.stream();
  step.num_tokens = options.rows;
  const TensorView in[] = {x.view(), weight.view(), TensorView{}}, out[] = {y.view()};
  KernelCall call;
  call.in = in;
  call.out = out;
  call.workspace = workspace.data();
  call.device = &step;
  const double seconds = least_seconds(queue, [&] { kernel->run(call); });
  if (const char* error = take_launch_error())
    throw Error(ErrorKind::kInternal, detail::concat("[cuda] expected a product to start, found: ", error));
  const double operations = 2.0 * static_cast<double>(options.rows) * static_cast<double>(options.cols) *
                            static_cast<double>(options.depth);
  return nlohmann::ordered_json{{"device", info.name},
                                {"copy_bytes", options.copy_bytes},
                                {"copy_bytes_per_second", copied},
                                {"product", {options.rows, options.cols, options.depth}},
                                {"dtype", dtype_name(options.act)},
                                {"kernel", kernel->name()},
                                {"operations_per_second", operations / seconds}}
      .dump();
}

}  // namespace autodeploy::cuda
