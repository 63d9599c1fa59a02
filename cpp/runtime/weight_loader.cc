#include "runtime/weight_loader.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "core/error.h"
#include "runtime/mapped_file.h"
#include "runtime/sha256.h"
#include "runtime/weight_convert.h"
#include "runtime/weight_eval.h"

namespace autodeploy {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kRowsAtOnce = 64;         // rows of a buffer while packing; a multiple of the granule
constexpr int64_t kWindowBytes = 32 << 20;  // what is repacked before mapped pages are given back
constexpr int64_t kFaultBytes = 64 << 10;   // that the system may map around a row that is touched
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

Format plain_format(DType t) {
  switch (t) {
    case DType::kF32:
      return Format::kF32;
    case DType::kF16:
      return Format::kF16;
    case DType::kBF16:
      return Format::kBF16;
    case DType::kI64:
      return Format::kI64;
    case DType::kBool:
      return Format::kBool;
  }
  return Format::kF32;
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

std::vector<int32_t> tensors_of(const WeightExpr& e) {
  std::vector<int32_t> tensors;
  collect_tensors(e, tensors);
  std::sort(tensors.begin(), tensors.end());
  tensors.erase(std::unique(tensors.begin(), tensors.end()), tensors.end());
  return tensors;
}

const WeightParam& find_param(const WeightProgram& weights, const ParamSpec& spec) {
  const auto it = weights.by_name.find(spec.name);
  AD_CHECK(it != weights.by_name.end(), ErrorKind::kInvalidArtifact, "[weights.json] expected the param ",
           spec.name, " of program.json, found none; compile the model again");
  const WeightParam& p = weights.params[static_cast<size_t>(it->second)];
  AD_CHECK(p.shape == spec.shape, ErrorKind::kInvalidArtifact, "[weights.json: ", spec.name,
           "] expected the shape ", shape_text(spec.shape), " of program.json, found ", shape_text(p.shape));
  for (const WeightSegment& s : p.segments) {
    for (int32_t t : tensors_of(*s.expr))
      AD_CHECK(weights.tensors[static_cast<size_t>(t)].source >= 0, ErrorKind::kInvalidArtifact,
               "[weights: ", p.name,
               "] expected weights, found an artifact that was compiled from a configuration alone; load it "
               "with load_format=dummy, or compile a checkpoint");
  }
  return p;
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

std::vector<MappedFile> open_sources(const WeightProgram& weights, const std::string& artifact_dir) {
  std::vector<MappedFile> files;
  for (const WeightSource& s : weights.sources) {
    const std::string path = s.path.front() == '/' ? s.path : artifact_dir + "/" + s.path;
    MappedFile file(path);
    AD_CHECK(file.size() == s.size, ErrorKind::kInvalidArtifact, "[weights] expected ", path, " of ", s.size,
             " bytes, as it was when the model was "
             "compiled, found ",
             file.size(), "; compile the model again");
    const std::string found = sha256_hex(file.bytes().first(static_cast<size_t>(s.header_bytes)));
    AD_CHECK(found == s.fingerprint, ErrorKind::kInvalidArtifact, "[weights] expected ", path,
             " as it was when the model was compiled, found another "
             "header; compile the model again");
    file.drop(0, file.size());
    files.push_back(std::move(file));
  }
  return files;
}

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

namespace {

// Whether rows come from each tensor in the order in which they lie there.
bool keeps_order(const WeightExpr& e) {
  if (e.op == WeightExpr::Op::kPermute || e.op == WeightExpr::Op::kTake ||
      (e.op == WeightExpr::Op::kSlice && e.step > 1))
    return false;
  return std::all_of(e.xs.begin(), e.xs.end(), [](const auto& x) { return keeps_order(*x); });
}

// Memory that loading a segment needs besides its result: what is made of cut rows, and mapped pages of the
// files.
int64_t segment_scratch(const WeightProgram& weights, const WeightSegment& s) {
  const int64_t made = WeightEvaluator::scratch_bytes(*s.expr);
  int64_t mapped = 0;
  for (int32_t t : tensors_of(*s.expr)) mapped += weights.tensors[static_cast<size_t>(t)].nbytes;
  if (made > 0) return made + mapped;
  // Read in windows of rows, a tensor's in order or each with the pages around it.
  const int64_t all = std::max<int64_t>(s.expr->numel(), 1),
                row = s.expr->shape.empty() ? 1 : s.expr->shape.back();
  const int64_t window =
      std::min(all, kWindowBytes / format_info(s.format).block_bytes * format_info(s.format).block_len +
                        kRowsAtOnce * row);
  const int64_t share = static_cast<int64_t>(static_cast<double>(mapped) * static_cast<double>(window) /
                                             static_cast<double>(all));
  const int64_t places = keeps_order(*s.expr) ? 2 * static_cast<int64_t>(tensors_of(*s.expr).size())
                                              : window / std::max<int64_t>(row, 1);
  return std::min(mapped, share + places * kFaultBytes);
}

}  // namespace

WeightPlan plan_weights(const WeightProgram& weights, std::span<const ParamSpec> params, int num_threads) {
  WeightPlan plan;
  for (const ParamSpec& spec : params) {
    const WeightParam& p = find_param(weights, spec);
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

// What a segment is read from. Pages are given back while reading, so that large weights are not in memory
// twice.
class SegmentReader {
 public:
  SegmentReader(const WeightSegment& s, const WeightProgram& weights, std::span<const MappedFile> files,
                ThreadPool& pool)
      : weights_(weights),
        files_(files),
        tensors_(tensors_of(*s.expr)),
        rows_(*s.expr, weights, files, pool) {
    if (WeightEvaluator::scratch_bytes(*s.expr) > 0) drop();  // read already
  }
  ~SegmentReader() { drop(); }
  SegmentReader(const SegmentReader&) = delete;
  SegmentReader& operator=(const SegmentReader&) = delete;

  const WeightEvaluator& rows() const { return rows_; }
  void drop() const {
    for (int32_t t : tensors_) {
      const StoredTensor& stored = weights_.tensors[static_cast<size_t>(t)];
      files_[static_cast<size_t>(stored.source)].drop(stored.offset, stored.offset + stored.nbytes);
    }
  }

 private:
  const WeightProgram& weights_;
  std::span<const MappedFile> files_;
  std::vector<int32_t> tensors_;
  WeightEvaluator rows_;
};

// Calls f(first row, rows, their bytes in `format`) from several threads; no call crosses a multiple of
// part_rows.
template <class F>
void stream_rows(const SegmentReader& segment, Format format, int64_t part_rows, ThreadPool& pool, F&& f) {
  const WeightEvaluator& rows = segment.rows();
  const int64_t parts = part_rows > 0 ? rows.rows() / part_rows : 0,
                chunks = (part_rows + kRowsAtOnce - 1) / kRowsAtOnce;
  const int64_t out_bytes = format_row_bytes(format, rows.row_len()),
                grain = 1 + (1 << 20) / (kRowsAtOnce * (out_bytes + 1));
  const auto work = [&](int64_t task, int64_t end) {
    std::vector<uint8_t> raw(static_cast<size_t>(kRowsAtOnce * rows.row_bytes()) + 8), out;
    if (format != rows.format()) out.resize(static_cast<size_t>(kRowsAtOnce * out_bytes));
    for (; task < end; ++task) {
      const int64_t first = task / chunks * part_rows + task % chunks * kRowsAtOnce;
      const int64_t n = std::min(kRowsAtOnce, (task / chunks + 1) * part_rows - first);
      const uint8_t* data = rows.read(first, n, raw.data());
      if (format != rows.format()) {
        for (int64_t i = 0; i < n; ++i)
          convert_row(rows.format(), data + i * rows.row_bytes(), format, out.data() + i * out_bytes,
                      rows.row_len());
        data = out.data();
      } else if (data != raw.data() && reinterpret_cast<uintptr_t>(data) % 4 != 0) {
        std::memcpy(raw.data(), data,
                    static_cast<size_t>(n * rows.row_bytes()));  // packing reads whole words
        data = raw.data();
      }
      f(first, n, data);
    }
  };
  const int64_t window = 1 + kWindowBytes / (kRowsAtOnce * (rows.row_bytes() + 1));
  for (int64_t at = 0; at < parts * chunks; at += window) {
    const int64_t count = std::min(window, parts * chunks - at);
    pool.parallel_for(count, grain, [&](int64_t begin, int64_t end, int) { work(at + begin, at + end); });
    segment.drop();
  }
}

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
  const std::vector<MappedFile> files = open_sources(weights, artifact_dir);
  impl.pool = Pool(impl.plan.resident_bytes);
  pool.begin_step();
  struct EndStep {
    ThreadPool& pool;
    ~EndStep() { pool.end_step(); }
  } end_step{pool};
  int64_t done = 0;
  for (size_t i = 0; i < params.size(); ++i) {
    const ParamSpec& spec = params[i];
    const WeightParam& p = find_param(weights, spec);
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
