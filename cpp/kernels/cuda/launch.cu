#include <string>

#include "kernels/cuda/device.h"

namespace autodeploy::cuda {
namespace {

thread_local std::string t_error, t_taken;

}  // namespace

void note_launch_error(const char* what) {
  if (t_error.empty()) t_error = what;
}

const char* take_launch_error() {
  if (t_error.empty()) return nullptr;
  t_taken.swap(t_error);
  t_error.clear();
  return t_taken.c_str();
}

}  // namespace autodeploy::cuda
