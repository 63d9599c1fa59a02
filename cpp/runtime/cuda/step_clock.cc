#include "runtime/cuda/step_clock.h"

#include <algorithm>

namespace autodeploy::cuda {

void LatestTimes::add(float us) {
  if (kept_.size() < kKept)
    kept_.push_back(us);
  else
    kept_[static_cast<size_t>(count_) % kKept] = us;
  ++count_;
}

// Of n times in order, the one that a part of them does not exceed: the lower one of two in the middle.
TimesSummary LatestTimes::summary() const {
  TimesSummary s;
  s.count = count_;
  if (kept_.empty()) return s;
  std::vector<float> sorted = kept_;
  std::sort(sorted.begin(), sorted.end());
  s.median = static_cast<double>(sorted[(sorted.size() - 1) / 2]);
  s.p95 = static_cast<double>(sorted[(sorted.size() - 1) * 95 / 100]);
  return s;
}

void StepClock::begin(int64_t number, Stream stream) { at(number).begin.record(stream); }

void StepClock::end(int64_t number, Stream stream, bool decodes, bool goes_on) {
  Marks& marks = at(number);
  marks.end.record(stream);
  marks.number = number;
  marks.decodes = decodes;
  marks.goes_on = goes_on;
}

void StepClock::passed(int64_t number) {
  const Marks& marks = at(number);
  if (marks.number != number || !marks.decodes) return;
  constexpr float kMicroseconds = 1e3f;  // of a millisecond
  const float step = kMicroseconds * marks.end.milliseconds_since(marks.begin);
  const Marks* before = number > 0 ? &at(number - 1) : nullptr;
  const bool follows = before && before->number == number - 1 && before->decodes && marks.goes_on;
  const float gap = follows ? kMicroseconds * marks.begin.milliseconds_since(before->end) : 0;
  const std::lock_guard lock(mutex_);
  steps_.add(step);
  if (follows) gaps_.add(gap);
}

void StepClock::summarise(RunnerStats* stats) const {
  LatestTimes steps, gaps;
  {
    const std::lock_guard lock(mutex_);  // not while they are sorted: steps go on
    steps = steps_, gaps = gaps_;
  }
  stats->decode_step_us = steps.summary();
  stats->step_gap_us = gaps.summary();
}

}  // namespace autodeploy::cuda
