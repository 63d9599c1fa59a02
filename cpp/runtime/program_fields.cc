#include "runtime/program_fields.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "runtime/program_spec.h"

namespace autodeploy::program_format {
namespace {

constexpr size_t kMaxDocumentBytes = size_t{256} << 20;
constexpr int kMaxNesting = 160;  // expressions of weights nest 64 deep, two levels each
// Keeps factor * T within 2^53 for the largest T.
constexpr int64_t kMaxFactor = kMaxInteger / kMaxProgramTokens;

void check_nesting(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\')
        ++i;
      else if (c == '"')
        in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxNesting)
        fail("document", detail::concat("at most ", kMaxNesting, " nested objects and arrays"), "more");
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
}

}  // namespace

namespace {
thread_local const char* document_name = "program.json";
}  // namespace

DocumentName::DocumentName(const char* name) : outer_(document_name) { document_name = name; }
DocumentName::~DocumentName() { document_name = outer_; }

void fail(const std::string& where, const std::string& expected, const std::string& found) {
  throw Error(ErrorKind::kInvalidArtifact,
              detail::concat("[", document_name, ": ", where, "] expected ", expected, ", found ", found));
}

std::string show(const Json& j) {
  if (j.is_object()) return detail::concat("an object of ", j.size(), " fields");
  if (j.is_array() && j.size() > 8) return detail::concat("an array of ", j.size(), " elements");
  if (j.is_array()) {
    std::string s = "[";
    for (const Json& e : j) s += (s.size() > 1 ? ", " : "") + (e.is_array() ? std::string("[...]") : show(e));
    return s + "]";
  }
  std::string s = j.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (s.size() > 60) s = s.substr(0, 57) + "...";
  return s;
}

Json parse_document(std::string_view text) {
  if (text.size() > kMaxDocumentBytes) {
    fail("document", detail::concat("at most ", kMaxDocumentBytes, " bytes"),
         detail::concat(text.size(), " bytes"));
  }
  check_nesting(text);
  try {
    return Json::parse(text.begin(), text.end());
  } catch (const Json::exception& e) {
    std::string what = e.what();
    if (what.size() > 200) what.resize(200);
    fail("document", "valid JSON", what);
  }
}

int64_t to_integer(const Json& j, const std::string& where, int64_t lo, int64_t hi) {
  const auto expected = [&] { return detail::concat("an integer from ", lo, " to ", hi); };
  if (!j.is_number_integer()) fail(where, expected(), show(j));
  if (j.is_number_unsigned() &&
      j.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    fail(where, expected(), show(j));
  }
  const int64_t v = j.get<int64_t>();
  if (v < lo || v > hi) fail(where, expected(), show(j));
  return v;
}

double to_number(const Json& j, const std::string& where) {
  if (j.is_number()) return j.get<double>();
  if (j.is_object() && j.size() == 1 && j.contains("number") && j["number"].is_string()) {
    const std::string& s = j["number"].get_ref<const std::string&>();
    if (s == "inf") return std::numeric_limits<double>::infinity();
    if (s == "-inf") return -std::numeric_limits<double>::infinity();
    if (s == "nan") return std::numeric_limits<double>::quiet_NaN();
  }
  fail(where, "a number or {\"number\": \"inf\" | \"-inf\" | \"nan\"}", show(j));
}

Dim to_dim(const Json& j, const std::string& where, bool in_body) {
  Dim dim;
  if (j.is_number_integer()) {
    dim.constant = to_integer(j, where, 0, kMaxInteger);
    return dim;
  }
  const auto bad = [&]() {
    fail(where,
         in_body ? "an integer >= 0, \"N\", \"S\", \"N*S\", \"n*N\", \"n*S\" or \"n*N*S\""
                 : "an integer >= 0, \"T\", \"R\", \"n*T\" or \"n*R\"",
         show(j));
  };
  if (!j.is_string()) bad();
  std::string s = j.get_ref<const std::string&>();
  if (s.empty() || s.size() > 20) bad();
  const bool product = in_body && s.size() >= 3 && s.ends_with("N*S");
  if (product) s.resize(s.size() - 2);  // what stands before N*S is read like what stands before N
  const char symbol = s.back();
  int64_t factor = 1;
  if (s.size() > 1) {
    if (s.size() < 3 || s[s.size() - 2] != '*' || s[0] == '0') bad();
    factor = 0;
    for (size_t i = 0; i + 2 < s.size(); ++i) {
      if (s[i] < '0' || s[i] > '9') bad();
      factor = factor * 10 + (s[i] - '0');
    }
    if (factor > kMaxFactor) fail(where, detail::concat("a factor of at most ", kMaxFactor), show(j));
  }
  if (product)
    dim.tr = factor;
  else if (symbol == (in_body ? 'N' : 'T'))
    dim.t = factor;
  else if (symbol == (in_body ? 'S' : 'R'))
    dim.r = factor;
  else
    bad();
  return dim;
}

std::string dim_text(const Dim& d) {
  std::string s;
  const auto term = [&](int64_t factor, const char* symbol) {
    if (factor == 0) return;
    if (!s.empty()) s += "+";
    if (factor != 1 || !*symbol) s += std::to_string(factor);
    if (*symbol) s += (factor != 1 ? std::string("*") : std::string()) + symbol;
  };
  term(d.t, "T");
  term(d.r, "R");
  term(d.tr, "T*R");
  term(d.constant, "");
  return s.empty() ? "0" : s;
}

DType to_dtype(const Json& j, const std::string& where, DType act) {
  if (j.is_string()) {
    const std::string& s = j.get_ref<const std::string&>();
    if (s == "act") return act;
    if (s == "f32") return DType::kF32;
    if (s == "i64") return DType::kI64;
    if (s == "bool") return DType::kBool;
  }
  fail(where, "one of act f32 i64 bool", show(j));
}

AttrValue to_attr(const Json& j, const std::string& where) {
  if (j.is_boolean()) return j.get<bool>();
  if (j.is_number_integer()) return to_integer(j, where, -kMaxInteger, kMaxInteger);
  if (j.is_number() || j.is_object()) return to_number(j, where);
  if (j.is_string()) {
    const std::string& s = j.get_ref<const std::string&>();
    if (s.size() > kMaxNameLength)
      fail(where, "a string of at most 4096 bytes", detail::concat(s.size(), " bytes"));
    return s;
  }
  if (j.is_array() && j.size() <= 4096) {
    std::vector<int64_t> list;
    for (const Json& e : j) list.push_back(to_integer(e, where, -kMaxInteger, kMaxInteger));
    return list;
  }
  fail(where, "a boolean, number, string or list of at most 4096 integers", show(j));
}

Fields::Fields(const Json& j, std::string where, bool lenient)
    : json_(&j), where_(std::move(where)), lenient_(lenient) {
  if (!j.is_object()) fail(where_, "an object", show(j));
}

const Json& Fields::get(const char* name) {
  const auto it = json_->find(name);
  if (it == json_->end()) fail(where_, detail::concat("the field '", name, "'"), "none");
  used_.push_back(name);
  return *it;
}

std::string Fields::text(const char* name) {
  const Json& j = get(name);
  if (!j.is_string()) fail(at(name), "a string", show(j));
  const std::string& s = j.get_ref<const std::string&>();
  if (s.size() > kMaxNameLength)
    fail(at(name), "a string of at most 4096 bytes", detail::concat(s.size(), " bytes"));
  return s;
}

const Json& Fields::array(const char* name, size_t max_size) {
  const Json& j = get(name);
  if (!j.is_array() || j.size() > max_size)
    fail(at(name), detail::concat("an array of at most ", max_size, " elements"), show(j));
  return j;
}

const Json& Fields::object(const char* name, size_t max_size) {
  const Json& j = get(name);
  if (!j.is_object() || j.size() > max_size)
    fail(at(name), detail::concat("an object of at most ", max_size, " fields"), show(j));
  return j;
}

std::vector<Dim> Fields::dims(const char* name, bool in_body) {
  const std::string path = at(name);
  std::vector<Dim> out;
  for (const Json& e : array(name, kMaxDims)) out.push_back(to_dim(e, path, in_body));
  return out;
}

std::vector<int64_t> Fields::integers(const char* name, int64_t lo, int64_t hi, size_t max_size) {
  const std::string path = at(name);
  std::vector<int64_t> out;
  for (const Json& e : array(name, max_size)) out.push_back(to_integer(e, path, lo, hi));
  return out;
}

void Fields::finish() const {
  if (lenient_) return;
  for (const auto& item : json_->items()) {
    const bool known =
        std::any_of(used_.begin(), used_.end(), [&](const char* u) { return item.key() == u; });
    if (!known)
      fail(where_, "only fields of this version",
           detail::concat("the unknown field ", show(Json(item.key()))));
  }
}

}  // namespace autodeploy::program_format
