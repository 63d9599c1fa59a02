#include "kernels/cuda/cublaslt.h"

#include "core/own_folder.h"

#ifndef AUTODEPLOY_SIMT_EMULATION
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <library_types.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>
#include <vector>
#endif

namespace autodeploy::cuda {

#ifdef AUTODEPLOY_SIMT_EMULATION

std::unique_ptr<LtLinear> LtLinear::make(DType, int64_t, int64_t, bool, std::string* why) {
  *why = "the emulated device has no cuBLASLt";
  return nullptr;
}

#else

namespace {

// ---- what we use of the library's interface, stable since its version 11 ----

using Status = int;  // 0: success
using Handle = struct HandleTag*;
using MatmulDesc = struct MatmulDescTag*;
using Layout = struct LayoutTag*;
using Preference = struct PreferenceTag*;
struct Algo {
  uint64_t data[8];
};
struct HeuristicResult {
  Algo algo;
  size_t workspace;
  Status state;
  float waves;
  int reserved[4];
};
constexpr int kCompute32F = 68;
constexpr int32_t kTransposed = 1;
constexpr int kDescTransA = 3, kDescEpilogue = 7, kDescBiasPointer = 8, kDescBiasType = 26;
constexpr uint32_t kEpilogueBias = 4;
constexpr int kLayoutRows = 2, kLayoutCols = 3, kLayoutStride = 4;
constexpr int kPreferWorkspace = 1, kPreferAlignA = 5, kPreferAlignB = 6, kPreferAlignC = 7,
              kPreferAlignD = 8;

struct Library {
  Status (*create)(Handle*);
  Status (*desc_create)(MatmulDesc*, int compute, cudaDataType scale);
  Status (*desc_destroy)(MatmulDesc);
  Status (*desc_set)(MatmulDesc, int attribute, const void*, size_t);
  Status (*layout_create)(Layout*, cudaDataType, uint64_t rows, uint64_t cols, int64_t stride);
  Status (*layout_destroy)(Layout);
  Status (*layout_set)(Layout, int attribute, const void*, size_t);
  Status (*preference_create)(Preference*);
  Status (*preference_destroy)(Preference);
  Status (*preference_set)(Preference, int attribute, const void*, size_t);
  Status (*heuristic)(Handle, MatmulDesc, Layout a, Layout b, Layout c, Layout d, Preference, int wanted,
                      HeuristicResult*, int* found);
  Status (*matmul)(Handle, MatmulDesc, const void* alpha, const void* a, Layout, const void* b, Layout,
                   const void* beta, const void* c, Layout, void* d, Layout, const Algo*, void* workspace,
                   size_t, cudaStream_t);
};

bool is_folder(const std::string& path) {
  struct stat s;
  return stat(path.c_str(), &s) == 0 && S_ISDIR(s.st_mode);
}

void* open_library(std::string* why) {
  static const char* const kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};
  std::vector<std::string> tried;
  if (const char* path = std::getenv("AUTODEPLOY_CUBLASLT"); path && *path) {
    if (!is_folder(path)) {
      tried.emplace_back(path);
    } else {
      for (const char* name : kNames) tried.push_back(std::string(path) + "/" + name);
    }
  }
  for (const char* name : kNames) tried.emplace_back(name);
  // The toolkit's, and the package nvidia-cublas beside an installed autodeploy.
  for (const std::string& folder :
       {std::string("/usr/local/cuda/lib64"), own_folder() + "/../nvidia/cu13/lib",
        own_folder() + "/../nvidia/cublas/lib"}) {
    for (const char* name : kNames) tried.push_back(folder + "/" + name);
  }
  for (const std::string& name : tried) {
    if (void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
  }
  const char* reason = dlerror();
  *why = "libcublasLt was not found (AUTODEPLOY_CUBLASLT may name its file or folder): " +
         std::string(reason ? reason : "no reason given");
  return nullptr;
}

template <class F>
bool find(void* library, const char* name, F* f) {
  *f = reinterpret_cast<F>(dlsym(library, name));
  return *f != nullptr;
}

// Opened once, never closed; nullptr with the reason.
const Library* library(std::string* why) {
  static std::string reason;
  static const Library* opened = [] {
    static Library l;
    void* so = open_library(&reason);
    if (!so) return static_cast<const Library*>(nullptr);
    const bool complete =
        find(so, "cublasLtCreate", &l.create) && find(so, "cublasLtMatmulDescCreate", &l.desc_create) &&
        find(so, "cublasLtMatmulDescDestroy", &l.desc_destroy) &&
        find(so, "cublasLtMatmulDescSetAttribute", &l.desc_set) &&
        find(so, "cublasLtMatrixLayoutCreate", &l.layout_create) &&
        find(so, "cublasLtMatrixLayoutDestroy", &l.layout_destroy) &&
        find(so, "cublasLtMatrixLayoutSetAttribute", &l.layout_set) &&
        find(so, "cublasLtMatmulPreferenceCreate", &l.preference_create) &&
        find(so, "cublasLtMatmulPreferenceDestroy", &l.preference_destroy) &&
        find(so, "cublasLtMatmulPreferenceSetAttribute", &l.preference_set) &&
        find(so, "cublasLtMatmulAlgoGetHeuristic", &l.heuristic) && find(so, "cublasLtMatmul", &l.matmul);
    if (!complete) reason = "libcublasLt lacks a function that is needed";
    return complete ? static_cast<const Library*>(&l) : nullptr;
  }();
  *why = reason;
  return opened;
}

// The library's context on the current device; made once for each.
Handle handle_of_device(const Library& l) {
  static std::mutex mutex;
  static std::map<int, Handle> handles;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  Handle& handle = handles[device];
  if (!handle && l.create(&handle) != 0) handle = nullptr;
  return handle;
}

cudaDataType data_type(DType t) {
  return t == DType::kBF16 ? CUDA_R_16BF : t == DType::kF16 ? CUDA_R_16F : CUDA_R_32F;
}

// Alignment of an address or of a number of bytes, up to 16.
uint32_t alignment(uint64_t x) {
  uint32_t a = 16;
  while (x % a != 0) a /= 2;
  return a;
}

// The library reads matrices by columns: a row-major [r, c] is a column-major [c, r], so weight [K, N] is
// transposed, and the result is y as [N, M].
class LtLinearImpl final : public LtLinear {
 public:
  LtLinearImpl(const Library& l, Handle handle, DType dtype, int64_t n, int64_t k)
      : l_(l), handle_(handle), dtype_(dtype), n_(n), k_(k) {}
  ~LtLinearImpl() override {
    if (desc_) l_.desc_destroy(desc_);
    if (preference_) l_.preference_destroy(preference_);
    for (Layout layout : {weight_, x_, y_}) {
      if (layout) l_.layout_destroy(layout);
    }
  }

  bool init(bool bias) {
    const cudaDataType type = data_type(dtype_);
    const auto n = static_cast<uint64_t>(n_), k = static_cast<uint64_t>(k_);
    bool ok = l_.desc_create(&desc_, kCompute32F, CUDA_R_32F) == 0 &&
              l_.desc_set(desc_, kDescTransA, &kTransposed, sizeof(kTransposed)) == 0 &&
              l_.layout_create(&weight_, type, k, n, k_) == 0 && l_.layout_create(&x_, type, k, 1, k_) == 0 &&
              l_.layout_create(&y_, type, n, 1, n_) == 0 && l_.preference_create(&preference_) == 0;
    if (ok && bias) {
      const int32_t bias_type = type;
      ok = l_.desc_set(desc_, kDescEpilogue, &kEpilogueBias, sizeof(kEpilogueBias)) == 0 &&
           l_.desc_set(desc_, kDescBiasType, &bias_type, sizeof(bias_type)) == 0;
    }
    return ok;
  }

  const char* run(void* stream, int64_t m, const void* x, int64_t x_stride, const void* weight,
                  const void* bias, void* y, int64_t y_stride, void* workspace,
                  size_t workspace_bytes) override {
    if (m == 0) return nullptr;
    const std::lock_guard<std::mutex> lock(mutex_);
    // The library wants it at a multiple of 256 bytes.
    const auto begin = (reinterpret_cast<uintptr_t>(workspace) + 255) / 256 * 256;
    workspace = reinterpret_cast<void*>(begin);
    workspace_bytes = workspace_bytes > 256 ? workspace_bytes - 256 : 0;
    const int64_t size = dtype_size(dtype_);
    const auto align = [&](const void* p, int64_t stride) {
      return std::min(alignment(reinterpret_cast<uintptr_t>(p)),
                      alignment(static_cast<uint64_t>(stride * size)));
    };
    const std::array<uint32_t, 3> aligned{align(weight, k_), align(x, x_stride), align(y, y_stride)};
    const Key key{bucket(m), x_stride, y_stride, aligned};
    if (bias && l_.desc_set(desc_, kDescBiasPointer, &bias, sizeof(bias)) != 0)
      return "cuBLASLt does not take the bias";
    auto found = algos_.find(key);
    if (found == algos_.end()) {
      HeuristicResult result;
      if (!ask(bucket(m), x_stride, y_stride, aligned, workspace_bytes, &result))
        return "cuBLASLt has no algorithm for this product";
      found = algos_.emplace(key, result).first;
    }
    if (!set_rows(m, x_stride, y_stride)) return "cuBLASLt does not take the layouts";
    Status status = multiply(found->second, x, weight, y, workspace, workspace_bytes, stream);
    if (status != 0) {
      // The algorithm was chosen for a few more rows; ask again for just these.
      HeuristicResult result;
      if (ask(m, x_stride, y_stride, aligned, workspace_bytes, &result))
        status = multiply(result, x, weight, y, workspace, workspace_bytes, stream);
    }
    return status == 0 ? nullptr : "cuBLASLt failed to launch a product";
  }

 private:
  // Rows (a bucket), strides of x and y, alignments.
  using Key = std::tuple<int64_t, int64_t, int64_t, std::array<uint32_t, 3> >;

  // Algorithms are chosen for a few numbers of rows: exact up to 64, then in steps of about an eighth.
  static int64_t bucket(int64_t m) {
    int64_t step = 1;
    while (m > step * 64) step *= 2;
    step *= step > 1 ? 4 : 1;
    return (m + step - 1) / step * step;
  }

  bool set_rows(int64_t m, int64_t x_stride, int64_t y_stride) {
    const auto cols = static_cast<uint64_t>(m);
    return l_.layout_set(x_, kLayoutCols, &cols, sizeof(cols)) == 0 &&
           l_.layout_set(y_, kLayoutCols, &cols, sizeof(cols)) == 0 &&
           l_.layout_set(x_, kLayoutStride, &x_stride, sizeof(x_stride)) == 0 &&
           l_.layout_set(y_, kLayoutStride, &y_stride, sizeof(y_stride)) == 0;
  }

  bool ask(int64_t m, int64_t x_stride, int64_t y_stride, const std::array<uint32_t, 3>& aligned,
           size_t workspace_bytes, HeuristicResult* result) {
    const uint64_t bytes = workspace_bytes;
    const bool ready = set_rows(m, x_stride, y_stride) &&
                       l_.preference_set(preference_, kPreferWorkspace, &bytes, sizeof(bytes)) == 0 &&
                       l_.preference_set(preference_, kPreferAlignA, &aligned[0], sizeof(uint32_t)) == 0 &&
                       l_.preference_set(preference_, kPreferAlignB, &aligned[1], sizeof(uint32_t)) == 0 &&
                       l_.preference_set(preference_, kPreferAlignC, &aligned[2], sizeof(uint32_t)) == 0 &&
                       l_.preference_set(preference_, kPreferAlignD, &aligned[2], sizeof(uint32_t)) == 0;
    int found = 0;
    return ready && l_.heuristic(handle_, desc_, weight_, x_, y_, y_, preference_, 1, result, &found) == 0 &&
           found == 1 && result->state == 0;
  }

  Status multiply(const HeuristicResult& how, const void* x, const void* weight, void* y, void* workspace,
                  size_t workspace_bytes, void* stream) const {
    const float one = 1, zero = 0;
    return l_.matmul(handle_, desc_, &one, weight, weight_, x, x_, &zero, y, y_, y, y_, &how.algo, workspace,
                     workspace_bytes, static_cast<cudaStream_t>(stream));
  }

  const Library& l_;
  Handle handle_;
  DType dtype_;
  int64_t n_, k_;
  std::mutex mutex_;  // the layouts are those of the call under way
  MatmulDesc desc_ = nullptr;
  Layout weight_ = nullptr, x_ = nullptr, y_ = nullptr;
  Preference preference_ = nullptr;
  std::map<Key, HeuristicResult> algos_;
};

}  // namespace

std::unique_ptr<LtLinear> LtLinear::make(DType dtype, int64_t n, int64_t k, bool bias, std::string* why) {
  const Library* l = library(why);
  if (!l) return nullptr;
  const Handle handle = handle_of_device(*l);
  if (!handle) {
    *why = "cuBLASLt could not be started on this device";
    return nullptr;
  }
  auto linear = std::make_unique<LtLinearImpl>(*l, handle, dtype, n, k);
  if (!linear->init(bias)) {
    *why = "cuBLASLt does not take products of this type";
    return nullptr;
  }
  return linear;
}

#endif

}  // namespace autodeploy::cuda
