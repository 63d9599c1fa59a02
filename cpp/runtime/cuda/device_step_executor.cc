#include "runtime/cuda/device_step_executor.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "core/error.h"
#include "runtime/cuda/device_executor.h"
#include "runtime/cuda/device_pools.h"
#include "runtime/cuda/device_weights.h"
#include "runtime/dummy_weights.h"
#include "runtime/executor_checks.h"
#include "runtime/program_reader.h"
#include "runtime/uniform_routing.h"
#include "runtime/weight_program.h"

namespace autodeploy::cuda {
namespace {

class DeviceStepExecutor final : public StepExecutor {
 public:
  DeviceStepExecutor(const std::string& artifact_dir, const DeviceExecutorOptions& options,
                     FunctionRef<CachePlan(std::vector<StateSpec>&)> plan_caches)
      : replay_(options.replay),
        pool_(options.num_threads),
        executor_(load(artifact_dir, options), &queue_,
                  GeneratedKernels::load(artifact_dir, options.act, use_device(0))) {
    const ProgramSpec& program = executor_.program();
    std::vector<StateSpec> states = program.states;
    const CachePlan plan = plan_caches(states);
    WeightProgram weight_program = load_weight_program(artifact_dir);
    if (options.dummy) weight_program = with_dummy_weights(std::move(weight_program), 0);
    weights_ = load_device_weights(weight_program, artifact_dir, program.params, pool_, queue_);
    std::vector<ParamBinding> params;
    for (size_t i = 0; i < program.params.size(); ++i)
      params.push_back({weights_.data[i], nullptr, weights_.bytes[i]});
    pools_ = std::make_unique<DeviceStatePools>(plan, &queue_);
    options_.max_tokens = options.max_tokens;
    options_.max_seqs = options.max_seqs;
    options_.max_rows = options.max_rows;
    options_.max_seq_len = options.max_seq_len;
    options_.poison = options.poison;
    options_.exact = true;
    options_.pool = &pool_;
    executor_.bind(params, std::move(states), pools_->memory(), options_);
    executor_.allocate();
    upload_ = std::make_unique<StepUpload>(plan, options.max_rows, 0, 1);
  }

  const ProgramSpec& program() const override { return executor_.program(); }
  TensorView run(const StepBatch& batch) override { return run_step(batch, nullptr); }

  TensorView run(const StepBatch& batch, Tap tap) override {
    const auto to_host = [&](int32_t value, const TensorView& view) { tap(value, fetch(view, &tapped_)); };
    const Tap on_device(to_host);
    return run_step(batch, &on_device);
  }

  void set_input(const std::string& name, const void* data) override { given_[name] = data; }

  TensorView output(const std::string& name) override {
    const int32_t v = program().output(name);
    AD_CHECK(v >= 0, ErrorKind::kInvalidArgument, "[executor] expected an output of the program, found '",
             name, "'");
    AD_CHECK(executor_.block().has_run(), ErrorKind::kInvalidArgument,
             "[executor] expected run before output");
    return fetch(executor_.value(v), &outputs_[name]);
  }

  std::vector<double> profile(const StepBatch& batch, int repeats) override {
    check_batch(batch, options_);
    DeviceStep step = upload_->put(batch, {}, {batch.num_tokens, batch.num_seqs, batch.num_rows}, 0, queue_);
    return executor_.profile(batch, step, repeats);
  }

  std::string plan_json() const override { return executor_.plan_json(); }

 private:
  static ProgramSpec load(const std::string& artifact_dir, const DeviceExecutorOptions& options) {
    ProgramSpec program =
        load_program(artifact_dir, options.act, nullptr, has_compiled_kernels(artifact_dir));
    return options.uniform_routing ? with_uniform_routing(std::move(program), 0) : std::move(program);
  }

  TensorView run_step(const StepBatch& batch, const Tap* tap) {
    check_batch(batch, options_);
    const StepSizes sizes{batch.num_tokens, batch.num_seqs, batch.num_rows};
    for (const auto& [name, data] : given_) {
      const ValueSpec& spec = program().values[static_cast<size_t>(check_input(name))];
      const int64_t bytes = spec.numel.eval(batch.num_tokens, batch.num_rows) * dtype_size(spec.dtype);
      // For the largest step, so that recorded graphs find it where it was.
      DeviceMemory& memory = inputs_[name];
      const int64_t most = spec.numel.eval(options_.max_tokens, options_.max_rows) * dtype_size(spec.dtype);
      if (!memory.data()) memory = DeviceMemory(std::max<int64_t>(most, 1), "an input");
      queue_.copy_to_device(memory.data(), data, bytes);
      executor_.set_input(name, memory.data());
    }
    const bool decodes = batch.num_decodes == batch.num_seqs && batch.num_tokens == batch.num_seqs;
    DeviceStep step = upload_->put(batch, {}, sizes, 0, queue_);
    if (replay_ && !tap && decodes) {
      Graph& graph = graphs_[{sizes.seqs, sizes.rows}];
      if (!graph) {
        step.captured = true;
        step.max_kv_len = options_.max_seq_len;
        queue_.begin_recording();
        try {
          executor_.enqueue({}, step);
          graph = queue_.end_recording();
        } catch (...) {
          queue_.abandon_recording();
          throw;
        }
      }
      graph.launch(queue_.stream());
      executor_.replayed(step);
    } else {
      executor_.enqueue(batch, step, tap);
    }
    queue_.wait();
    return fetch(executor_.logits(), &logits_);
  }

  int32_t check_input(const std::string& name) const {
    const int32_t v = program().input(name);
    AD_CHECK(v >= 0, ErrorKind::kInvalidArgument, "[executor] expected an input of the program, found '",
             name, "'");
    return v;
  }

  // The view's elements, row-major in `bytes`.
  TensorView fetch(const TensorView& view, std::vector<uint8_t>* bytes) {
    TensorView host = view;
    const int64_t size = view.numel() * dtype_size(view.dtype);
    bytes->resize(static_cast<size_t>(size));
    if (view.data && size > 0) {
      queue_.copy_to_host(bytes->data(), view.data, size);
      queue_.wait();
      host.data = bytes->data();
    }
    return host;
  }

  const bool replay_;
  Queue queue_;
  ThreadPool pool_;
  DeviceWeights weights_;
  std::unique_ptr<DeviceStatePools> pools_;
  ExecutorOptions options_;
  DeviceExecutor executor_;
  std::unique_ptr<StepUpload> upload_;
  std::map<std::pair<int64_t, int64_t>, Graph> graphs_;
  std::map<std::string, const void*> given_;
  std::map<std::string, DeviceMemory> inputs_;
  std::map<std::string, std::vector<uint8_t>> outputs_;
  std::vector<uint8_t> logits_, tapped_;
};

}  // namespace

std::unique_ptr<StepExecutor> open_step_executor(const std::string& artifact_dir,
                                                 const DeviceExecutorOptions& options,
                                                 FunctionRef<CachePlan(std::vector<StateSpec>&)> plan) {
  use_device(0);
  return std::make_unique<DeviceStepExecutor>(artifact_dir, options, plan);
}

}  // namespace autodeploy::cuda
