// Reading weight segments row by row, for those who lay params out in memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "core/thread_pool.h"
#include "runtime/mapped_file.h"
#include "runtime/program_spec.h"
#include "runtime/weight_convert.h"
#include "runtime/weight_eval.h"
#include "runtime/weight_program.h"

namespace autodeploy {

constexpr int64_t kRowsAtOnce = 64;         // rows of a buffer; a multiple of the granule of packing
constexpr int64_t kWindowBytes = 32 << 20;  // what is laid out before mapped pages are given back

// The weights of a param. Throws Error(kInvalidArtifact) where there are none, where they are nowhere, or of
// another shape.
const WeightParam& find_weight_param(const WeightProgram& weights, const ParamSpec& spec);

// All sources, checked by size and fingerprint. Throws Error(kIo) and Error(kInvalidArtifact).
std::vector<MappedFile> open_weight_sources(const WeightProgram& weights, const std::string& artifact_dir);

// The format of values of a type.
Format plain_format(DType type);

// Memory that laying a segment out in windows of kWindowBytes needs besides its result: what is made of cut
// rows, and mapped pages of the files.
int64_t segment_scratch(const WeightProgram& weights, const WeightSegment& s);

// What a segment is read from. Pages are given back while reading, so that large weights are not in memory
// twice.
class SegmentReader {
 public:
  SegmentReader(const WeightSegment& s, const WeightProgram& weights, std::span<const MappedFile> files,
                ThreadPool& pool);
  ~SegmentReader() { drop(); }
  SegmentReader(const SegmentReader&) = delete;
  SegmentReader& operator=(const SegmentReader&) = delete;

  const WeightEvaluator& rows() const { return rows_; }
  // Gives mapped pages back.
  void drop() const;
  // Says that these rows will be read soon, as far as rows lie in the order of the tensors.
  void will_need(int64_t begin, int64_t end) const;
  // Rows [first, first + n) in `format`, one after another at dst; `raw` is memory of the calling thread.
  // Rows that lie in a file as they are wanted are read rather than mapped. Throws Error(kIo).
  void copy_rows(int64_t first, int64_t n, Format format, uint8_t* dst, std::vector<uint8_t>& raw) const;

 private:
  // The file in which the bytes lie, or nullptr.
  const MappedFile* file_of(const uint8_t* data, int64_t bytes) const;

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

}  // namespace autodeploy
