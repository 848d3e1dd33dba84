// What a level learns about the cost of its rows from rounds of known lengths.
#include "spec/row_cost.h"

#include <gtest/gtest.h>

namespace stepladder {
namespace {

/// Rounds of 1, 4 and 9 rows in turn that take a + b * rows milliseconds.
void feed(RowCost& cost, double a, double b, int rounds) {
  const int rows[] = {1, 4, 9};
  for (int i = 0; i < rounds; ++i) cost.add(rows[i % 3], a + b * rows[i % 3]);
}

TEST(RowCost, IsTheAssumedOneUntilARoundWasTimed) { EXPECT_FLOAT_EQ(RowCost(0.04f).of(1), 0.04f); }

TEST(RowCost, FindsTheLineThroughTheRounds) {
  for (const double b : {0.1, 1.0, 3.0}) {
    RowCost cost(0.04f);
    feed(cost, 10, b, 60);
    EXPECT_NEAR(cost.of(1), b / (10 + b), 0.004 + 0.15 * b / (10 + b)) << b;
  }
}

TEST(RowCost, KeepsTheAssumedOneWhenAllRoundsAreOfOneSize) {
  RowCost cost(0.1f);
  for (int i = 0; i < 200; ++i) cost.add(1, 10);
  EXPECT_NEAR(cost.of(1), 0.1f, 0.02f);
}

TEST(RowCost, FollowsAMachineThatChanges) {
  RowCost cost(0.04f);
  feed(cost, 10, 0.2, 90);
  const float before = cost.of(1);
  feed(cost, 10, 2, 150);
  EXPECT_GT(cost.of(1), 4 * before);
}

TEST(RowCost, IsHigherWhereSeveralSequencesShareARound) {
  RowCost cost(0.04f);
  feed(cost, 10, 1, 60);
  EXPECT_NEAR(cost.of(4), 4 * 1 / (10 + 4 * 1.0), 0.05);
}

TEST(RowCost, StaysWithinItsBoundsWhateverTheClockSays) {
  RowCost cost(0.04f);
  for (const double ms : {0.0, 1e9, 1e-9, 0.0, 5.0, 0.0})
    for (int rows : {1, 64, 2}) {
      cost.add(rows, ms);
      EXPECT_GE(cost.of(1), 0.005f);
      EXPECT_LE(cost.of(1), 0.6f);
    }
}

}  // namespace
}  // namespace stepladder
