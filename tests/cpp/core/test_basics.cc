#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "core/attrs.h"
#include "core/dtype.h"
#include "core/error.h"
#include "core/processors.h"

namespace autodeploy {
namespace {

std::string message_of(void (*f)()) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(DType, NamesAndSizes) {
  EXPECT_EQ(dtype_name(DType::kBF16), "bf16");
  EXPECT_EQ(dtype_size(DType::kI64), 8);
}

TEST(Format, RoundTripsAndRows) {
  for (int i = 0; i <= static_cast<int>(Format::kQ5_1); ++i) {
    const Format f = static_cast<Format>(i);
    EXPECT_EQ(format_from_name(format_info(f).name), f);
  }
  EXPECT_EQ(format_row_bytes(Format::kQ4_1, 64), 40);
  EXPECT_EQ(format_row_bytes(Format::kQ8_0, 64), 68);
  EXPECT_EQ(format_row_bytes(Format::kBF16, 3), 6);
  EXPECT_THROW(format_row_bytes(Format::kQ4_0, 33), Error);
  EXPECT_NE(message_of([] { format_from_name("q6_k"); }).find("found 'q6_k'"), std::string::npos);
}

TEST(Attrs, TypesAndMessages) {
  Attrs a;
  a.set_owner("norm");
  a.set("n", int64_t{3});
  a.set("f", 0.5);
  a.set("s", std::string("x"));
  a.set("b", true);
  a.set("l", std::vector<int64_t>{1, 2});
  EXPECT_EQ(a.integer("n"), 3);
  EXPECT_EQ(a.number("n"), 3.0);
  EXPECT_EQ(a.number("f"), 0.5);
  EXPECT_EQ(a.string("s"), "x");
  EXPECT_TRUE(a.boolean("b"));
  EXPECT_EQ(a.integers("l").size(), 2u);
  try {
    a.integer("f");
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "[norm] attribute 'f': expected an integer, found a number");
    EXPECT_EQ(e.kind(), ErrorKind::kInvalidArtifact);
  }
  try {
    a.boolean("nope");
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "[norm] attribute 'nope': expected a boolean, found none");
  }
}

TEST(Error, InternalChecksNameTheInvariant) {
  const std::string m = message_of([] { AD_ICHECK(1 + 1 == 3, "sums are ", "right"); });
  EXPECT_NE(m.find("sums are right (1 + 1 == 3)"), std::string::npos) << m;
}

class Processors : public ::testing::Test {
 protected:
  void SetUp() override {
    char pattern[] = "/tmp/autodeploy_processorsXXXXXX";
    root_ = mkdtemp(pattern);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void write(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root_ + path).parent_path());
    std::ofstream(root_ + path) << text;
  }
  std::string root_;
};

TEST_F(Processors, NothingMounted) { EXPECT_EQ(cgroup_cpu_quota(root_), 0); }

TEST_F(Processors, UnifiedHierarchyTakesTheSmallestAncestor) {
  write("/proc/self/mountinfo",
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
  write("/proc/self/cgroup", "0::/a/b\n");
  write("/sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  EXPECT_EQ(cgroup_cpu_quota(root_), 0);
  write("/sys/fs/cgroup/a/cpu.max", "250000 100000\n");
  EXPECT_DOUBLE_EQ(cgroup_cpu_quota(root_), 2.5);
  write("/sys/fs/cgroup/a/b/cpu.max", "50000 100000\n");
  EXPECT_DOUBLE_EQ(cgroup_cpu_quota(root_), 0.5);
}

TEST_F(Processors, VersionOneController) {
  write("/proc/self/mountinfo",
        "33 32 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "34 32 0:30 /box /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n");
  write("/proc/self/cgroup", "5:cpu,cpuacct:/box/inner\n4:memory:/\n");
  write("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
  write("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(cgroup_cpu_quota(root_), 0);
  write("/sys/fs/cgroup/cpu,cpuacct/inner/cpu.cfs_quota_us", "300000\n");
  write("/sys/fs/cgroup/cpu,cpuacct/inner/cpu.cfs_period_us", "100000\n");
  EXPECT_DOUBLE_EQ(cgroup_cpu_quota(root_), 3);
}

TEST_F(Processors, GarbageIsNoLimit) {
  write("/proc/self/mountinfo", "rubbish\n30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
  write("/proc/self/cgroup", "x\n0::/../elsewhere\n");
  write("/sys/fs/cgroup/cpu.max", "word\n");
  EXPECT_EQ(cgroup_cpu_quota(root_), 0);
}

TEST(AvailableProcessors, AtLeastOne) { EXPECT_GE(available_processors(), 1); }

}  // namespace
}  // namespace autodeploy
