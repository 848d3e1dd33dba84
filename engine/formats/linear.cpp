#include "formats/linear.h"

#include <algorithm>
#include <string_view>

#include "core/error.h"

namespace stepladder {
namespace {

size_t padded(size_t bytes) { return (bytes + 63) / 64 * 64; }

const LinearKernel* find_kernel(const Backend& backend, const FormatDesc& desc, Act act, int n,
                                int k) {
  const std::string family = backend.kernels();
  for (const LinearKernel& kernel : linear_kernels())
    if (kernel.act == act && family == kernel.family &&
        std::string_view(kernel.format) == desc.name && kernel.supports(desc, n, k))
      return &kernel;
  return nullptr;
}

}  // namespace

Linear::Linear(const Backend& backend, const CanonicalWeight& weight, std::span<const Act> wanted,
               bool generic)
    : desc_(weight.desc), n_(weight.n), k_(weight.k), has_bias_(!weight.bias.empty()) {
  const auto acts = format_named(desc_.name).acts;
  for (const Act act : wanted) {
    if (runs(act)) continue;
    check(std::find(acts.begin(), acts.end(), act) != acts.end(), Code::unsupported, desc_.name,
          " weights do not run with ", act == Act::a8 ? "int8" : "16-bit", " activations");
    const LinearKernel* kernel = generic ? nullptr : find_kernel(backend, desc_, act, n_, k_);
    const std::string layout = kernel ? kernel->layout : "described";
    auto copy = std::find_if(copies_.begin(), copies_.end(),
                             [&](const Copy& c) { return c.layout == layout; });
    if (copy == copies_.end()) {
      const size_t bytes =
          kernel ? kernel->packed_bytes(desc_, n_, k_) : described_bytes(desc_, n_, k_);
      copies_.push_back({layout, bytes, nullptr, kernel});
      copy = copies_.end() - 1;
    }
    modes_.push_back({act, kernel, static_cast<int>(copy - copies_.begin())});
  }
}

size_t Linear::bytes() const {
  size_t total = has_bias_ ? padded(size_t(n_) * sizeof(float)) : 0;
  for (const Copy& copy : copies_) total += padded(copy.bytes);
  return total;
}

void Linear::upload(Backend& backend, const CanonicalWeight& weight, std::byte* memory) {
  check(weight.n == n_ && weight.k == k_ && weight.bias.empty() != has_bias_, Code::internal,
        "linear: another weight is uploaded than was planned");
  std::vector<std::byte> packed;
  for (Copy& copy : copies_) {
    packed.resize(copy.bytes);
    if (copy.packer)
      copy.packer->pack(weight, packed.data());
    else
      pack_described(weight, packed.data());
    backend.upload(memory, packed.data(), copy.bytes);
    copy.data = memory;
    memory += padded(copy.bytes);
  }
  if (has_bias_) {
    backend.upload(memory, weight.bias.data(), weight.bias.size() * sizeof(float));
    bias_ = reinterpret_cast<const float*>(memory);
  }
}

ProjectWeight Linear::in(Act act) const {
  const Mode& m = mode(act);
  const Copy& copy = copies_[m.copy];
  return {{desc_, n_, k_, copy.data, copy.bytes, bias_}, act, m.kernel ? m.kernel->run : nullptr};
}

size_t Linear::pass_bytes(Act act) const {
  return copies_[mode(act).copy].bytes + (has_bias_ ? size_t(n_) * sizeof(float) : 0);
}

bool Linear::runs(Act act) const {
  return std::any_of(modes_.begin(), modes_.end(), [&](const Mode& m) { return m.act == act; });
}

const Linear::Mode& Linear::mode(Act act) const {
  for (const Mode& m : modes_)
    if (m.act == act) return m;
  fail(Code::internal, "linear: ", desc_.name, " was not built for ",
       act == Act::a8 ? "int8" : "16-bit", " activations");
}

}  // namespace stepladder
