#include <gtest/gtest.h>

#include <thread>

#include "core/error.h"
#include "kernel_harness.h"

namespace autodeploy::testing {
namespace {

constexpr Format kAll[] = {Format::kF32,  Format::kF16,  Format::kBF16, Format::kQ8_0,
                           Format::kQ4_0, Format::kQ4_1, Format::kQ5_0, Format::kQ5_1};

// Packs in calls of the given numbers of granules, shuffled, from a source that is not aligned; compares
// every row.
void check(Format f, int64_t rows, int64_t cols, int64_t group_rows, int64_t granules, int threads) {
  Random random(static_cast<uint64_t>(rows * 31 + cols));
  const int64_t row_bytes = format_row_bytes(f, cols);
  std::vector<uint8_t> stored = random_stored(random, f, rows, cols);
  stored.insert(stored.begin(), 1, 0);  // one byte off
  PackedSegment s = plan_packed_segment(f, rows, cols, group_rows);
  const int64_t padded = (group_rows + 15) / 16 * 16;
  EXPECT_EQ(s.bytes, rows / group_rows * padded * row_bytes);
  AlignedBytes data = aligned_bytes(s.bytes + 64);
  std::memset(data.get(), 0xab, static_cast<size_t>(s.bytes + 64));
  std::vector<int64_t> starts;
  const int64_t step = granules * packed_row_granule();
  for (int64_t r = 0; r < rows; r += step) starts.push_back(r);
  for (size_t i = starts.size(); i-- > 1;)
    std::swap(starts[i], starts[static_cast<size_t>(random.below(static_cast<int64_t>(i) + 1))]);
  std::vector<std::thread> workers;
  for (int w = 0; w < threads; ++w) {
    workers.emplace_back([&, w] {
      for (size_t i = static_cast<size_t>(w); i < starts.size(); i += static_cast<size_t>(threads)) {
        const int64_t begin = starts[i];
        pack_rows(s, begin, std::min(step, rows - begin), stored.data() + 1 + begin * row_bytes, data.get());
      }
    });
  }
  for (std::thread& t : workers) t.join();
  for (int64_t i = 0; i < 64; ++i)
    ASSERT_EQ(data[static_cast<size_t>(s.bytes + i)], 0xab) << "written behind the end";
  s.data = data.get();
  std::vector<float> want(static_cast<size_t>(cols)), got(static_cast<size_t>(cols));
  for (int64_t r = 0; r < rows; ++r) {
    dequantize_row(f, stored.data() + 1 + r * row_bytes, cols, want.data());
    unpack_row(s, r, got.data());
    for (int64_t c = 0; c < cols; ++c) {
      ASSERT_EQ(got[static_cast<size_t>(c)], want[static_cast<size_t>(c)])
          << format_info(f).name << " [" << rows << ", " << cols << "] in parts of " << group_rows << ", at ["
          << r << ", " << c << "]";
    }
  }
}

TEST(CpuPackedWeight, RowsComeBackBitForBit) {
  for (Format f : kAll) {
    check(f, 64, 64, 64, 4, 1);
    check(f, 16, 32, 16, 1, 1);
    check(f, 1, 96, 1, 1, 1);
    check(f, 37, 32, 37, 1, 1);
    check(f, 83, 64, 83, 2, 1);
    check(f, 60, 32, 12, 1, 1);   // experts of 12 rows
    check(f, 119, 64, 17, 3, 1);  // experts whose rows share no granule with their groups
  }
  check(Format::kF32, 19, 7, 19, 1, 1);
  check(Format::kBF16, 40, 33, 20, 1, 1);
}

TEST(CpuPackedWeight, ThreadsMayPackNeighbours) {
  for (Format f : {Format::kQ5_0, Format::kQ5_1, Format::kQ4_1}) {
    for (int repeat = 0; repeat < 20; ++repeat) check(f, 17 * 24, 64, 17, 1, 4);
  }
}

TEST(CpuPackedWeight, RefusesWhatItCannotHold) {
  EXPECT_THROW(plan_packed_segment(Format::kI32, 16, 16, 16), Error);
  EXPECT_THROW(plan_packed_segment(Format::kF64, 16, 16, 16), Error);
  EXPECT_THROW(plan_packed_segment(Format::kQ4_0, 16, 33, 16), Error);
  EXPECT_THROW(plan_packed_segment(Format::kF32, 16, 16, 5), Error);
  EXPECT_THROW(plan_packed_segment(Format::kF32, int64_t{1} << 40, int64_t{1} << 20, int64_t{1} << 40),
               Error);
}

}  // namespace
}  // namespace autodeploy::testing
