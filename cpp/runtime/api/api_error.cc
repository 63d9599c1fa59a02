#include "runtime/api/api_error.h"

namespace autodeploy {
namespace {

thread_local std::string last_error;

}  // namespace

autodeploy_status set_last_error(autodeploy_status status, const char* message) noexcept {
  try {
    last_error = message;
  } catch (...) {
    last_error.clear();
  }
  return status;
}

autodeploy_status status_of(ErrorKind kind) noexcept {
  switch (kind) {
    case ErrorKind::kInvalidArgument:
      return AUTODEPLOY_INVALID_ARGUMENT;
    case ErrorKind::kInvalidArtifact:
      return AUTODEPLOY_INVALID_ARTIFACT;
    case ErrorKind::kUnsupported:
      return AUTODEPLOY_UNSUPPORTED;
    case ErrorKind::kOutOfMemory:
      return AUTODEPLOY_OUT_OF_MEMORY;
    case ErrorKind::kIo:
      return AUTODEPLOY_IO;
    case ErrorKind::kCancelled:
      return AUTODEPLOY_CANCELLED;
    case ErrorKind::kInternal:
      return AUTODEPLOY_INTERNAL;
  }
  return AUTODEPLOY_INTERNAL;
}

}  // namespace autodeploy

extern "C" const char* autodeploy_last_error(void) { return autodeploy::last_error.c_str(); }

extern "C" const char* autodeploy_status_name(autodeploy_status status) {
  switch (status) {
    case AUTODEPLOY_OK:
      return "ok";
    case AUTODEPLOY_INVALID_ARGUMENT:
      return "invalid argument";
    case AUTODEPLOY_INVALID_ARTIFACT:
      return "invalid artifact";
    case AUTODEPLOY_UNSUPPORTED:
      return "unsupported";
    case AUTODEPLOY_OUT_OF_MEMORY:
      return "out of memory";
    case AUTODEPLOY_IO:
      return "input or output";
    case AUTODEPLOY_CANCELLED:
      return "cancelled";
    case AUTODEPLOY_INTERNAL:
      return "internal";
  }
  return "unknown";
}
