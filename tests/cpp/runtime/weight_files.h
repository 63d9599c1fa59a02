// Helpers of the weight tests: the golden artifact, a copy of it to damage, and its expected values.
#pragma once

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace autodeploy::testing {

inline std::string golden_dir() { return std::string(AUTODEPLOY_TEST_DATA) + "/golden/tiny"; }

inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

inline void write_file(const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary | std::ios::trunc)
      .write(content.data(), static_cast<std::streamsize>(content.size()));
}

inline nlohmann::json golden_weights() {
  return nlohmann::json::parse(read_file(golden_dir() + "/weights.json"));
}

// A folder of its own, removed at the end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "autodeploy-weights-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }

  // The golden artifact's files, writable.
  void copy_golden() const {
    for (const auto& entry : std::filesystem::directory_iterator(golden_dir())) {
      write_file(path_ + "/" + entry.path().filename().string(), read_file(entry.path().string()));
    }
  }

 private:
  std::string path_;
};

// The elements of all params, in the Program's order.
inline std::vector<float> golden_values() {
  const std::string raw = read_file(golden_dir() + "/expected.bin");
  std::vector<float> values(raw.size() / sizeof(float));
  std::memcpy(values.data(), raw.data(), raw.size());
  return values;
}

}  // namespace autodeploy::testing
