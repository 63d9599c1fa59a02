// Errors at the border of the C API: nothing is thrown across it.
#pragma once

#include <exception>
#include <new>
#include <string>

#include "autodeploy/autodeploy.h"
#include "core/error.h"

namespace autodeploy {

// Keeps the message for autodeploy_last_error() on this thread and returns the status.
autodeploy_status set_last_error(autodeploy_status status, const char* message) noexcept;
autodeploy_status status_of(ErrorKind kind) noexcept;

// Runs fn; what it throws becomes a status and the last error.
template <class Fn>
autodeploy_status guarded(Fn&& fn) noexcept {
  try {
    fn();
    return AUTODEPLOY_OK;
  } catch (const Error& error) {
    return set_last_error(status_of(error.kind()), error.what());
  } catch (const std::bad_alloc&) {
    return set_last_error(AUTODEPLOY_OUT_OF_MEMORY, "[api] the system refused memory");
  } catch (const std::exception& error) {
    return set_last_error(AUTODEPLOY_INTERNAL, error.what());
  } catch (...) {
    return set_last_error(AUTODEPLOY_INTERNAL, "[api] an unknown exception");
  }
}

}  // namespace autodeploy
