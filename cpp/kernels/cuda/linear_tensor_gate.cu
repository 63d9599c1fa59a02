#include "kernels/cuda/linear_epilogue.h"
#include "kernels/cuda/linear_tensor_run.inc"

namespace autodeploy::cuda {

AD_TENSOR_LINEAR(GateStore)

}  // namespace autodeploy::cuda
