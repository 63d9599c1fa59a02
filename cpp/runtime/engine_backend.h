// A loaded model as the engine sees it: what runs steps, and the books of its caches.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "cache_manager/cache_manager.h"
#include "runtime/engine_options.h"
#include "scheduler/model_runner.h"

namespace autodeploy {

class EngineBackend {
 public:
  virtual ~EngineBackend() = default;
  virtual ModelRunner& runner() = 0;
  virtual CacheManager& cache() = 0;
  virtual int64_t vocab_size() const = 0;
  // Tokens that stand before the prompt of every request.
  virtual std::span<const int64_t> prefix_tokens() const { return {}; }
  // Every byte and every choice as a JSON object, with at least "limits" and "memory"; book_bytes is what
  // scheduler and cache manager take for their books.
  virtual std::string plan_json(int64_t book_bytes) const = 0;
};

// progress(done, total) in bytes of weights, from the calling thread; it may throw to give up.
using LoadProgress = std::function<void(int64_t, int64_t)>;

// Reads and checks an artifact, loads its weights and plans everything for this machine's processors. Throws
// Error.
std::unique_ptr<EngineBackend> open_cpu_backend(const std::string& artifact_dir, const EngineOptions& options,
                                                const LoadProgress& progress = {});

// On the device that the options name.
std::unique_ptr<EngineBackend> open_backend(const std::string& artifact_dir, const EngineOptions& options,
                                            const LoadProgress& progress = {});

}  // namespace autodeploy
