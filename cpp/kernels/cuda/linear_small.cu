#include "kernels/cuda/linear_small.h"

namespace autodeploy::cuda {
namespace {

// Steps in a lane's queue: 16 pieces of 16 bytes in all kernels.
constexpr int kPieces = 16;
constexpr size_t kMostShared = size_t{200} << 10;

// f(kernel, launcher) for the kernel that a choice names.
template <class T, class Epilogue>
void run(const SmallLinearArgs& a, const Epilogue& epilogue, const SmallLinearChoice& c,
         const SmallLinearLaunch& l, Stream stream) {
  constexpr int kSlices = Epilogue::kSlices;
  if (!c.tensor_cores) {
    launch_gemv<T, 1, kPieces / kSlices>(a, epilogue, l, stream);
    return;
  }
  const auto mma = [&](auto octets) {
    constexpr int kOctets = decltype(octets)::value, kStages = kPieces / (2 * kOctets);
    if (a.rows <= 8) {
      if (c.staged)
        launch_mma<T, kOctets, 1, kStages, true>(a, epilogue, l, stream);
      else
        launch_mma<T, kOctets, 1, kStages, false>(a, epilogue, l, stream);
    } else {
      if (c.staged)
        launch_mma<T, kOctets, 2, kStages, true>(a, epilogue, l, stream);
      else
        launch_mma<T, kOctets, 2, kStages, false>(a, epilogue, l, stream);
    }
  };
  if (c.octets == 4)
    mma(std::integral_constant<int, 4>{});
  else
    mma(std::integral_constant<int, 2>{});
}

template <class T, class Epilogue>
bool prepare() {
  constexpr int kSlices = Epilogue::kSlices;
  return allow_shared(gemv_kernel<T, 1, kPieces / kSlices, Epilogue>, kMostShared) &&
         allow_shared(mma_kernel<T, 2, 1, kPieces / 4, true, Epilogue>, kMostShared) &&
         allow_shared(mma_kernel<T, 2, 1, kPieces / 4, false, Epilogue>, kMostShared) &&
         allow_shared(mma_kernel<T, 2, 2, kPieces / 4, true, Epilogue>, kMostShared) &&
         allow_shared(mma_kernel<T, 2, 2, kPieces / 4, false, Epilogue>, kMostShared) &&
         allow_shared(mma_kernel<T, 4, 1, kPieces / 8, true, Epilogue>, kMostShared) &&
         allow_shared(mma_kernel<T, 4, 1, kPieces / 8, false, Epilogue>, kMostShared) &&
         allow_shared(mma_kernel<T, 4, 2, kPieces / 8, true, Epilogue>, kMostShared) &&
         allow_shared(mma_kernel<T, 4, 2, kPieces / 8, false, Epilogue>, kMostShared);
}

}  // namespace

bool prepare_small_linear() { return prepare<bf16, StoreLinear>() && prepare<f16, StoreLinear>(); }

void run_small_linear(DType dtype, const SmallLinearArgs& a, int processors, Stream stream) {
  const SmallLinearChoice c = choose_small_linear(a.rows, a.cols, a.outputs, 1, processors);
  const SmallLinearLaunch l{c.warps, c.warps_k, c.blocks_per_processor * processors, c.l2_bytes, true};
  if (dtype == DType::kBF16)
    run<bf16>(a, StoreLinear{}, c, l, stream);
  else
    run<f16>(a, StoreLinear{}, c, l, stream);
}

}  // namespace autodeploy::cuda
