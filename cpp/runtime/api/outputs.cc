#include "runtime/api/outputs.h"

#include <utility>

namespace {

autodeploy_token_logprob view_of(const autodeploy::TokenLogprob& t) { return {t.token, t.logprob}; }

int32_t reason_of(autodeploy::FinishReason reason) {
  switch (reason) {
    case autodeploy::FinishReason::kNone:
      return AUTODEPLOY_FINISH_NONE;
    case autodeploy::FinishReason::kStop:
      return AUTODEPLOY_FINISH_STOP;
    case autodeploy::FinishReason::kLength:
      return AUTODEPLOY_FINISH_LENGTH;
    case autodeploy::FinishReason::kCancelled:
      return AUTODEPLOY_FINISH_CANCELLED;
    case autodeploy::FinishReason::kError:
      return AUTODEPLOY_FINISH_ERROR;
  }
  return AUTODEPLOY_FINISH_ERROR;
}

}  // namespace

autodeploy_outputs::autodeploy_outputs(std::vector<autodeploy::StepOutput> outputs)
    : steps(std::move(outputs)) {
  for (const autodeploy::StepOutput& step : steps) {
    auto& chosen = logprobs.emplace_back();
    for (const autodeploy::ChosenLogprob& entry : step.logprobs) {
      auto& top = tops.emplace_back();
      for (const autodeploy::TokenLogprob& t : entry.top) top.push_back(view_of(t));
      chosen.push_back({view_of(entry.chosen), entry.rank, static_cast<int32_t>(top.size()), top.data()});
    }
    autodeploy_output view{};
    view.request_id = step.request_id;
    view.token_ids = step.new_token_ids.data();
    view.num_tokens = step.new_token_ids.size();
    view.logprobs = chosen.empty() ? nullptr : chosen.data();
    view.finish_reason = reason_of(step.finish_reason);
    view.stop_token_id = step.stop_token_id.value_or(-1);
    view.error = step.finish_reason == autodeploy::FinishReason::kError ? step.error.c_str() : nullptr;
    views.push_back(view);
  }
}

extern "C" size_t autodeploy_outputs_size(const autodeploy_outputs* outputs) {
  return outputs == nullptr ? 0 : outputs->views.size();
}

extern "C" const autodeploy_output* autodeploy_outputs_get(const autodeploy_outputs* outputs, size_t index) {
  return index < autodeploy_outputs_size(outputs) ? &outputs->views[index] : nullptr;
}

extern "C" void autodeploy_outputs_free(autodeploy_outputs* outputs) { delete outputs; }
