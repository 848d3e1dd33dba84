// Weight formats and the linear layers made of them. A format is one folder: format.cpp describes
// it, reads it from checkpoints and casts to it; cpu.cpp and cuda.cu hold fast kernels, optional.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backends/backend.h"
#include "core/format.h"
#include "formats/kernel.h"
#include "formats/weight_rows.h"
#include "io/checkpoint.h"

namespace stepladder {

/// A weight [n, k] as plain codes and scales on the host: what a cast makes and the oracle
/// dequantizes.
struct CanonicalWeight {
  FormatDesc desc{};
  int n = 0, k = 0;
  std::vector<uint16_t> dense;  // [n, k] 16-bit codes when desc.code is bf16 or f16
  std::vector<int8_t> codes;    // [n, k] otherwise: i8 value, i4 value -8..7, u4, e2m1 code 0..15
  std::vector<float> scales;    // [n, groups] exactly as stored (e8m0 as its power of two)
  std::vector<float> offsets;   // [n, groups] with desc.offset, else empty
  std::vector<float> channels;  // [n] with desc.two_level, else empty
  std::vector<float> bias;      // [n] or empty

  double at(int row, int col) const;  // the weight's value, exact
  /// Rows of `other` appended below; formats and k must be equal.
  void append(const CanonicalWeight& other);
  /// f32 [n, k] values, each rounded once.
  std::vector<float> dequantize() const;
};

/// All rows of a weight as views of it, and of 4-bit codes put together in `memory`.
WeightRows rows_of(const CanonicalWeight&, Scratch& memory);
/// Plain codes of the rows, as a weight of their own.
CanonicalWeight canonical(const WeightRows&);
/// f32 [count, k] values, each rounded once.
void dequantize(const WeightRows&, float* out);

/// The one constant a format's folder exports, named like the folder.
struct WeightFormat {
  const char* name;
  /// Activation modes it runs in, at most one a precision; the first is the default.
  std::span<const ActMode> acts;
  /// Whether the checkpoint's config.json says that `prefix` ("model.layers.0.mlp.down_proj") is
  /// stored this way.
  bool (*recognises)(const Checkpoint&, const std::string& prefix);
  /// A reader of prefix.weight and its companions (bias excluded), whose types and shapes are
  /// checked now. The checkpoint must outlive it.
  std::unique_ptr<WeightReader> (*open)(const Checkpoint&, const std::string& prefix, int n, int k);
  /// Round-to-nearest cast of f32 [n, k]; group 0 = the format's default. Throws
  /// Error(invalid_argument) on values that are not finite or a group that does not divide k.
  CanonicalWeight (*cast)(std::span<const float> values, int n, int k, int group);
  /// What drafts and quantize may call it too, or null.
  const char* alias = nullptr;
  /// Tokens that a cast of it drafts a round unless told otherwise: what it costs against how often
  /// it agrees with its original.
  int draft_tokens = 4;
  /// k per scale that a cast may be asked for, the default first; empty: there is no choice.
  std::span<const int> groups = {};
  /// Tensors PREFIX.NAME that its files may hold, "bias" aside.
  std::span<const char* const> tensors = {};
};

/// All formats and kernels the build found, in folder order.
std::span<const WeightFormat* const> formats();
std::span<const LinearKernel> linear_kernels();
/// In their place: the generic path alone.
constexpr std::span<const LinearKernel> kNoKernels{};
/// Names of those that weights of 16 bits can be quantized to, as "a, b or c".
std::string quantized_formats();
/// Throws Error(unsupported) naming the known ones.
const WeightFormat& format_named(const std::string& name);
/// What a weight of k columns becomes in its default cast. Throws Error(unsupported) where there is
/// none, and what the cast says of such a k.
FormatDesc cast_desc(const WeightFormat&, int k);
/// The format in which the checkpoint stores `prefix`; throws naming it when there is none.
const WeightFormat& format_of(const Checkpoint&, const std::string& prefix);
/// A reader of a BF16, F16 or F32 tensor as bf16 or f16.
std::unique_ptr<WeightReader> open_dense(const Checkpoint&, const std::string& name, int n, int k,
                                         DType as);
/// A whole weight at once, as format_of() says it is stored.
CanonicalWeight read_weight(const Checkpoint&, const std::string& prefix, int n, int k);
/// Packs for the generic path: the layout "described" of core/format.h. As LinearKernel::pack.
size_t described_bytes(const FormatDesc&, int n, int k);
void pack_described(const WeightRows&, std::byte* out);
/// Packs a whole weight for a kernel, or the generic path where it is null.
std::vector<std::byte> pack(const LinearKernel*, const CanonicalWeight&);

/// y = x W^T + bias, in each of the wanted activation modes, over one backend's memory.
class Linear {
 public:
  Linear() = default;
  /// Picks among `kernels` for (format, act, backend); where there is none, the generic path runs.
  Linear(const Backend&, const FormatDesc&, int n, int k, bool bias, std::span<const Act> wanted,
         std::span<const LinearKernel> kernels = linear_kernels());
  Linear(const Backend& backend, const CanonicalWeight& w, std::span<const Act> wanted,
         std::span<const LinearKernel> kernels = linear_kernels())
      : Linear(backend, w.desc, w.n, w.k, !w.bias.empty(), wanted, kernels) {}
  /// Bytes of backend memory the packed copies and then the bias need, a multiple of 64.
  size_t bytes() const { return packed_bytes() + bias_bytes(); }
  size_t packed_bytes() const;
  size_t bias_bytes() const;  // f32 [n], or 0
  /// Says where in backend memory it lies; what is there must stay.
  void place(std::byte* memory);
  /// Packs some rows into `out`, host memory for packed_bytes(), zeroed before the first. Threads
  /// may pack rows of one weight at once.
  void pack(const WeightRows&, std::byte* out) const;
  /// Packs all of a weight, uploads it and its bias to `memory` and places itself there.
  void upload(Backend&, const CanonicalWeight&, std::byte* memory);
  /// The weight as `act` runs it, for Backend::project.
  ProjectWeight in(Act act) const;
  int n() const { return n_; }
  int k() const { return k_; }
  const FormatDesc& desc() const { return desc_; }
  /// Bytes one pass reads in this mode.
  size_t pass_bytes(Act) const;
  bool runs(Act) const;

 private:
  struct Mode {
    ActMode mode;
    const LinearKernel* kernel;  // null = described
    int copy;                    // index of its packed copy
    ByteRange range;             // what it reads of it
  };
  struct Copy {
    const Packing* packing = nullptr;  // null = described
    size_t bytes = 0;
    const std::byte* data = nullptr;
  };
  const Mode& mode(Act) const;

  FormatDesc desc_{};
  int n_ = 0, k_ = 0;
  bool has_bias_ = false;
  const float* bias_ = nullptr;
  std::vector<Mode> modes_;
  std::vector<Copy> copies_;
};

}  // namespace stepladder
