#include "runtime/weight_loader.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "core/error.h"
#include "runtime/mapped_file.h"
#include "runtime/weight_stream.h"

namespace autodeploy {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kMaxResident = int64_t{1} << 50;

int64_t aligned(int64_t n) { return (n + kAlignment - 1) / kAlignment * kAlignment; }

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string s = "[";
  for (size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + "]";
}

// What the kernels multiply: float formats and blocks; everything else becomes float32.
Format packed_format(Format f) {
  return is_quantized(f) || f == Format::kF32 || f == Format::kF16 || f == Format::kBF16 ? f : Format::kF32;
}

// The segments of a weight operand in the kernels' layout, without memory.
PackedWeight plan_packed(const WeightParam& p) {
  AD_CHECK(p.shape.size() == 2 || (p.shape.size() == 3 && p.segments.size() == 1),
           ErrorKind::kInvalidArtifact, "[weights: ", p.name,
           "] expected a weight operand [N, K], or [E, N, K] in one segment, found ", shape_text(p.shape),
           " in ", p.segments.size(), " segments");
  PackedWeight w{p.name, p.shape, {}};
  for (const WeightSegment& s : p.segments) {
    const int64_t rows = p.shape.size() == 3 ? p.shape[0] * p.shape[1] : s.rows;
    w.segments.push_back(plan_packed_segment(packed_format(s.format), rows, p.shape.back(),
                                             p.shape.size() == 3 ? p.shape[1] : rows));
  }
  return w;
}

// Anonymous memory in one piece, on large pages where the system has them; filled once, then only read.
class Pool {
 public:
  Pool() = default;
  explicit Pool(int64_t bytes) : bytes_(std::max<int64_t>(bytes, 1)) {
    void* p = mmap(nullptr, static_cast<size_t>(bytes_), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                   -1, 0);
    AD_CHECK(p != MAP_FAILED, ErrorKind::kOutOfMemory, "[weights] expected ", bytes_,
             " bytes of memory for the weights, the system has not that "
             "much; choose a smaller model or a quantized one");
    madvise(p, static_cast<size_t>(bytes_), MADV_HUGEPAGE);
    data_ = static_cast<uint8_t*>(p);
  }
  ~Pool() {
    if (data_) munmap(data_, static_cast<size_t>(bytes_));
  }
  Pool(Pool&& o) noexcept { *this = std::move(o); }
  Pool& operator=(Pool&& o) noexcept {
    std::swap(data_, o.data_);
    std::swap(bytes_, o.bytes_);
    std::swap(used_, o.used_);
    return *this;
  }
  uint8_t* take(int64_t bytes) {
    uint8_t* p = data_ + used_;
    used_ += aligned(bytes);
    AD_ICHECK(used_ <= bytes_, "the weight plan covers every param");
    return p;
  }

 private:
  uint8_t* data_ = nullptr;
  int64_t bytes_ = 0, used_ = 0;
};

}  // namespace

struct LoadedWeights::Impl {
  WeightPlan plan;
  Pool pool;
  std::unordered_map<std::string, TensorView> plain;
  std::unordered_map<std::string, std::unique_ptr<PackedWeight>> packed;
};

LoadedWeights::LoadedWeights() : impl_(std::make_unique<Impl>()) {}
LoadedWeights::~LoadedWeights() = default;
LoadedWeights::LoadedWeights(LoadedWeights&&) noexcept = default;
LoadedWeights& LoadedWeights::operator=(LoadedWeights&&) noexcept = default;

TensorView LoadedWeights::plain(const std::string& name) const {
  const auto it = impl_->plain.find(name);
  return it == impl_->plain.end() ? TensorView{} : it->second;
}

const PackedWeight* LoadedWeights::packed(const std::string& name) const {
  const auto it = impl_->packed.find(name);
  return it == impl_->packed.end() ? nullptr : it->second.get();
}

const WeightPlan& LoadedWeights::plan() const { return impl_->plan; }

WeightPlan plan_weights(const WeightProgram& weights, std::span<const ParamSpec> params, int num_threads) {
  WeightPlan plan;
  for (const ParamSpec& spec : params) {
    const WeightParam& p = find_weight_param(weights, spec);
    ParamPlan out{p.name, 0, 0};
    int64_t scratch = 0;
    for (const WeightSegment& s : p.segments) scratch = std::max(scratch, segment_scratch(weights, s));
    if (spec.used_as_weight) {
      for (const PackedSegment& s : plan_packed(p).segments) out.packed_bytes += aligned(s.bytes);
    }
    if (spec.used_as_plain) out.plain_bytes = spec.numel() * dtype_size(spec.dtype);
    const int64_t row = p.shape.empty() ? 8 : 8 * p.shape.back();
    plan.scratch_bytes = std::max(plan.scratch_bytes, scratch + num_threads * kRowsAtOnce * row);
    plan.resident_bytes += out.packed_bytes + aligned(out.plain_bytes);
    AD_CHECK(plan.resident_bytes <= kMaxResident, ErrorKind::kOutOfMemory,
             "[weights] expected params of fewer bytes, found ", plan.resident_bytes, " with ", p.name);
    plan.params.push_back(std::move(out));
  }
  return plan;
}

namespace {

void load_packed(const WeightParam& p, const WeightProgram& weights, std::span<const MappedFile> files,
                 ThreadPool& pool, Pool& memory, PackedWeight& w) {
  w = plan_packed(p);
  for (size_t i = 0; i < w.segments.size(); ++i) {
    PackedSegment& s = w.segments[i];
    uint8_t* dst = memory.take(s.bytes);
    s.data = dst;
    const SegmentReader segment(p.segments[i], weights, files, pool);
    stream_rows(segment, s.format, s.group_rows, pool,
                [&](int64_t first, int64_t n, const uint8_t* src) { pack_rows(s, first, n, src, dst); });
  }
}

TensorView load_plain(const WeightParam& p, DType dtype, const WeightProgram& weights,
                      std::span<const MappedFile> files, ThreadPool& pool, Pool& memory) {
  TensorView view;
  view.dtype = dtype;
  view.ndim = static_cast<int>(p.shape.size());
  int64_t stride = 1;
  for (int d = view.ndim - 1; d >= 0; --d) {
    view.shape[static_cast<size_t>(d)] = p.shape[static_cast<size_t>(d)];
    view.stride[static_cast<size_t>(d)] = stride;
    stride *= p.shape[static_cast<size_t>(d)];
  }
  uint8_t* dst = memory.take(stride * dtype_size(dtype));
  view.data = dst;
  for (const WeightSegment& s : p.segments) {
    const SegmentReader segment(s, weights, files, pool);
    const WeightEvaluator& rows = segment.rows();
    const int64_t bytes = rows.row_len() * dtype_size(dtype);
    stream_rows(segment, plain_format(dtype), rows.rows(), pool,
                [&](int64_t first, int64_t n, const uint8_t* src) {
                  std::memcpy(dst + first * bytes, src, static_cast<size_t>(n * bytes));
                });
    dst += rows.rows() * bytes;
  }
  return view;
}

}  // namespace

LoadedWeights load_weights(const WeightProgram& weights, const std::string& artifact_dir,
                           std::span<const ParamSpec> params, ThreadPool& pool,
                           const std::function<void(int64_t, int64_t)>& progress) {
  LoadedWeights loaded;
  LoadedWeights::Impl& impl = *loaded.impl_;
  impl.plan = plan_weights(weights, params, pool.num_threads());
  const std::vector<MappedFile> files = open_weight_sources(weights, artifact_dir);
  impl.pool = Pool(impl.plan.resident_bytes);
  pool.begin_step();
  struct EndStep {
    ThreadPool& pool;
    ~EndStep() { pool.end_step(); }
  } end_step{pool};
  int64_t done = 0;
  for (size_t i = 0; i < params.size(); ++i) {
    const ParamSpec& spec = params[i];
    const WeightParam& p = find_weight_param(weights, spec);
    if (spec.used_as_weight) {
      auto w = std::make_unique<PackedWeight>();
      load_packed(p, weights, files, pool, impl.pool, *w);
      impl.packed[p.name] = std::move(w);
    }
    if (spec.used_as_plain) impl.plain[p.name] = load_plain(p, spec.dtype, weights, files, pool, impl.pool);
    done += impl.plan.params[i].packed_bytes + aligned(impl.plan.params[i].plain_bytes);
    if (progress) progress(done, impl.plan.resident_bytes);
  }
  if (progress && params.empty()) progress(0, 0);
  return loaded;
}

}  // namespace autodeploy
