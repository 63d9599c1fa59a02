#include "core/thread_pool.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/error.h"

namespace autodeploy {
namespace {

double cpu_seconds() {
  rusage u;
  getrusage(RUSAGE_SELF, &u);
  return static_cast<double>(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
         1e-6 * static_cast<double>(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

class ThreadPoolTest : public ::testing::TestWithParam<int> {};

TEST_P(ThreadPoolTest, RunCallsEveryThreadOnce) {
  ThreadPool pool(GetParam());
  ASSERT_EQ(pool.num_threads(), GetParam());
  std::vector<int> calls(static_cast<size_t>(GetParam()));
  std::vector<std::thread::id> ids(calls.size());
  for (int round = 1; round <= 50; ++round) {
    pool.run([&](int t) {
      ++calls[static_cast<size_t>(t)];
      if (round == 1) ids[static_cast<size_t>(t)] = std::this_thread::get_id();
      EXPECT_EQ(ids[static_cast<size_t>(t)], std::this_thread::get_id()) << "an index belongs to one thread";
    });
    for (size_t t = 0; t < calls.size(); ++t) EXPECT_EQ(calls[t], round) << "thread " << t;
  }
  EXPECT_EQ(ids[0], std::this_thread::get_id());
}

TEST_P(ThreadPoolTest, ParallelForCoversEachIndexOnce) {
  ThreadPool pool(GetParam());
  for (int64_t n : {0, 1, 2, 7, 64, 1000}) {
    for (int64_t grain : {0, 1, 3, 64, 5000}) {
      std::vector<int> hits(static_cast<size_t>(n));
      pool.parallel_for(n, grain, [&](int64_t begin, int64_t end, int thread) {
        EXPECT_LT(begin, end);
        EXPECT_GE(thread, 0);
        EXPECT_LT(thread, pool.num_threads());
        if (grain > 0) {
          EXPECT_EQ(begin % grain, 0);
        }
        for (int64_t i = begin; i < end; ++i) ++hits[static_cast<size_t>(i)];
      });
      for (int64_t i = 0; i < n; ++i)
        ASSERT_EQ(hits[static_cast<size_t>(i)], 1) << "n " << n << " grain " << grain << " at " << i;
    }
  }
}

TEST_P(ThreadPoolTest, ManySmallJobsOfBothKindsInAndOutOfSteps) {
  ThreadPool pool(GetParam());
  std::atomic<int64_t> sum{0};
  int64_t expected = 0;
  for (int i = 0; i < 2000; ++i) {
    if (i % 100 == 0) pool.begin_step();
    if (i % 3 == 0) {
      pool.run([&](int t) { sum += t + 1; });
      expected += GetParam() * (GetParam() + 1) / 2;
    } else {
      pool.parallel_for(17, 2, [&](int64_t b, int64_t e, int) { sum += e - b; });
      expected += 17;
    }
    if (i % 100 == 60) pool.end_step();
  }
  EXPECT_EQ(sum.load(), expected);
}

TEST_P(ThreadPoolTest, ExceptionsReachTheCallerAndThePoolGoesOn) {
  ThreadPool pool(GetParam());
  for (int round = 0; round < 20; ++round) {
    EXPECT_THROW(pool.parallel_for(100, 1,
                                   [](int64_t b, int64_t, int) {
                                     if (b == 41) throw std::runtime_error("41");
                                   }),
                 std::runtime_error);
    EXPECT_THROW(pool.run([&](int t) {
      if (t == GetParam() - 1) throw std::runtime_error("last");
    }),
                 std::runtime_error);
    std::atomic<int64_t> sum{0};
    pool.parallel_for(100, 1, [&](int64_t b, int64_t, int) { sum += b; });
    EXPECT_EQ(sum.load(), 4950);
  }
}

// More threads than processors is among these on most machines: progress must not depend on anybody's
// spinning.
INSTANTIATE_TEST_SUITE_P(Threads, ThreadPoolTest, ::testing::Values(1, 2, 3, 16));

TEST(ThreadPool, ChunksBeyondTheTicketAreMerged) {
  ThreadPool pool(2);
  std::atomic<int64_t> total{0};
  std::atomic<int64_t> chunks{0};
  pool.parallel_for(int64_t{1} << 50, int64_t{1} << 40, [&](int64_t b, int64_t e, int) {
    total += e - b;
    ++chunks;
  });
  EXPECT_EQ(total.load(), int64_t{1} << 50);
  EXPECT_EQ(chunks.load(), 1024);
}

TEST(ThreadPool, ParksBetweenSteps) {
  ThreadPool pool(4);
  pool.begin_step();
  pool.run([](int) {});
  pool.end_step();
  std::this_thread::sleep_for(std::chrono::milliseconds(100));  // bounded spinning ends
  const double before = cpu_seconds();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_LT(cpu_seconds() - before, 0.02) << "idle workers used the processor";
}

TEST(ThreadPool, RejectsBadCounts) {
  EXPECT_THROW(ThreadPool(-1), Error);
  EXPECT_THROW(ThreadPool(100000), Error);
  EXPECT_EQ(ThreadPool(0).num_threads(), available_processors());
}

}  // namespace
}  // namespace autodeploy
