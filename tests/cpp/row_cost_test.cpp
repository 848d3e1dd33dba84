// What a level learns about the cost of its rows from rounds of known lengths.
#include "spec/row_cost.h"

#include <gtest/gtest.h>

#include <random>

#include "backends/backend.h"

namespace stepladder {
namespace {

/// Reading hides the arithmetic of six rows, each more takes 3 ms.
double knee(int rows) { return 10 + 3 * std::max(0, rows - 6); }

GuessCost guesses(const RowCost& cost, int sequences, int most = kMaxEmitted - 1) {
  GuessCost out(most);
  cost.fill(sequences, out);
  return out;
}

TEST(RowCost, IsTheAssumedOneUntilARoundWasTimed) {
  const GuessCost cost = guesses(RowCost(0.04f), 1);
  EXPECT_EQ(cost[0], 0);
  EXPECT_FLOAT_EQ(cost[1], 0.04f);
  EXPECT_FLOAT_EQ(cost[8], 0.32f);
}

TEST(RowCost, FollowsTheAssumedOneFromTheOnlyCountItHasSeen) {
  RowCost cost(0.1f);
  for (int i = 0; i < 200; ++i) cost.add(1, 10);
  EXPECT_NEAR(guesses(cost, 1)[3], 0.3f, 1e-4);
}

TEST(RowCost, FindsTheKnee) {
  RowCost cost(0.04f);
  for (int i = 0; i < 60; ++i)
    for (const int rows : {1, 4, 7, 10}) cost.add(rows, knee(rows));
  const GuessCost g = guesses(cost, 1);
  EXPECT_NEAR(g[3], 0, 1e-3);
  EXPECT_NEAR(g[6], 0.3, 1e-3);
  EXPECT_NEAR(g[9], 1.2, 1e-3);
  EXPECT_NEAR(g[7], 0.6, 1e-3);  // between two that were seen: a line
}

TEST(RowCost, FollowsAMachineThatChanges) {
  RowCost cost(0.04f);
  for (int i = 0; i < 90; ++i)
    for (const int rows : {1, 9}) cost.add(rows, 10 + rows * 0.2);
  const float before = guesses(cost, 1)[8];
  for (int i = 0; i < 90; ++i)
    for (const int rows : {1, 9}) cost.add(rows, 10 + rows * 2.0);
  EXPECT_GT(guesses(cost, 1)[8], 4 * before);
}

// What slows everything alike says nothing about rows, even where one count is no longer seen.
TEST(RowCost, TellsASlowMachineFromDearRows) {
  RowCost cost(0.04f);
  for (int i = 0; i < 60; ++i)
    for (const int rows : {1, 5, 9}) cost.add(rows, knee(rows));
  const float before = guesses(cost, 1)[8];
  for (int i = 0; i < 60; ++i)
    for (const int rows : {5, 9}) cost.add(rows, 2 * knee(rows));
  EXPECT_NEAR(cost.of(9), 2 * knee(9), 0.05 * knee(9));
  EXPECT_NEAR(guesses(cost, 1)[8], before, 0.5 * before);
}

TEST(RowCost, CountsTheRowsOfAllSequences) {
  RowCost cost(0.04f);
  for (int rows = 1; rows <= 32; ++rows) cost.add(rows, knee(rows));
  EXPECT_NEAR(guesses(cost, 4)[1], knee(8) / knee(4) - 1, 1e-3);
  EXPECT_NEAR(guesses(cost, 4)[5], knee(24) / knee(4) - 1, 1e-3);
}

TEST(RowCost, StaysWithinReasonWhateverTheClockSays) {
  RowCost cost(0.04f);
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    const double ms[] = {0, 1e9, 1e-9, 5, 1e-300};
    cost.add(1 + static_cast<int>(random() % 3000), ms[random() % 5]);
    const GuessCost g = guesses(cost, 1 + static_cast<int>(random() % 4), 250);
    for (int d = 0; d <= 250; ++d) {
      ASSERT_TRUE(std::isfinite(g[d])) << i;
      ASSERT_GE(g[d], d ? g[d - 1] : 0) << i;
    }
  }
}

// Trees of 200 nodes in a batch of eight: the table goes as far, and what one size has shown holds
// for those around it.
TEST(RowCost, ServesTreesOfAnySizeOverABatch) {
  RowCost cost(0.04f);
  const auto ms = [](int rows) { return 10 + 0.05 * std::max(0, rows - 100); };
  for (int i = 0; i < 60; ++i)
    for (const int rows : {8, 100, 400, 808, 1608}) cost.add(rows, ms(rows));
  const GuessCost g = guesses(cost, 8, 200);
  EXPECT_EQ(g.most(), 200);
  for (const int n : {10, 49, 100, 150, 200})
    EXPECT_NEAR(g[n], ms(8 * (1 + n)) / ms(8) - 1, 0.15) << n;
  EXPECT_NEAR(g[300], 1.5 * g[200], 1e-3);  // beyond its table
  for (int n = 1; n <= 200; ++n) EXPECT_GE(g[n], g[n - 1]) << n;
  EXPECT_NEAR(cost.of(1608), ms(1608), 0.01 * ms(1608));
  EXPECT_GT(cost.of(100000), cost.of(20000));
}

TEST(RowCost, LearnsFromTreesAlone) {
  RowCost cost(0.01f);
  for (int i = 0; i < 60; ++i) cost.add(201, 30);
  EXPECT_NEAR(cost.of(201), 30, 0.1);
  EXPECT_NEAR(cost.of(1), 10, 0.2);
}

TEST(RowCost, ForgivesAnInterruptedRound) {
  RowCost cost(0.04f);
  for (int i = 0; i < 60; ++i)
    for (const int rows : {1, 5, 9}) cost.add(rows, knee(rows));
  cost.add(5, 1e6);
  EXPECT_LT(guesses(cost, 1)[4], 0.3f);
}

}  // namespace
}  // namespace stepladder
