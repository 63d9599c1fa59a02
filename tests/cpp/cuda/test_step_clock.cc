// Times of steps and of the gaps between them, by the emulated device's clock.
#include "runtime/cuda/step_clock.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

namespace autodeploy::cuda {
namespace {

TEST(LatestTimes, MedianAndTailOfTheLatest) {
  LatestTimes times;
  EXPECT_EQ(times.summary().count, 0);
  EXPECT_EQ(times.summary().median, 0);
  for (int i = 100; i >= 1; --i) times.add(static_cast<float>(i));
  EXPECT_EQ(times.summary().count, 100);
  EXPECT_EQ(times.summary().median, 50);
  EXPECT_EQ(times.summary().p95, 95);
  // Those that came first are forgotten, and counted.
  for (size_t i = 0; i < LatestTimes::kKept; ++i) times.add(7);
  EXPECT_EQ(times.summary().count, 100 + static_cast<int64_t>(LatestTimes::kKept));
  EXPECT_EQ(times.summary().median, 7);
  EXPECT_EQ(times.summary().p95, 7);
}

void sleep_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

struct Steps {
  StepClock clock{2};
  Queue queue;
  int64_t next = 0;

  void launch(bool decodes, bool goes_on, int ms = 0) {
    clock.begin(next, queue.stream());
    sleep_ms(ms);
    clock.end(next++, queue.stream(), decodes, goes_on);
  }
  RunnerStats stats() const {
    RunnerStats s;
    clock.summarise(&s);
    return s;
  }
};

TEST(StepClock, GapsLieBetweenDecodeStepsThatFollow) {
  Steps steps;
  steps.launch(true, true, 5);
  sleep_ms(9);
  steps.launch(true, true, 5);
  // The first one's marks are still there when the second one has passed and a third is in flight.
  steps.clock.passed(0);
  steps.launch(true, true, 5);
  steps.clock.passed(1);
  RunnerStats s = steps.stats();
  EXPECT_EQ(s.decode_step_us.count, 2);
  EXPECT_GE(s.decode_step_us.median, 5e3);
  EXPECT_LT(s.decode_step_us.median, 9e3 * 20);
  EXPECT_EQ(s.step_gap_us.count, 1);
  EXPECT_GE(s.step_gap_us.median, 9e3);
  steps.clock.passed(2);
  EXPECT_EQ(steps.stats().step_gap_us.count, 2);

  // A prompt's step is no decode step, and ends the row; so does a batch in which everybody is new.
  steps.launch(false, false);
  steps.clock.passed(3);
  steps.launch(true, true);
  steps.clock.passed(4);
  steps.launch(true, false);
  steps.clock.passed(5);
  s = steps.stats();
  EXPECT_EQ(s.decode_step_us.count, 5);
  EXPECT_EQ(s.step_gap_us.count, 2);
  steps.launch(true, true);
  steps.clock.passed(6);
  EXPECT_EQ(steps.stats().step_gap_us.count, 3);
}

TEST(StepClock, AStepThatFailedLeavesItsNumber) {
  Steps steps;
  steps.launch(true, true);
  steps.clock.passed(0);
  steps.clock.begin(1, steps.queue.stream());  // and then something went wrong
  sleep_ms(3);
  steps.launch(true, true);
  steps.clock.passed(1);
  EXPECT_EQ(steps.stats().decode_step_us.count, 2);
  EXPECT_EQ(steps.stats().step_gap_us.count, 1);
  EXPECT_GE(steps.stats().step_gap_us.median, 3e3);
}

}  // namespace
}  // namespace autodeploy::cuda
