#include "core/error.h"

namespace autodeploy {

const char* error_kind_name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kInvalidArgument:
      return "invalid argument";
    case ErrorKind::kInvalidArtifact:
      return "invalid artifact";
    case ErrorKind::kUnsupported:
      return "unsupported";
    case ErrorKind::kOutOfMemory:
      return "out of memory";
    case ErrorKind::kIo:
      return "input/output error";
    case ErrorKind::kCancelled:
      return "cancelled";
    case ErrorKind::kInternal:
      return "internal error";
  }
  return "unknown error";
}

namespace detail {

void icheck_failed(const char* file, int line, const char* condition, const std::string& message) {
  throw Error(ErrorKind::kInternal,
              concat("[internal] ", message, " (", condition, ") at ", file, ":", line));
}

}  // namespace detail
}  // namespace autodeploy
