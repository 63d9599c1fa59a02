// select_rows: the rows of a step whose logits are wanted.
#include <cstring>
#include <memory>
#include <string>

#include "core/error.h"
#include "kernels/cpu/row_op_checks.h"
#include "kernels/kernel.h"

namespace autodeploy {
namespace {

class SelectRows : public Kernel {
 public:
  const char* name() const override { return "select_rows.portable"; }
  void run(const KernelCall& call) const override {
    const TensorView &x = call.in[0], &y = call.out[0];
    const int64_t size = dtype_size(x.dtype);
    for (int64_t r = 0; r < y.shape[0]; ++r) {
      std::memcpy(y.as<uint8_t>() + r * y.stride[0] * size,
                  x.as<const uint8_t>() + call.batch->rows[r] * x.stride[0] * size,
                  static_cast<size_t>(y.shape[1] * size));
    }
  }
};

}  // namespace

std::unique_ptr<Kernel> make_select_rows(const KernelSpec& spec, std::string*) {
  check_select_rows(spec);
  return std::make_unique<SelectRows>();
}

}  // namespace autodeploy
