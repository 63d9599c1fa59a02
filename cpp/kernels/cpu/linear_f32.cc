#include "kernels/cpu/linear_f32.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "kernels/cpu/half.h"
#include "kernels/cpu/intrinsics.h"
#include "kernels/cpu/packed_layout.h"

#define AD_ISA_SOURCE "kernels/cpu/linear_f32.inc"
#include "kernels/cpu/foreach_isa.inc"

namespace autodeploy {

F32Kernels f32_kernels(Isa isa) { return AD_PICK_ISA(isa, kF32Kernels); }

}  // namespace autodeploy
