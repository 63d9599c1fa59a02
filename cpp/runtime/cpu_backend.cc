#include <stdlib.h>  // defines __GLIBC__

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "cache_manager/state_pools.h"
#include "core/error.h"
#include "core/thread_pool.h"
#include "runtime/available_memory.h"
#include "runtime/cpu_model_runner.h"
#include "runtime/device_library.h"
#include "runtime/dummy_weights.h"
#include "runtime/engine_backend.h"
#include "runtime/executor.h"
#include "runtime/plan_json.h"
#include "runtime/plugins.h"
#include "runtime/program_limits.h"
#include "runtime/program_reader.h"
#include "runtime/sampler.h"
#include "runtime/uniform_routing.h"
#include "runtime/weight_loader.h"
#include "runtime/weight_program.h"

namespace autodeploy {
namespace {

using Json = nlohmann::ordered_json;

std::vector<ParamBinding> bindings_of(const ProgramSpec& program, const LoadedWeights& weights) {
  std::vector<ParamBinding> bindings;
  for (size_t i = 0; i < program.params.size(); ++i) {
    const ParamSpec& param = program.params[i];
    const ParamPlan& plan = weights.plan().params[i];
    bindings.push_back(
        {weights.plain(param.name).data, weights.packed(param.name), plan.packed_bytes + plan.plain_bytes});
  }
  return bindings;
}

class CpuBackend final : public EngineBackend {
 public:
  CpuBackend(const std::string& artifact_dir, const EngineOptions& options, const LoadProgress& progress)
      : options_(options) {
    AD_CHECK(parse_act(options.dtype, DType::kF32) == DType::kF32, ErrorKind::kInvalidArgument,
             "[engine] dtype: expected float32 or auto on the CPU, found ", options.dtype);
    AD_CHECK(!options.time_steps, ErrorKind::kInvalidArgument,
             "[engine] time_steps: expected a GPU, whose clock is read, found the CPU");
    check_dummy_routing(options);
    process_bytes_ = resident_memory();
    ProgramSpec program = load_program(artifact_dir, DType::kF32, PluginSet::load(options.plugins));
    WeightProgram weight_program = load_weight_program(artifact_dir);
    if (options.load_format == LoadFormat::kDummy)
      weight_program = with_dummy_weights(std::move(weight_program), options.dummy_seed);
    if (options.dummy_routing == DummyRouting::kUniform)
      program = with_uniform_routing(std::move(program), options.dummy_seed);
    program_limits_ = find_program_limits(program);
    available_bytes_ = available_memory();
    // Options are checked before a thread is started for them.
    const int threads =
        options.num_threads > 0 ? std::min(options.num_threads, kMaxThreads) : available_processors();
    const WeightPlan weight_plan = plan_weights(weight_program, program.params, threads);
    prefix_tokens_ = program.prefix_tokens;
    const ModelFacts facts{program_limits_.vocab_size, program_limits_.max_positions,
                           static_cast<int64_t>(prefix_tokens_.size()),
                           weight_plan.resident_bytes + weight_plan.scratch_bytes};
    const CacheLimits limits = resolve_limits(options, facts, program.states, available_bytes_);
    std::vector<StateSpec> states = program.states;
    const CachePlan plan = plan_caches(states, limits);

    pool_ = std::make_unique<ThreadPool>(threads);
    weights_ = load_weights(weight_program, artifact_dir, program.params, *pool_, progress);
    pools_ = std::make_unique<HostStatePools>(plan);
    if (options.prefault) prefault();
    cache_ = std::make_unique<CacheManager>(plan, pools_.get());

    const std::vector<ParamBinding> bindings = bindings_of(program, weights_);
    executor_ = std::make_unique<Executor>(std::move(program));
    ExecutorOptions executor_options;
    executor_options.max_tokens = plan.limits.max_batch_tokens;
    executor_options.max_seqs = plan.limits.max_num_seqs;
    executor_options.max_rows = plan.limits.max_num_seqs;
    executor_options.max_seq_len = plan.limits.max_seq_len;
    executor_options.exact = options.exact;
    executor_options.pool = pool_.get();
    executor_->bind(bindings, std::move(states), pools_->memory(), executor_options);
    sampler_ =
        std::make_unique<Sampler>(program_limits_.vocab_size, plan.limits.max_num_seqs, pool_->num_threads());
    runner_ = std::make_unique<CpuModelRunner>(executor_.get(), sampler_.get(), pool_.get());
  }

  ModelRunner& runner() override { return *runner_; }
  CacheManager& cache() override { return *cache_; }
  int64_t vocab_size() const override { return program_limits_.vocab_size; }
  std::span<const int64_t> prefix_tokens() const override { return prefix_tokens_; }

  std::string plan_json(int64_t book_bytes) const override {
    Json plan = Json::parse(executor_->plan_json());
    const CachePlan& caches = cache_->plan();
    plan["limits"] = limits_json(caches.limits, program_limits_, prefix_tokens_.size(), options_);
    plan["limits"]["num_threads"] = pool_->num_threads();
    plan["limits"]["prefault"] = options_.prefault;
    const MemoryPlan& memory = executor_->memory_plan();
    const int64_t weights = weights_.plan().resident_bytes;
    const int64_t arena = memory.arena_bytes + memory.workspace_bytes;
    plan["memory"] = {{"weights", weights},
                      {"arena", arena},
                      {"caches", caches.bytes()},
                      {"sampler", sampler_->bytes()},
                      {"books", book_bytes},
                      {"total", weights + arena + caches.bytes() + sampler_->bytes() + book_bytes},
                      {"arena_lower_bound", memory.lower_bound},
                      {"workspace_in_arena", memory.workspace_bytes},
                      {"process_at_start", process_bytes_},
                      {"available_at_start", available_bytes_}};
    plan["caches"] = caches_json(caches);
    return plan.dump(-1, ' ', false, Json::error_handler_t::replace);
  }

 private:
  void prefault() {
    constexpr int64_t kChunk = int64_t{4} << 20;
    const HostMemory& storage = pools_->storage();
    storage.prefer_huge_pages();
    pool_->parallel_for((storage.bytes() + kChunk - 1) / kChunk, 1, [&](int64_t begin, int64_t end, int) {
      storage.populate(begin * kChunk, end * kChunk);
    });
  }

  // In the order of their dependencies: what comes later points into what came before.
  EngineOptions options_;
  ProgramLimits program_limits_;
  std::vector<int64_t> prefix_tokens_;
  int64_t available_bytes_ = 0, process_bytes_ = 0;
  std::unique_ptr<ThreadPool> pool_;
  LoadedWeights weights_;
  std::unique_ptr<HostStatePools> pools_;
  std::unique_ptr<CacheManager> cache_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<Sampler> sampler_;
  std::unique_ptr<CpuModelRunner> runner_;
};

}  // namespace

std::unique_ptr<EngineBackend> open_cpu_backend(const std::string& artifact_dir, const EngineOptions& options,
                                                const LoadProgress& progress) {
  auto backend = std::make_unique<CpuBackend>(artifact_dir, options, progress);
#if defined(__GLIBC__)
  malloc_trim(0);  // what reading the artifact took is of no further use
#endif
  return backend;
}

std::unique_ptr<EngineBackend> open_backend(const std::string& artifact_dir, const EngineOptions& options,
                                            const LoadProgress& progress) {
  const std::string library = parse_device(options.device).first;
  if (library == "cpu") return open_cpu_backend(artifact_dir, options, progress);
  return device_library(library).open_backend(artifact_dir, options, progress);
}

}  // namespace autodeploy
