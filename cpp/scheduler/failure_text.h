// What to say of a step that ended by an exception.
#pragma once

#include <exception>
#include <string>

namespace autodeploy {

// Never empty: an empty failure is none.
inline std::string failure_text(const std::exception& error) {
  return error.what()[0] != 0 ? error.what() : "[step] failed without a message";
}

}  // namespace autodeploy
