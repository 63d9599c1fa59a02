// One step's outputs as the C API shows them.
#pragma once

#include <vector>

#include "autodeploy/autodeploy.h"
#include "scheduler/request.h"

// Views into `steps`, which stay put.
struct autodeploy_outputs {
  explicit autodeploy_outputs(std::vector<autodeploy::StepOutput> outputs);

  std::vector<autodeploy::StepOutput> steps;
  std::vector<std::vector<autodeploy_token_logprob>> tops;
  std::vector<std::vector<autodeploy_chosen_logprob>> logprobs;
  std::vector<autodeploy_output> views;
};
