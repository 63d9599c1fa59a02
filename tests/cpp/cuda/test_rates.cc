// Ceilings of the emulated device: what is measured, and what is refused.
#include "runtime/cuda/rates.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"

namespace autodeploy::cuda {
namespace {

TEST(Rates, ACopyAndAProduct) {
  for (DType act : {DType::kF32, DType::kBF16}) {
    const auto found = nlohmann::json::parse(measure_rates(0, {1 << 20, 16, 32, 64, act}));
    EXPECT_GT(found.at("copy_bytes_per_second").get<double>(), 1e6);
    EXPECT_GT(found.at("operations_per_second").get<double>(), 0);
    EXPECT_EQ(found.at("copy_bytes"), 1 << 20);
    EXPECT_EQ(found.at("product"), (std::vector<int>{16, 32, 64}));
    EXPECT_EQ(found.at("dtype"), dtype_name(act));
    EXPECT_NE(found.at("kernel").get<std::string>().find("linear"), std::string::npos);
  }
}

TEST(Rates, SizesOutOfRangeAreNamed) {
  for (const auto& [options, words] :
       {std::pair(RateOptions{0, 1, 1, 1}, "[rates] copy_bytes: expected a number from 1 to 2**40, found 0"),
        std::pair(RateOptions{1, 1, 1, -1}, "[rates] depth: expected a number from 1 to 2**40, found -1")}) {
    try {
      (void)measure_rates(0, options);
      ADD_FAILURE() << words;
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::kInvalidArgument);
      EXPECT_STREQ(e.what(), words);
    }
  }
}

}  // namespace
}  // namespace autodeploy::cuda
