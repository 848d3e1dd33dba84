// The backend's operators as functions that queue their kernels on a stream. The bodies lie in
// kernels/*.cu, which are compiled with -fmad=false: every fused multiply-add is written out.
// Grids follow the shapes; what is not live leaves early.
#pragma once

#include <cuda_runtime_api.h>

#include "backends/composed.h"

namespace stepladder::cuda {

constexpr int kMaxHeadDim = 256;
/// At the front of every workspace: 32-bit counters, zero between kernels. What is handed on for
/// scratch begins behind them.
constexpr int kCounters = 1024;

void expand(const ExpandArgs&, cudaStream_t);
void advance(const AdvanceArgs&, cudaStream_t);
void follow(const FollowArgs&, cudaStream_t);
void accept(const AcceptArgs&, cudaStream_t);
void count(const CountArgs&, cudaStream_t);

void embed(const EmbedArgs&, cudaStream_t);
void rms_norm(const RmsNormArgs&, cudaStream_t);
void quantize(const QuantizeArgs&, cudaStream_t);
void gated_act(const GatedActArgs&, cudaStream_t);
void feature(const FeatureArgs&, cudaStream_t);

void described_linear(const LinearArgs&, cudaStream_t);
void rope_append(const RopeAppendArgs&, cudaStream_t);
void attention(const AttentionArgs&, cudaStream_t);
/// The same for the shapes that tensor instructions are used for; false for others, and then
/// nothing is queued.
bool attention_in_tiles(const AttentionArgs&, cudaStream_t);
/// Bytes of workspace that takes on the current device.
size_t tiles_workspace_bytes(const AttentionArgs&);
void keep(const KeepArgs&, cudaStream_t);
void choose(const ChooseArgs&, cudaStream_t);
void logprobs(const LogprobArgs&, cudaStream_t);
void narrow(const NarrowArgs&, cudaStream_t);
void join(const JoinArgs&, cudaStream_t);
void top(const TopArgs&, cudaStream_t);
void grow(const GrowArgs&, cudaStream_t);
void prune(const PruneArgs&, cudaStream_t);

/// A format's fast path on CUDA: a whole projection.
struct CudaKernel : FastKernel {
  void (*project)(const ProjectArgs&, cudaStream_t);
};

}  // namespace stepladder::cuda
