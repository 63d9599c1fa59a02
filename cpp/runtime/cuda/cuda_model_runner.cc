#include "runtime/cuda/cuda_model_runner.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace autodeploy::cuda {
namespace {

int64_t max_options(const CachePlan& plan) {
  return DeviceSampler::options_bytes(plan.limits.max_num_seqs, DeviceSampler::Path::kFull);
}
StepSizes decode_sizes(int64_t seqs, DeviceSampler::Path path) {
  return {seqs, seqs, seqs, DeviceSampler::options_bytes(seqs, path)};
}

}  // namespace

std::vector<int64_t> CudaModelRunner::make_ladder(int64_t max_seqs) {
  std::vector<int64_t> ladder;
  for (int64_t n = 1; n < max_seqs; n += n < 4 ? n : n < 16 ? 4 : n < 64 ? 8 : n < 256 ? 16 : 64)
    ladder.push_back(n);
  ladder.push_back(max_seqs);
  return ladder;
}

CudaModelRunner::CudaModelRunner(DeviceExecutor* executor, Queue* queue, int device, int64_t vocab_size,
                                 const CachePlan& plan, bool time_steps)
    : executor_(executor),
      queue_(queue),
      device_(device),
      max_seq_len_(plan.limits.max_seq_len),
      upload_(plan, plan.limits.max_num_seqs, max_options(plan), kInFlight),
      sampler_(vocab_size, plan.limits.max_num_seqs, plan.limits.max_seq_len, kInFlight),
      ladder_(make_ladder(plan.limits.max_num_seqs)) {
  for (Flight& flight : flights_) flight.done = std::make_unique<Event>();
  if (time_steps) clock_.emplace(kInFlight);
}

// What is in flight writes to memory that goes away now.
CudaModelRunner::~CudaModelRunner() {
  try {
    queue_->wait();
  } catch (const std::exception&) {  // the device has failed, and somebody was told
  }
}

void CudaModelRunner::launch(const Step& step) {
  AD_ICHECK(num_launched_ - num_waited_ < kInFlight, "at most two steps are in flight");
  make_current(device_);
  const int slot = static_cast<int>(num_launched_ % kInFlight);
  try {
    put(step, slot);
  } catch (...) {
    // The next step takes the same slot, so nothing may still copy from it.
    queue_->wait();
    throw;
  }
  ++num_launched_;
}

void CudaModelRunner::put(const Step& step, int slot) {
  const StepBatch& b = step.batch;
  const DeviceSampler::Path path = DeviceSampler::path_for(step.rows);
  const bool decodes = b.num_decodes == b.num_seqs, replays = decodes && b.num_rows == b.num_seqs;
  if (replays) {
    const int64_t size = *std::lower_bound(ladder_.begin(), ladder_.end(), b.num_seqs);
    const Graph& graph = graph_for(size, path);
    sampler_.write_options(step.rows, size, path, slot, upload_.extra(slot), *queue_);
    upload_.put(b, step.token_rows, decode_sizes(size, path), slot, *queue_);
    if (clock_) clock_->begin(num_launched_, queue_->stream());
    graph.launch(queue_->stream());
  } else {
    StepSizes sizes{b.num_tokens, b.num_seqs, b.num_rows};
    if (b.num_rows > 0) {
      sizes.extra = DeviceSampler::options_bytes(b.num_rows, path);
      sampler_.write_options(step.rows, b.num_rows, path, slot, upload_.extra(slot), *queue_);
    }
    const DeviceStep device = upload_.put(b, step.token_rows, sizes, slot, *queue_);
    if (clock_) clock_->begin(num_launched_, queue_->stream());
    enqueue(b, device, sizes, path);
  }
  if (clock_) {
    const bool goes_on = std::any_of(b.has_state.begin(), b.has_state.end(), [](uint8_t h) { return h; });
    clock_->end(num_launched_, queue_->stream(), decodes, goes_on);
  }
  if (b.num_rows > 0) sampler_.download(b.num_rows, path, slot, *queue_);
  flights_[slot].num_rows = b.num_rows;
  flights_[slot].done->record(queue_->stream());
  num_decode_steps_ += decodes;
  num_replayed_steps_ += replays;
}

void CudaModelRunner::enqueue(const StepBatch& batch, const DeviceStep& step, const StepSizes& sizes,
                              DeviceSampler::Path path) {
  sampler_.resolve_tokens(const_cast<int64_t*>(step.token_ids), upload_.token_rows(sizes), sizes.tokens,
                          *queue_);
  executor_->enqueue(batch, step);
  if (sizes.rows > 0) sampler_.enqueue(executor_->logits(), sizes.rows, path, upload_.extra(), *queue_);
  if (const char* error = take_launch_error())
    throw Error(ErrorKind::kInternal,
                detail::concat("[cuda] expected every kernel to start, found: ", error));
}

const Graph& CudaModelRunner::graph_for(int64_t size, DeviceSampler::Path path) {
  Graph& graph = graphs_[{size, static_cast<int>(path)}];
  if (graph) return graph;
  const StepSizes sizes = decode_sizes(size, path);
  DeviceStep step = upload_.layout(sizes);
  step.stream = queue_->stream();
  step.num_decodes = size;
  step.max_query_len = 1;
  step.max_kv_len = max_seq_len_;
  step.captured = true;
  queue_->begin_recording();
  try {
    enqueue({}, step, sizes, path);
    graph = queue_->end_recording();
  } catch (...) {
    queue_->abandon_recording();
    throw;
  }
  return graph;
}

BatchResult CudaModelRunner::wait() {
  AD_ICHECK(num_waited_ < num_launched_, "a step is launched before it is waited for");
  const int slot = static_cast<int>(num_waited_++ % kInFlight);
  BatchResult result;
  try {
    make_current(device_);
    flights_[slot].done->wait();
    if (clock_) clock_->passed(num_waited_ - 1);
  } catch (const Error& error) {
    // CUDA's errors of running kernels stay until the process ends.
    result.failure = error.what();
    result.fatal = true;
    return result;
  }
  // Without rows nothing was downloaded: the slot holds those of an earlier step.
  if (flights_[slot].num_rows > 0) result.rows = sampler_.collect(flights_[slot].num_rows, slot);
  return result;
}

RunnerStats CudaModelRunner::stats() const {
  RunnerStats stats;
  stats.num_decode_steps = num_decode_steps_;
  stats.num_replayed_steps = num_replayed_steps_;
  if (clock_) clock_->summarise(&stats);
  return stats;
}

int64_t CudaModelRunner::plan_bytes(const CachePlan& plan, int64_t vocab_size) {
  const int64_t rows = plan.limits.max_num_seqs;
  return StepUpload::plan_bytes(plan, rows, max_options(plan)) +
         DeviceSampler::plan_bytes(vocab_size, rows, plan.limits.max_seq_len);
}

}  // namespace autodeploy::cuda
