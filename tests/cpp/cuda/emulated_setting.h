// What the emulated device is like, for a test.
#pragma once

#include "kernels/cuda/device.h"

namespace autodeploy::cuda {

// A setting of emulation/simt.h has another value while this lives.
template <class T>
class EmulatedSetting {
 public:
  EmulatedSetting(T& setting, T value) : setting_(setting), before_(setting) { setting = value; }
  ~EmulatedSetting() { setting_ = before_; }
  EmulatedSetting(const EmulatedSetting&) = delete;
  EmulatedSetting& operator=(const EmulatedSetting&) = delete;

 private:
  T& setting_;
  T before_;
};

}  // namespace autodeploy::cuda
