#include "kernels/cuda/linear_epilogue.h"
#include "kernels/cuda/linear_wgmma_run.inc"

namespace autodeploy::cuda {

AD_WGMMA_LINEAR(GateStore)

}  // namespace autodeploy::cuda
