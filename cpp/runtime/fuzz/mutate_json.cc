#include "runtime/fuzz/mutate_json.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

namespace autodeploy::fuzz {
namespace {

using Json = nlohmann::json;

class Mutator {
 public:
  Mutator(Json& doc, std::mt19937_64& rng) : rng_(rng) { collect(doc, 0); }

  void mutate() {
    Json& node = *nodes_[below(nodes_.size())];
    switch (below(8)) {
      case 0:
        node = scalar();
        break;
      case 1:
        node = Json(*nodes_[below(nodes_.size())]);
        break;  // a copy of another part
      case 2:
        drop(node);
        break;
      case 3:
        repeat(node);
        break;
      case 4:
        swap(node);
        break;
      default:
        alter(node);
        break;
    }
  }

 private:
  size_t below(size_t n) { return n ? static_cast<size_t>(rng_() % n) : 0; }

  void collect(Json& j, int depth) {
    nodes_.push_back(&j);
    if (depth > 60) return;
    if (j.is_string()) strings_.push_back(j.get<std::string>());
    if (j.is_structured()) {
      for (auto& child : j) collect(child, depth + 1);
    }
  }

  int64_t integer() {
    static constexpr int64_t kValues[] = {0,
                                          1,
                                          2,
                                          3,
                                          7,
                                          8,
                                          31,
                                          32,
                                          33,
                                          63,
                                          64,
                                          65,
                                          -1,
                                          -2,
                                          255,
                                          256,
                                          4096,
                                          int64_t{1} << 24,
                                          int64_t{1} << 31,
                                          int64_t{1} << 32,
                                          int64_t{1} << 53,
                                          (int64_t{1} << 53) + 1,
                                          std::numeric_limits<int64_t>::max(),
                                          std::numeric_limits<int64_t>::min()};
    return kValues[below(std::size(kValues))];
  }

  Json scalar() {
    switch (below(9)) {
      case 0:
        return integer();
      case 1:
        return std::numeric_limits<uint64_t>::max();
      case 2:
        return 0.5 * static_cast<double>(integer());
      case 3:
        return nullptr;
      case 4:
        return below(2) == 0;
      case 5:
        return Json::array();
      case 6:
        return Json::object();
      case 7:
        return Json{{"number", below(2) ? "inf" : "nan"}};
      default: {
        static const char* const kDims[] = {"T", "R", "2*T", "8*R", "0*T", "T*2", ""};
        return strings_.empty() || below(3) == 0 ? std::string(kDims[below(std::size(kDims))])
                                                 : strings_[below(strings_.size())];
      }
    }
  }

  void alter(Json& node) {
    if (node.is_number_integer() && below(2)) {
      node = static_cast<int64_t>(node.get<uint64_t>() + (below(2) ? 1 : static_cast<uint64_t>(-1)));
    } else if (node.is_number_integer() && below(2)) {
      node = static_cast<int64_t>(node.get<uint64_t>() * 2);
    } else if (node.is_string() && below(2)) {
      std::string s = node.get<std::string>();
      if (!s.empty()) s[below(s.size())] = static_cast<char>(32 + below(95));
      node = s;
    } else if (!node.is_structured()) {
      node = scalar();
    } else {
      drop(node);
    }
  }

  void drop(Json& node) {
    if (node.is_array() && !node.empty())
      node.erase(below(node.size()));
    else if (node.is_object() && !node.empty())
      node.erase(key(node));
    else
      node = nullptr;
  }

  void repeat(Json& node) {
    if (node.is_array() && !node.empty() && node.size() < 200)
      node.push_back(Json(node[below(node.size())]));
    else if (node.is_object())
      node[strings_.empty() ? "x" : strings_[below(strings_.size())]] = scalar();
    else
      alter(node);
  }

  void swap(Json& node) {
    if (node.is_array() && node.size() > 1) {
      std::swap(node[below(node.size())], node[below(node.size())]);
    } else if (node.is_object() && node.size() > 1) {
      std::swap(node[key(node)], node[key(node)]);
    } else {
      alter(node);
    }
  }

  std::string key(const Json& object) {
    auto it = object.begin();
    std::advance(it, static_cast<ptrdiff_t>(below(object.size())));
    return it.key();
  }

  std::mt19937_64& rng_;
  std::vector<Json*> nodes_;
  std::vector<std::string> strings_;
};

std::string mutate_bytes(std::string text, std::mt19937_64& rng) {
  const auto below = [&](size_t n) { return n ? static_cast<size_t>(rng() % n) : 0; };
  if (text.empty()) return "{}";
  switch (below(4)) {
    case 0:
      text.resize(below(text.size()));
      break;
    case 1:
      text.insert(below(text.size()), 1 + below(80), "[{\"0,-"[below(6)]);
      break;
    case 2:
      text.erase(below(text.size()), 1 + below(40));
      break;
    default:
      text[below(text.size())] = static_cast<char>(rng());
      break;
  }
  return text;
}

}  // namespace

std::string mutate_json(const std::string& text, std::mt19937_64& rng) {
  if (rng() % 20 == 0) return mutate_bytes(text, rng);
  Json doc = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (doc.is_discarded()) return mutate_bytes(text, rng);
  for (uint64_t changes = 1 + rng() % 3; changes > 0; --changes) Mutator(doc, rng).mutate();
  return doc.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace autodeploy::fuzz
