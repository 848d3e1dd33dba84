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
#include "io/checkpoint.h"

namespace stepladder {

/// A weight [n, k] as plain codes and scales on the host: what every format reads into, every
/// kernel packs from, and the oracle dequantizes.
struct CanonicalWeight {
  FormatDesc desc{};
  int n = 0, k = 0;
  std::vector<uint16_t> dense;  // [n, k] 16-bit codes when desc.code is bf16 or f16
  std::vector<int8_t> codes;    // [n, k] otherwise: i8 value, i4 value -8..7, e2m1 code 0..15
  std::vector<float> scales;    // [n, groups] exactly as stored (e8m0 as its power of two)
  std::vector<float> bias;      // [n] or empty

  double at(int row, int col) const;  // the weight's value, exact
  /// Rows of `other` appended below; formats and k must be equal.
  void append(const CanonicalWeight& other);
  /// f32 [n, k] values, each code times its scale rounded once.
  std::vector<float> dequantize() const;
};

/// The one constant a format's folder exports, named like the folder.
struct WeightFormat {
  const char* name;
  /// Activation modes it runs in; the first is the default.
  std::span<const Act> acts;
  /// Whether the checkpoint's config.json says that `prefix` ("model.layers.0.mlp.down_proj") is
  /// stored this way.
  bool (*recognises)(const Checkpoint&, const std::string& prefix);
  /// Reads prefix.weight and its companions (bias excluded); checks dtype, shape and scales.
  CanonicalWeight (*read)(const Checkpoint&, const std::string& prefix, int n, int k);
  /// Round-to-nearest cast of f32 [n, k]; group 0 = the format's default. Throws
  /// Error(invalid_argument) on values that are not finite or a group that does not divide k.
  CanonicalWeight (*cast)(std::span<const float> values, int n, int k, int group);
  /// What drafts and quantize may call it too, or null.
  const char* alias = nullptr;
};

/// All formats and kernels the build found, in folder order.
std::span<const WeightFormat* const> formats();
std::span<const LinearKernel> linear_kernels();
/// Throws Error(unsupported) naming the known ones.
const WeightFormat& format_named(const std::string& name);
/// The format in which the checkpoint stores `prefix`; throws naming it when there is none.
const WeightFormat& format_of(const Checkpoint&, const std::string& prefix);
/// Packs for the generic path: the layout "described" of core/format.h.
size_t described_bytes(const FormatDesc&, int n, int k);
void pack_described(const CanonicalWeight&, std::byte* out);

/// y = x W^T + bias, in each of the wanted activation modes, over one backend's memory.
class Linear {
 public:
  Linear() = default;
  /// Picks kernels for (format, act, backend); `generic` forces the described path.
  Linear(const Backend&, const CanonicalWeight&, std::span<const Act> wanted, bool generic = false);
  /// Bytes of backend memory the packed copies need, a multiple of 64.
  size_t bytes() const;
  /// Packs and uploads to `memory`, which must stay alive.
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
    Act act;
    const LinearKernel* kernel;  // null = described
    int copy;                    // index of its packed copy
  };
  struct Copy {
    std::string layout;
    size_t bytes = 0;
    const std::byte* data = nullptr;
    const LinearKernel* packer = nullptr;
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
