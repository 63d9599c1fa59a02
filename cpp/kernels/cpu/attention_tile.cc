#include "kernels/cpu/attention_tile.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "kernels/cpu/half.h"
#include "kernels/cpu/intrinsics.h"

#define AD_ISA_SOURCE "kernels/cpu/attention_tile.inc"
#include "kernels/cpu/foreach_isa.inc"

namespace autodeploy {

AttentionKernels attention_kernels(Isa isa) { return AD_PICK_ISA(isa, kAttentionKernels); }

}  // namespace autodeploy
