// A projection as a chain of simpler kernels, for backends that have not fused it: what each of
// them is given, and the chain.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backends/operators.h"

namespace stepladder {

struct RmsNormArgs {
  Live live;
  Tensor x;             // [rows of the round, width] f32
  const int32_t* pick;  // the row of x for a row of the round; null = itself
  const float* weight;  // [width]
  float eps;
  Tensor out;  // [capacity, width] 16-bit
};
/// int8 activations: q = round(x / scale) with scale = amax / 127 over each group of k, ties to
/// even; a group of zeros has scale 0, one with a NaN has scale NaN. `sum` holds the sums of q over
/// groups that may be smaller.
struct QuantizeArgs {
  Live live;
  Tensor x;       // [capacity, k] 16-bit
  int group;      // k per scale; k itself when per token
  int sum_group;  // k per sum; divides `group`
  int8_t* q;      // [capacity, k]
  float* scale;   // [capacity, k / group]
  int32_t* sum;   // [capacity, k / sum_group]
};
/// y = x W^T (+ bias), or y += when `accumulate`.
struct LinearArgs {
  Live live;
  Tensor y;         // [capacity, n] f32; to accumulate [rows of the round, n]
  Tensor x;         // [capacity, k] 16-bit
  QuantizeArgs x8;  // the quantized x when act is a8
  Act act;
  PackedWeight weight;
  bool accumulate;
  const FastKernel* kernel;  // null: the generic path
};
struct RopeAppendArgs {
  Live live;
  Tensor qkv;  // [capacity, (heads + 2 kv_heads) * head_dim] f32
  RopeAppend to;
};
struct GatedActArgs {
  Live live;
  Tensor gate_up;  // [capacity, 2 * width] f32
  Tensor out;      // [capacity, width] 16-bit
};

/// The kernels, in the order in which a projection needs them.
class ProjectSteps {
 public:
  virtual ~ProjectSteps() = default;
  virtual void rms_norm(const RmsNormArgs&) = 0;
  virtual void quantize(const QuantizeArgs&) = 0;
  virtual void linear(const LinearArgs&) = 0;
  virtual void rope_append(const RopeAppendArgs&) = 0;
  virtual void gated_act(const GatedActArgs&) = 0;
};
/// Runs those that a projection has, over pieces of its workspace.
void run_steps(const ProjectArgs&, ProjectSteps&);
/// Bytes of workspace that takes.
size_t steps_workspace_bytes(const ProjectArgs&);

}  // namespace stepladder
