#include "kernels/generic/region_tile.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/half.h"
#include "kernels/cpu/intrinsics.h"

#define AD_ISA_SOURCE "kernels/generic/region_tile.inc"
#include "kernels/cpu/foreach_isa.inc"
#undef AD_ISA_SOURCE

namespace autodeploy {

const TileTable& tile_table(Isa isa) { return AD_PICK_ISA(isa, kTileTable); }

}  // namespace autodeploy
