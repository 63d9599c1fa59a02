#include "kernels/cuda/linear_wgmma_run.inc"

namespace autodeploy::cuda {

AD_WGMMA_LINEAR(StoreLinear)

}  // namespace autodeploy::cuda
