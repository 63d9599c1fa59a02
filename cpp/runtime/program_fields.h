// Checked access to the fields of one JSON object of an artifact; every complaint says where.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "kernels/kernel.h"

namespace autodeploy::program_format {

using Json = nlohmann::json;

constexpr int64_t kMaxInteger = int64_t{1}
                                << 53;  // exact in a double, and products of two fit __int128 easily
constexpr size_t kMaxNameLength = 4096;

// The file that complaints on this thread name while the object lives; program.json without one.
class DocumentName {
 public:
  explicit DocumentName(const char* name);
  ~DocumentName();
  DocumentName(const DocumentName&) = delete;
  DocumentName& operator=(const DocumentName&) = delete;

 private:
  const char* outer_;
};

// Throws Error(kInvalidArtifact) "[<document>: <where>] expected <expected>, found <found>".
[[noreturn]] void fail(const std::string& where, const std::string& expected, const std::string& found);
// A short rendering of any JSON value for messages.
std::string show(const Json& j);

// Parses a document of bounded size and nesting.
Json parse_document(std::string_view text);

int64_t to_integer(const Json& j, const std::string& where, int64_t lo, int64_t hi);
// A number, or {"number": "inf" | "-inf" | "nan"}.
double to_number(const Json& j, const std::string& where);
// docs/program.md, "Dimensions and dtypes". In a body N comes as Dim::t, S as Dim::r and their product as
// Dim::tr.
Dim to_dim(const Json& j, const std::string& where, bool in_body = false);
std::string dim_text(const Dim& dim);
DType to_dtype(const Json& j, const std::string& where, DType act);
AttrValue to_attr(const Json& j, const std::string& where);

class Fields {
 public:
  // `lenient`: the file is of a later minor version, whose extra fields are ignored.
  Fields(const Json& j, std::string where, bool lenient);

  const std::string& where() const { return where_; }
  bool has(const char* name) const { return json_->contains(name); }
  const Json& get(const char* name);  // required
  std::string text(const char* name);
  int64_t integer(const char* name, int64_t lo, int64_t hi) {
    return to_integer(get(name), at(name), lo, hi);
  }
  const Json& array(const char* name, size_t max_size);
  const Json& object(const char* name, size_t max_size);
  std::vector<Dim> dims(const char* name, bool in_body = false);
  std::vector<int64_t> integers(const char* name, int64_t lo, int64_t hi, size_t max_size);
  // Refuses fields that nobody asked for.
  void finish() const;

 private:
  std::string at(const char* name) const { return where_ + " ." + name; }
  const Json* json_;
  std::string where_;
  bool lenient_;
  std::vector<const char*> used_;
};

}  // namespace autodeploy::program_format
