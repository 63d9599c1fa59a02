// Errors. A user's mistake is an Error with a kind; a broken invariant of ours is an AD_ICHECK.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace autodeploy {

enum class ErrorKind {
  kInvalidArgument,  // a request or an option is out of range
  kInvalidArtifact,  // malformed or inconsistent artifact or checkpoint
  kUnsupported,      // valid, but nothing here can run it
  kOutOfMemory,      // the plan does not fit the limits given
  kIo,               // the operating system refused
  kCancelled,
  kInternal,  // our mistake
};
const char* error_kind_name(ErrorKind kind);

// what() reads "[op or stage] what was expected, what was found, what to do".
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

namespace detail {
template <class... Args>
std::string concat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}
[[noreturn]] void icheck_failed(const char* file, int line, const char* condition,
                                const std::string& message);
}  // namespace detail

}  // namespace autodeploy

// Throws autodeploy::Error of `kind` with the concatenated message unless `cond` holds.
#define AD_CHECK(cond, kind, ...)                                                              \
  do {                                                                                         \
    if (!(cond)) throw ::autodeploy::Error((kind), ::autodeploy::detail::concat(__VA_ARGS__)); \
  } while (0)
// An invariant of our own, said in words.
#define AD_ICHECK(cond, ...)                                                          \
  do {                                                                                \
    if (!(cond))                                                                      \
      ::autodeploy::detail::icheck_failed(__FILE__, __LINE__, #cond,                  \
                                          ::autodeploy::detail::concat(__VA_ARGS__)); \
  } while (0)
