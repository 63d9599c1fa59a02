#include "runtime/cuda/cuda_backend.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "core/error.h"
#include "runtime/cuda/cuda_model_runner.h"
#include "runtime/cuda/device_pools.h"
#include "runtime/cuda/device_weights.h"
#include "runtime/cuda/generated_kernels.h"
#include "runtime/device_library.h"
#include "runtime/dummy_weights.h"
#include "runtime/plan_json.h"
#include "runtime/program_limits.h"
#include "runtime/program_reader.h"
#include "runtime/uniform_routing.h"
#include "runtime/weight_program.h"

namespace autodeploy::cuda {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kGraphBytes = int64_t{1} << 20;  // of one graph, roughly

// Memory of states that is not there yet: as many components as the states have.
std::vector<StateMemory> blank_memory(const std::vector<StateSpec>& states) {
  std::vector<StateMemory> memory(states.size());
  for (size_t i = 0; i < states.size(); ++i) {
    memory[i].data.assign(states[i].components.size(), nullptr);
    memory[i].bytes.assign(states[i].components.size(), 0);
  }
  return memory;
}

class CudaBackend final : public EngineBackend {
 public:
  CudaBackend(const std::string& artifact_dir, const EngineOptions& options, const LoadProgress& progress)
      : options_(options),
        device_(use_device(parse_device(options.device).second)),
        act_(parse_act(options.dtype, DType::kBF16)),
        pool_(options.num_threads > 0 ? std::min(options.num_threads, kMaxThreads) : 0) {
    AD_CHECK(options.plugins.empty(), ErrorKind::kUnsupported,
             "[engine] plugins: expected none on a GPU, found ", options.plugins.size(),
             ": their kernels run on the CPU");
    check_dummy_routing(options);
    ProgramSpec program = load_program(artifact_dir, act_, nullptr, has_compiled_kernels(artifact_dir));
    WeightProgram weight_program = load_weight_program(artifact_dir);
    if (options.load_format == LoadFormat::kDummy)
      weight_program = with_dummy_weights(std::move(weight_program), options.dummy_seed);
    if (options.dummy_routing == DummyRouting::kUniform)
      program = with_uniform_routing(std::move(program), options.dummy_seed);
    program_limits_ = find_program_limits(program);
    prefix_tokens_ = program.prefix_tokens;
    executor_ = std::make_unique<DeviceExecutor>(std::move(program), &queue_,
                                                 GeneratedKernels::load(artifact_dir, act_, device_));
    const ProgramSpec& spec = executor_->program();
    weight_bytes_ = plan_device_weights(weight_program, spec.params, pool_.num_threads()).bytes;
    const CachePlan plan = plan_memory(spec);

    weights_ = load_device_weights(weight_program, artifact_dir, spec.params, pool_, queue_, progress);
    pools_ = std::make_unique<DeviceStatePools>(plan, &queue_);
    cache_ = std::make_unique<CacheManager>(plan, pools_.get());
    bind(plan, weights_.data, pools_->memory());
    executor_->allocate();
    runner_ = std::make_unique<CudaModelRunner>(executor_.get(), &queue_, parse_device(options.device).second,
                                                program_limits_.vocab_size, plan, options.time_steps);
    queue_.wait();
  }

  ModelRunner& runner() override { return *runner_; }
  CacheManager& cache() override { return *cache_; }
  int64_t vocab_size() const override { return program_limits_.vocab_size; }
  std::span<const int64_t> prefix_tokens() const override { return prefix_tokens_; }

  std::string plan_json(int64_t book_bytes) const override {
    Json plan = Json::parse(executor_->plan_json());
    const CachePlan& caches = cache_->plan();
    plan["device"] = {
        {"name", device_.name},
        {"compute_capability", std::to_string(device_.major) + "." + std::to_string(device_.minor)},
        {"processors", device_.num_sms},
        {"dtype", dtype_name(act_)}};
    plan["limits"] = limits_json(caches.limits, program_limits_, prefix_tokens_.size(), options_);
    const int64_t arena = executor_->arena_bytes(), graphs = graph_bytes();
    plan["memory"] = {{"weights", weight_bytes_},
                      {"arena", arena},
                      {"caches", caches.bytes()},
                      {"steps", runner_->bytes()},
                      {"pinned_on_host", runner_->pinned_bytes()},
                      {"graphs", graphs},
                      {"books", book_bytes},
                      {"total", weight_bytes_ + arena + caches.bytes() + runner_->bytes() + graphs},
                      {"limit", device_memory_limit(options_, memory_)},
                      {"device_total", device_.total_bytes},
                      {"device_free_at_start", device_.free_bytes}};
    plan["graphs"] = {{"batch_sizes", runner_->ladder()}};
    plan["caches"] = caches_json(caches);
    plan["notes"] = weights_.notes;
    return plan.dump(-1, ' ', false, Json::error_handler_t::replace);
  }

 private:
  int64_t graph_bytes() const {
    return kGraphBytes * static_cast<int64_t>(CudaModelRunner::make_ladder(limits_.max_num_seqs).size());
  }

  void bind(const CachePlan& plan, const std::vector<void*>& params, const std::vector<StateMemory>& memory) {
    const ProgramSpec& program = executor_->program();
    std::vector<ParamBinding> bindings;
    for (size_t i = 0; i < program.params.size(); ++i) {
      const ParamSpec& p = program.params[i];
      bindings.push_back({params[i], nullptr, p.numel() * dtype_size(p.dtype)});
    }
    ExecutorOptions o;
    o.max_tokens = plan.limits.max_batch_tokens;
    o.max_seqs = o.max_rows = plan.limits.max_num_seqs;
    o.max_seq_len = plan.limits.max_seq_len;
    o.exact = options_.exact;
    o.pool = &pool_;
    executor_->bind(bindings, states_, memory, o);
  }

  // The limits are asked for twice: the arena follows from them, and the caches get what it leaves.
  CachePlan plan_memory(const ProgramSpec& program) {
    ModelFacts facts{program_limits_.vocab_size, program_limits_.max_positions,
                     static_cast<int64_t>(prefix_tokens_.size()), weight_bytes_};
    facts.max_in_flight = 2;
    memory_.total = device_.total_bytes;
    memory_.free = device_.free_bytes;
    memory_.weights = weight_bytes_;
    // Params that are somewhere: what is planned does not depend on where.
    alignas(256) static uint8_t nowhere[256];
    const std::vector<void*> params(program.params.size(), nowhere);
    CachePlan plan;
    for (int round = 0; round < 2; ++round) {
      const CacheLimits before = limits_;
      limits_ =
          resolve_device_limits(options_, facts, program.states, memory_, round > 0 ? &before : nullptr);
      states_ = program.states;
      plan = plan_caches(states_, limits_);
      limits_ = plan.limits;
      bind(plan, params, blank_memory(states_));
      memory_.arena = executor_->arena_bytes();
      memory_.graphs = graph_bytes();
      memory_.other = CudaModelRunner::plan_bytes(plan, program_limits_.vocab_size);
    }
    return plan;
  }

  // In the order of their dependencies: what comes later points into what came before.
  EngineOptions options_;
  DeviceInfo device_;
  DType act_;
  ThreadPool pool_;
  Queue queue_;
  ProgramLimits program_limits_;
  CacheLimits limits_;
  std::vector<int64_t> prefix_tokens_;
  std::vector<StateSpec> states_;
  DeviceMemoryFacts memory_;
  int64_t weight_bytes_ = 0;
  DeviceWeights weights_;
  std::unique_ptr<DeviceStatePools> pools_;
  std::unique_ptr<CacheManager> cache_;
  std::unique_ptr<DeviceExecutor> executor_;
  std::unique_ptr<CudaModelRunner> runner_;
};

}  // namespace

std::unique_ptr<EngineBackend> open_backend(const std::string& artifact_dir, const EngineOptions& options,
                                            const LoadProgress& progress) {
  return std::make_unique<CudaBackend>(artifact_dir, options, progress);
}

}  // namespace autodeploy::cuda
