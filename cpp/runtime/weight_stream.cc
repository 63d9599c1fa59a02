#include "runtime/weight_stream.h"

#include <functional>
#include <utility>

#include "core/error.h"
#include "runtime/sha256.h"

namespace autodeploy {
namespace {

constexpr int64_t kFaultBytes = 64 << 10;  // that the system may map around a row that is touched

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string s = "[";
  for (size_t i = 0; i < shape.size(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + "]";
}

std::vector<int32_t> tensors_of(const WeightExpr& e) {
  std::vector<int32_t> tensors;
  collect_tensors(e, tensors);
  std::sort(tensors.begin(), tensors.end());
  tensors.erase(std::unique(tensors.begin(), tensors.end()), tensors.end());
  return tensors;
}

// Whether rows come from each tensor in the order in which they lie there.
bool keeps_order(const WeightExpr& e) {
  if (e.op == WeightExpr::Op::kPermute || e.op == WeightExpr::Op::kTake ||
      (e.op == WeightExpr::Op::kSlice && e.step > 1))
    return false;
  return std::all_of(e.xs.begin(), e.xs.end(), [](const auto& x) { return keeps_order(*x); });
}

}  // namespace

const WeightParam& find_weight_param(const WeightProgram& weights, const ParamSpec& spec) {
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

std::vector<MappedFile> open_weight_sources(const WeightProgram& weights, const std::string& artifact_dir) {
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

Format plain_format(DType type) {
  switch (type) {
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

SegmentReader::SegmentReader(const WeightSegment& s, const WeightProgram& weights,
                             std::span<const MappedFile> files, ThreadPool& pool)
    : weights_(weights), files_(files), tensors_(tensors_of(*s.expr)), rows_(*s.expr, weights, files, pool) {
  if (WeightEvaluator::scratch_bytes(*s.expr) > 0) drop();  // read already
}

void SegmentReader::drop() const {
  for (int32_t t : tensors_) {
    const StoredTensor& stored = weights_.tensors[static_cast<size_t>(t)];
    files_[static_cast<size_t>(stored.source)].drop(stored.offset, stored.offset + stored.nbytes);
  }
}

void SegmentReader::will_need(int64_t begin, int64_t end) const {
  const double rows = static_cast<double>(std::max<int64_t>(rows_.rows(), 1));
  int64_t all = 0, at = 0;
  for (int32_t t : tensors_) all += weights_.tensors[static_cast<size_t>(t)].nbytes;
  const auto from = static_cast<int64_t>(static_cast<double>(all) * (static_cast<double>(begin) / rows));
  const auto to = static_cast<int64_t>(static_cast<double>(all) * (static_cast<double>(end) / rows));
  for (int32_t t : tensors_) {
    const StoredTensor& stored = weights_.tensors[static_cast<size_t>(t)];
    const int64_t first = std::max<int64_t>(from - at, 0), last = std::min(to - at, stored.nbytes);
    if (first < last)
      files_[static_cast<size_t>(stored.source)].will_need(stored.offset + first, stored.offset + last);
    at += stored.nbytes;
  }
}

const MappedFile* SegmentReader::file_of(const uint8_t* data, int64_t bytes) const {
  for (int32_t t : tensors_) {
    const MappedFile& file = files_[static_cast<size_t>(weights_.tensors[static_cast<size_t>(t)].source)];
    if (std::less_equal<>()(file.data(), data) &&
        std::less_equal<>()(data + bytes, file.data() + file.size()))
      return &file;
  }
  return nullptr;
}

void SegmentReader::copy_rows(int64_t first, int64_t n, Format format, uint8_t* dst,
                              std::vector<uint8_t>& raw) const {
  const int64_t bytes = n * rows_.row_bytes();
  const bool same = format == rows_.format();
  if (!same && static_cast<int64_t>(raw.size()) < bytes) raw.resize(static_cast<size_t>(bytes));
  uint8_t* buffer = same ? dst : raw.data();
  const uint8_t* data = rows_.read(first, n, buffer);
  if (const MappedFile* file = data == buffer ? nullptr : file_of(data, bytes)) {
    file->read(data - file->data(), bytes, buffer);
    data = buffer;
  }
  if (same) {
    if (data != buffer) std::memcpy(buffer, data, static_cast<size_t>(bytes));
    return;
  }
  const int64_t out = format_row_bytes(format, rows_.row_len());
  for (int64_t i = 0; i < n; ++i)
    convert_row(rows_.format(), data + i * rows_.row_bytes(), format, dst + i * out, rows_.row_len());
}

}  // namespace autodeploy
