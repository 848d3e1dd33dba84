// The weight formats of this build, and casts for the quantizer: the engine's own rounding, so that
// a stored copy and a cast made at load are the same numbers.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <memory>

#include "bindings.h"
#include "formats/linear.h"
#include "released.h"
#include "stepladder/error.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace stepladder {
namespace {

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class T>
nb::ndarray<nb::numpy, T, nb::ndim<2>> to_numpy(std::vector<T>&& values, size_t rows, size_t cols) {
  auto owned = std::make_unique<std::vector<T>>(std::move(values));
  T* data = owned->data();
  nb::capsule owner(owned.get(), [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  owned.release();
  return {data, {rows, cols}, owner};
}

nb::tuple cast(const std::string& format, Matrix values, int group) {
  const WeightFormat& found = format_named(format);
  if (!found.cast) throw Error(Code::unsupported, "format " + format + " has no cast");
  const auto n = values.shape(0), k = values.shape(1);
  CanonicalWeight weight;
  {
    const Released released;
    weight = found.cast({values.data(), n * k}, static_cast<int>(n), static_cast<int>(k), group);
  }
  if (weight.codes.empty() && n * k > 0)
    throw Error(Code::unsupported, "format " + format + " keeps no integer codes");
  const size_t groups = n ? weight.scales.size() / n : 0;
  return nb::make_tuple(to_numpy(std::move(weight.codes), n, k),
                        to_numpy(std::move(weight.scales), n, groups), weight.desc.group);
}

/// What Python is told of a format.
struct FormatInfo {
  std::string name, alias;
  std::vector<std::string> acts;
  bool castable = false;
  std::string code, scale;  // as a cast stores them; "" where it has none
  int group = 0;
};

FormatInfo describe(const WeightFormat& format) {
  constexpr int kWidth = 128;  // every group divides it
  const std::vector<float> zeros(kWidth);
  FormatInfo out{format.name, format.alias ? format.alias : ""};
  for (Act act : format.acts) out.acts.emplace_back(act == Act::a8 ? "a8" : "a16");
  if (!format.cast) return out;
  const FormatDesc desc = format.cast(zeros, 1, kWidth, 0).desc;
  out.castable = true;
  out.code = name(desc.code);
  if (desc.scaled) out.scale = name(desc.scale);
  out.group = desc.group;
  return out;
}

std::vector<FormatInfo> describe_all() {
  std::vector<FormatInfo> out;
  for (const WeightFormat* format : formats()) out.push_back(describe(*format));
  return out;
}

}  // namespace

void bind_formats(nb::module_& m) {
  m.def("cast", &cast, "format"_a, "values"_a, "group"_a = 0,
        "Codes int8 [n, k], scales f32 [n, groups] and the group size of f32 values [n, k] in a "
        "weight format; "
        "group 0 is the format's default.");
  nb::class_<FormatInfo>(m, "Format", "A weight format of this build.")
      .def_ro("name", &FormatInfo::name)
      .def_ro("alias", &FormatInfo::alias, "Another name for it, or nothing.")
      .def_ro("acts", &FormatInfo::acts, "Activation modes it runs in, the default first.")
      .def_ro("castable", &FormatInfo::castable, "Whether cast() makes it.")
      .def_ro("code", &FormatInfo::code, "The type of a weight's code in a cast.")
      .def_ro("scale", &FormatInfo::scale, "The type of a scale in a cast; nothing without scales.")
      .def_ro("group", &FormatInfo::group, "Weights a scale unless asked otherwise; 0: a row.");
  m.def("formats", &describe_all, "All weight formats of this build.");
}

}  // namespace stepladder
