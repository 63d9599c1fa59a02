// A model of hashes that lives on the caches alone: every token it computes is written to the pages and slots
// that the batch names, and the next token is a hash of what can be read back. A wrong page, slot, length or
// window changes the tokens.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/state.h"
#include "scheduler/sampling_params.h"

namespace autodeploy::testing_fakes {

struct FakeModel {
  std::string title;
  std::vector<std::pair<int64_t, int64_t>> paged = {{0, 0}};  // window, chunk of each paged state
  bool slots = false;
  int64_t vocab_size = 97;

  std::vector<StateSpec> states() const {
    std::vector<StateSpec> specs;
    for (auto [window, chunk] : paged) {
      StateSpec& spec = specs.emplace_back();
      spec.name = "kv";
      spec.window = window;
      spec.chunk = chunk;
      spec.components = {{"k", {1}, DType::kI64}};
    }
    if (slots) {
      for (StateSpec::Kind kind : {StateSpec::Kind::kSlot, StateSpec::Kind::kConv}) {
        StateSpec& spec = specs.emplace_back();
        spec.kind = kind;
        spec.components = {{"h", {1}, DType::kI64}};
      }
    }
    return specs;
  }

  static int64_t mix(int64_t h, int64_t x) { return (h * 6364136223 + x + 1442695) % 1000000007; }

  // Hash of the tokens that the query at `position` sees through a paged state; token(j) reads it.
  static int64_t see(const StateSpec& spec, int64_t position, const std::function<int64_t(int64_t)>& token) {
    int64_t first = 0;
    if (spec.window > 0) first = std::max(first, position - spec.window + 1);
    if (spec.chunk > 0) first = std::max(first, position / spec.chunk * spec.chunk);
    int64_t h = 17;
    for (int64_t j = first; j <= position; ++j) h = mix(h, token(j));
    return h;
  }

  // The tokens of a prompt alone, without any cache.
  std::vector<int64_t> generate(std::vector<int64_t> tokens, const SamplingParams& params) const {
    const size_t prompt_len = tokens.size();
    const auto contains = [](const auto& list, int64_t t) {
      return std::find(list.begin(), list.end(), t) != list.end();
    };
    for (int64_t n = 1; n <= params.max_tokens; ++n) {
      const auto position = static_cast<int64_t>(tokens.size()) - 1;
      int64_t h = 0;
      for (const StateSpec& spec : states()) {
        if (spec.kind == StateSpec::Kind::kPaged) {
          h = mix(h, see(spec, position, [&](int64_t j) { return tokens[static_cast<size_t>(j)]; }));
        } else {
          int64_t state = 3;
          for (int64_t t : tokens) state = mix(state, t);
          h = mix(h, state);
        }
      }
      tokens.push_back(h % vocab_size);
      const bool stops = contains(params.stop_token_ids, tokens.back()) ||
                         (!params.ignore_eos && contains(params.eos_token_ids, tokens.back()));
      if (stops && n >= params.min_tokens) break;
    }
    return {tokens.begin() + static_cast<std::ptrdiff_t>(prompt_len), tokens.end()};
  }
};

}  // namespace autodeploy::testing_fakes
