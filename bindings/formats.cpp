// Casts of weights for the quantizer: the engine's own rounding, so that a stored copy and a cast
// made at load are the same numbers.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <memory>

#include "bindings.h"
#include "formats/linear.h"
#include "released.h"

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

std::vector<std::string> format_names() {
  std::vector<std::string> out;
  for (const WeightFormat* f : formats()) out.emplace_back(f->name);
  return out;
}

}  // namespace

void bind_formats(nb::module_& m) {
  m.def("cast", &cast, "format"_a, "values"_a, "group"_a = 0,
        "Codes int8 [n, k], scales f32 [n, groups] and the group size of f32 values [n, k] in a "
        "weight format; "
        "group 0 is the format's default.");
  m.def("formats", &format_names, "Names of all weight formats.");
}

}  // namespace stepladder
