#include "runtime/cuda/device_weights.h"

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <utility>

#include "core/error.h"
#include "kernels/cuda/fill_dummy.h"
#include "runtime/weight_stream.h"

namespace autodeploy::cuda {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kStagingBytes = kWindowBytes;
constexpr size_t kNumBuffers = 4;
constexpr int64_t kTaskBytes = 256 << 10;  // of a buffer, that a thread fills at once
constexpr int64_t kMaxDeviceBytes = int64_t{1} << 50;

int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
int64_t bytes_of(const ParamSpec& p) { return p.numel() * dtype_size(p.dtype); }
int64_t row_len_of(const ParamSpec& p) { return p.shape.empty() ? 1 : p.shape.back(); }
bool is_made_up(const WeightSegment& s) { return s.expr->op == WeightExpr::Op::kDummy; }

// A buffer holds at least one row, and is no larger than all params together.
int64_t staging_bytes(std::span<const ParamSpec> params) {
  int64_t row = 0, all = 0;
  for (const ParamSpec& p : params) {
    row = std::max(row, row_len_of(p) * dtype_size(p.dtype));
    all += aligned(bytes_of(p));
  }
  return aligned(std::max(row, std::min(all, kStagingBytes)));
}

// A run of rows on their way to the device.
struct Piece {
  std::shared_ptr<const SegmentReader> reader;
  Format format = Format::kF32;
  int64_t first = 0, rows = 0, row_bytes = 0;
  int64_t at = 0;  // in the buffer
};

// Fills pinned buffers and copies them, each while the others are filled. Copies have ended when it is gone.
class Staging {
 public:
  Staging(int64_t bytes, ThreadPool& pool, Queue& queue) : bytes_(bytes), pool_(pool), queue_(queue) {}
  ~Staging() {
    try {
      queue_.wait();
    } catch (const Error&) {  // there is one on its way already, or the next use of the queue says it
    }
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // Rows for `dst`, row after row. What follows without a gap but for alignment is copied together.
  void put(const std::shared_ptr<const SegmentReader>& reader, Format format, uint8_t* dst) {
    const int64_t rows = reader->rows().rows(),
                  row_bytes = format_row_bytes(format, reader->rows().row_len());
    if (rows * row_bytes == 0) return;
    const int64_t window = bytes_ / row_bytes;
    reader->will_need(0, std::min(rows, window));
    for (int64_t first = 0; first < rows;) {
      uint8_t* to = dst + first * row_bytes;
      if (!pieces_.empty() && (to < begin_ + used_ || to - begin_ >= used_ + kAlignment)) flush();
      if (!pieces_.empty() && to + row_bytes > begin_ + bytes_) flush();
      if (pieces_.empty()) begin_ = to;
      const int64_t at = to - begin_, n = std::min(rows - first, (bytes_ - at) / row_bytes);
      pieces_.push_back({reader, format, first, n, row_bytes, at});
      used_ = at + n * row_bytes;
      first += n;
      if (first < rows) reader->will_need(first, std::min(rows, first + window));
    }
  }

  // Sends what was put.
  void flush() {
    if (pieces_.empty()) return;
    Buffer& buffer = buffers_[next_];
    next_ = (next_ + 1) % kNumBuffers;
    if (!buffer.memory.data()) buffer.memory = PinnedMemory(bytes_, "loading weights");
    if (buffer.used) buffer.copied.wait();
    fill(buffer.memory.data());
    queue_.copy_to_device(begin_, buffer.memory.data(), used_);
    buffer.copied.record(queue_.stream());
    buffer.used = true;
    pieces_.clear();
    used_ = 0;
  }

 private:
  struct Buffer {
    PinnedMemory memory;
    Event copied;
    bool used = false;
  };
  struct Task {
    const Piece* piece;
    int64_t first, rows;  // of the piece
  };

  void fill(uint8_t* buffer) {
    tasks_.clear();
    for (const Piece& piece : pieces_) {
      const int64_t step = std::max<int64_t>(1, kTaskBytes / piece.row_bytes);
      for (int64_t i = 0; i < piece.rows; i += step)
        tasks_.push_back({&piece, i, std::min(step, piece.rows - i)});
    }
    pool_.parallel_for(static_cast<int64_t>(tasks_.size()), 1, [&](int64_t begin, int64_t end, int) {
      std::vector<uint8_t> raw;
      for (int64_t i = begin; i < end; ++i) {
        const Task& task = tasks_[static_cast<size_t>(i)];
        const Piece& piece = *task.piece;
        piece.reader->copy_rows(piece.first + task.first, task.rows, piece.format,
                                buffer + piece.at + task.first * piece.row_bytes, raw);
      }
    });
    for (const Piece& piece : pieces_) piece.reader->drop();
  }

  const int64_t bytes_;
  ThreadPool& pool_;
  Queue& queue_;
  std::vector<Piece> pieces_;
  std::vector<Task> tasks_;
  uint8_t* begin_ = nullptr;  // where the buffer goes
  int64_t used_ = 0;
  std::array<Buffer, kNumBuffers> buffers_;
  size_t next_ = 0;
};

// Block formats that are laid out as plain values, by format: how much room they take, and took.
class Dequantized {
 public:
  void add(const WeightSegment& s, DType type) {
    if (!is_quantized(s.format)) return;
    Sum& sum = sums_[{s.format, type}];
    ++sum.segments;
    sum.stored += s.expr->numel() / format_info(s.format).block_len * format_info(s.format).block_bytes;
    sum.laid_out += s.expr->numel() * dtype_size(type);
  }
  std::vector<std::string> notes() const {
    std::vector<std::string> notes;
    for (const auto& [key, sum] : sums_)
      notes.push_back(detail::concat("[weights] ", sum.segments, " weights of ", format_info(key.first).name,
                                     " are ", dtype_name(key.second), " on the GPU: ", sum.laid_out,
                                     " bytes instead of ", sum.stored));
    return notes;
  }

 private:
  struct Sum {
    int64_t segments = 0, stored = 0, laid_out = 0;
  };
  std::map<std::pair<Format, DType>, Sum> sums_;
};

}  // namespace

DeviceWeightPlan plan_device_weights(const WeightProgram& weights, std::span<const ParamSpec> params,
                                     int num_threads) {
  DeviceWeightPlan plan;
  Dequantized dequantized;
  bool staged = false;
  for (const ParamSpec& spec : params) {
    const WeightParam& p = find_weight_param(weights, spec);
    for (const WeightSegment& s : p.segments) {
      dequantized.add(s, spec.dtype);
      if (is_made_up(s)) continue;
      staged = true;
      const int64_t row_bytes = std::max<int64_t>(1, row_len_of(spec) * dtype_size(spec.dtype)),
                    rows = std::max<int64_t>(1, kTaskBytes / row_bytes);
      plan.scratch_bytes = std::max(plan.scratch_bytes,
                                    segment_scratch(weights, s) + num_threads * rows * 8 * row_len_of(spec));
    }
    plan.bytes += aligned(bytes_of(spec));
    AD_CHECK(plan.bytes <= kMaxDeviceBytes, ErrorKind::kOutOfMemory,
             "[weights] expected params of fewer bytes, found ", plan.bytes, " with ", p.name);
  }
  if (staged) plan.pinned_bytes = static_cast<int64_t>(kNumBuffers) * staging_bytes(params);
  plan.notes = dequantized.notes();
  return plan;
}

DeviceWeights load_device_weights(const WeightProgram& weights, const std::string& artifact_dir,
                                  std::span<const ParamSpec> params, ThreadPool& pool, Queue& queue,
                                  const std::function<void(int64_t, int64_t)>& progress) {
  DeviceWeightPlan plan = plan_device_weights(weights, params, pool.num_threads());
  const std::vector<MappedFile> files = open_weight_sources(weights, artifact_dir);
  DeviceWeights device;
  device.memory = DeviceMemory(std::max<int64_t>(plan.bytes, kAlignment), "the weights");
  device.notes = std::move(plan.notes);
  pool.begin_step();
  struct EndStep {
    ThreadPool& pool;
    ~EndStep() { pool.end_step(); }
  } end_step{pool};
  Staging staging(staging_bytes(params), pool, queue);
  uint8_t* next = device.memory.data();
  int64_t done = 0;
  for (const ParamSpec& spec : params) {
    const WeightParam& p = find_weight_param(weights, spec);
    uint8_t* dst = next;
    for (const WeightSegment& s : p.segments) {
      if (is_made_up(s))
        fill_dummy(queue.stream(), s.expr->fill, next, spec.dtype, s.expr->first, s.expr->numel());
      else
        staging.put(std::make_shared<const SegmentReader>(s, weights, files, pool), plain_format(spec.dtype),
                    dst);
      dst += s.expr->numel() * dtype_size(spec.dtype);
    }
    const int64_t bytes = aligned(bytes_of(spec));
    device.data.push_back(next);
    device.bytes.push_back(bytes_of(spec));
    next += bytes;
    done += bytes;
    if (progress && done < plan.bytes) progress(done, plan.bytes);
  }
  staging.flush();
  queue.wait();
  const char* error = take_launch_error();
  AD_CHECK(!error, ErrorKind::kInternal, "[cuda] making weights up: ", error);
  if (progress) progress(plan.bytes, plan.bytes);
  return device;
}

}  // namespace autodeploy::cuda
