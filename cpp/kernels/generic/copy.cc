// copy: a view made contiguous. cat: views joined along a dim.
#include "kernels/generic/op_checks.h"
#include "kernels/generic/strided.h"

namespace autodeploy {
namespace {

struct NoState {};
struct CatState {
  int64_t dim;
};

void run_copy(const NoState&, const KernelCall& call) { copy_strided(call.out[0], call.in[0], *call.pool); }

void run_cat(const CatState& s, const KernelCall& call) {
  const size_t dim = static_cast<size_t>(s.dim);
  TensorView part = call.out[0];
  int64_t at = 0;
  for (const TensorView& in : call.in) {
    part.data = call.out[0].as<uint8_t>() + at * part.stride[dim] * dtype_size(part.dtype);
    part.shape[dim] = in.shape[dim];
    copy_strided(part, in, *call.pool);
    at += in.shape[dim];
  }
}

}  // namespace

std::unique_ptr<Kernel> make_copy(const KernelSpec& spec, std::string*) {
  check_copy(spec);
  return std::make_unique<StatedKernel<NoState>>("copy", NoState{}, run_copy);
}

std::unique_ptr<Kernel> make_cat(const KernelSpec& spec, std::string*) {
  return std::make_unique<StatedKernel<CatState>>("cat", CatState{check_cat(spec)}, run_cat);
}

}  // namespace autodeploy
