// The registry of formats, from the list that CMake writes of the folders found.
#include "generated/formats.h"
#include "core/error.h"
#include "formats/linear.h"
#include "formats/quantization.h"

namespace stepladder {

namespace format {
#define SL_DECLARE_FORMAT(name) extern const WeightFormat name;
SL_EACH_FORMAT(SL_DECLARE_FORMAT)
}  // namespace format

namespace {

std::string known_formats() {
  std::string names;
  for (const WeightFormat* f : formats())
    names += (names.empty() ? "" : ", ") + std::string(f->name);
  return names;
}

}  // namespace

std::span<const WeightFormat* const> formats() {
#define SL_ADDRESS_OF(name) &format::name,
  static constexpr const WeightFormat* kAll[] = {SL_EACH_FORMAT(SL_ADDRESS_OF)};
  return kAll;
}

const WeightFormat& format_named(const std::string& name) {
  for (const WeightFormat* f : formats())
    if (f->name == name) return *f;
  fail(Code::unsupported, "weight format \"", name, "\" is not known; there are ", known_formats());
}

std::string quantized_formats() {
  constexpr int kWidth = 128;  // that every group divides
  std::vector<std::string> names;
  for (const WeightFormat* f : formats())
    if (f->cast && bits(cast_desc(*f, kWidth).code) < 16) names.push_back(f->name);
  std::string out;
  for (size_t i = 0; i < names.size(); ++i)
    out += (i == 0 ? "" : i + 1 < names.size() ? ", " : " or ") + names[i];
  return out;
}

FormatDesc cast_desc(const WeightFormat& to, int k) {
  check(to.cast != nullptr, Code::unsupported, "cast: there is no cast to ", to.name);
  const std::vector<float> zeros(k);
  return to.cast(zeros, 1, k, 0).desc;
}

const WeightFormat& format_of(const Checkpoint& checkpoint, const std::string& prefix) {
  for (const WeightFormat* f : formats())
    if (f->recognises(checkpoint, prefix)) return *f;
  const Storage storage = storage_of(checkpoint, prefix);
  if (!storage.refusal.empty()) fail(Code::unsupported, storage.refusal);
  fail(Code::unsupported, checkpoint.where(), ": ", prefix, " is stored as ", storage.describe(),
       ", which no format reads; the formats are ", known_formats(),
       ". Convert a 16-bit checkpoint with: stepladder quantize IN OUT --format FORMAT");
}

}  // namespace stepladder
