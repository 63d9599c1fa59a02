#include "kernels/cuda/linear_epilogue.h"
#include "kernels/cuda/linear_small_run.inc"

namespace autodeploy::cuda {

AD_SMALL_LINEAR(GateStore)

}  // namespace autodeploy::cuda
