#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "core/error.h"
#include "runtime/artifact_info.h"

namespace autodeploy {
namespace {

class ArtifactInfo : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/autodeploy_artifact_XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    dir_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }
  std::vector<int64_t> read(const std::string& config) {
    std::ofstream(dir_ + "/generation_config.json") << config;
    return read_eos_token_ids(dir_);
  }
  std::string dir_;
};

TEST_F(ArtifactInfo, EndTokens) {
  EXPECT_TRUE(read_eos_token_ids(dir_).empty());
  EXPECT_TRUE(read("{}").empty());
  EXPECT_TRUE(read(R"({"eos_token_id": null})").empty());
  EXPECT_EQ(read(R"({"eos_token_id": 2, "top_k": 5})"), (std::vector<int64_t>{2}));
  EXPECT_EQ(read(R"({"eos_token_id": [2, 128009]})"), (std::vector<int64_t>{2, 128009}));
}

TEST_F(ArtifactInfo, MalformedFilesAreErrors) {
  for (const char* config :
       {"", "{", "[]", R"({"eos_token_id": "2"})", R"({"eos_token_id": -1})", R"({"eos_token_id": 1.5})",
        R"({"eos_token_id": [1, null]})", R"({"eos_token_id": 99999999999})", R"({"eos_token_id": {}})"}) {
    try {
      read(config);
      ADD_FAILURE() << config << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArtifact) << config;
      EXPECT_NE(std::string(error.what()).find("generation_config.json"), std::string::npos);
    }
  }
}

}  // namespace
}  // namespace autodeploy
