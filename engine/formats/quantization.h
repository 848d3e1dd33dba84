// How config.json says a linear layer is stored, and the checks every reader of it shares.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <span>
#include <string>
#include <vector>

#include "core/format.h"
#include "formats/weight_rows.h"
#include "io/checkpoint.h"

namespace stepladder {

/// The storage of one layer as config.json's quantization_config describes it. No
/// quantization_config, or a layer it leaves out, is Method::none; one that this file does not know
/// is Method::other, with the reason, and may still be known to a format.
struct Storage {
  enum class Method { none, gptq, compressed, other } method = Method::none;
  bool integer = true;  // int codes, else float ones
  int bits = 16;
  int group = 0;            // k per scale; 0 = per output channel
  bool per_tensor = false;  // one scale for the whole matrix
  Act act = Act::a16;       // a8: int8 activations, dynamic, per token
  std::string packing;      // compressed-tensors: "pack-quantized", "int-quantized", ...
  bool gptq_v2 = false;     // zeros stored as they are, not less one
  bool reordered = false;   // gptq desc_act, compressed-tensors actorder "group"
  std::string refusal;      // of Method::other: what is not known, and how to convert
  std::string describe() const;
};

/// Reads quantization_config for `prefix`. Throws Error(model_format) when the entries contradict
/// each other.
Storage storage_of(const Checkpoint&, const std::string& prefix);

/// "FILE: tensor NAME" for messages; looked up only when it is printed, so that checks of every
/// element cost nothing.
struct TensorPlace {
  const Checkpoint& checkpoint;
  const std::string& name;
};
inline TensorPlace tensor_place(const Checkpoint& c, const std::string& name) { return {c, name}; }
std::ostream& operator<<(std::ostream&, const TensorPlace&);
/// Throws Error(model_format) when the checkpoint holds any of prefix.suffix: the tensors say that
/// the layer is stored in another way than config.json does.
void check_absent(const Checkpoint&, const std::string& prefix,
                  std::span<const char* const> suffixes, const Storage&);
/// Throws Error(model_format) naming the tensor and the first scale that is not finite, is zero,
/// is negative unless `negative` is allowed, or makes an infinite weight of a code of magnitude
/// `largest_code`; they are the tensor's from `first` on.
void check_scales(const Checkpoint&, const std::string& name, size_t first,
                  std::span<const float> scales, bool negative, float largest_code);
/// Throws unless `group` divides k.
void check_group(const Checkpoint&, const std::string& prefix, int k, int group);
/// The type of a tensor that need() found to be one of BF16, F16, F32.
DType float_type(const TensorInfo&);
/// Elements of such a tensor as f32; the slice counts elements. Read into `stored`, and given in
/// `values` unless they are f32 already.
const float* read_floats(const Checkpoint&, const std::string& name, const Slice& elements,
                         Scratch& stored, Scratch& values);
/// Throws unless an optional group index names group k / `group` for each k, or is all -1.
void check_trivial_order(const Checkpoint&, const std::string& name, int k, int group,
                         bool required);
/// Throws unless an optional compressed-tensors weight_zero_point is all zeros, and an optional
/// weight_shape is [n, k].
void check_compressed_companions(const Checkpoint&, const std::string& prefix, int n, int k);

}  // namespace stepladder
