#include "formats/linear.h"

#include <algorithm>
#include <string_view>

#include "core/error.h"
#include "core/round_up.h"

namespace stepladder {
namespace {

/// Pieces of a weight begin on 64-byte borders.
size_t padded(size_t bytes) { return round_up<size_t>(bytes, 64); }

const LinearKernel* find_kernel(std::span<const LinearKernel> kernels, const Backend& backend,
                                const FormatDesc& desc, ActMode mode, int n, int k) {
  const std::string family = backend.kernels();
  for (const LinearKernel& kernel : kernels)
    if (kernel.mode.act == mode.act && kernel.mode.per == mode.per && family == kernel.family &&
        std::string_view(kernel.format) == desc.name && kernel.packing->supports(desc, n, k))
      return &kernel;
  return nullptr;
}

}  // namespace

Linear::Linear(const Backend& backend, const FormatDesc& desc, int n, int k, bool bias,
               std::span<const Act> wanted, std::span<const LinearKernel> kernels)
    : desc_(desc), n_(n), k_(k), has_bias_(bias) {
  const auto acts = format_named(desc_.name).acts;
  for (const Act act : wanted) {
    if (runs(act)) continue;
    const auto mode =
        std::find_if(acts.begin(), acts.end(), [&](const ActMode& m) { return m.act == act; });
    check(mode != acts.end(), Code::unsupported, desc_.name, " weights do not run with ",
          act == Act::a8 ? "int8" : "16-bit", " activations");
    const LinearKernel* kernel = find_kernel(kernels, backend, desc_, *mode, n_, k_);
    const Packing* packing = kernel ? kernel->packing : nullptr;
    auto copy = std::find_if(copies_.begin(), copies_.end(),
                             [&](const Copy& c) { return c.packing == packing; });
    if (copy == copies_.end()) {
      const size_t bytes = packing ? packing->bytes(desc_, n_, k_) : described_bytes(desc_, n_, k_);
      copies_.push_back({packing, bytes, nullptr});
      copy = copies_.end() - 1;
    }
    const ByteRange range =
        kernel && kernel->reads ? kernel->reads(desc_, n_, k_) : ByteRange{0, copy->bytes};
    check(range.first % 64 == 0 && range.first + range.bytes <= copy->bytes, Code::internal,
          "linear: a kernel of ", desc_.name, " reads beyond its copy");
    modes_.push_back({*mode, kernel, static_cast<int>(copy - copies_.begin()), range});
  }
}

size_t Linear::packed_bytes() const {
  size_t total = 0;
  for (const Copy& copy : copies_) total += padded(copy.bytes);
  return total;
}

size_t Linear::bias_bytes() const { return has_bias_ ? padded(size_t(n_) * sizeof(float)) : 0; }

void Linear::place(std::byte* memory) {
  for (Copy& copy : copies_) {
    copy.data = memory;
    memory += padded(copy.bytes);
  }
  if (has_bias_) bias_ = reinterpret_cast<const float*>(memory);
}

void Linear::pack(const WeightRows& rows, std::byte* out) const {
  for (const Copy& copy : copies_) {
    copy.packing ? copy.packing->pack(rows, out) : pack_described(rows, out);
    out += padded(copy.bytes);
  }
}

void Linear::upload(Backend& backend, const CanonicalWeight& weight, std::byte* memory) {
  check(weight.n == n_ && weight.k == k_ && weight.bias.empty() != has_bias_, Code::internal,
        "linear: another weight is uploaded than was planned");
  Scratch scratch;
  std::vector<std::byte> packed(packed_bytes());
  pack(rows_of(weight, scratch), packed.data());
  place(memory);
  backend.upload(memory, packed.data(), packed.size());
  if (has_bias_)
    backend.upload(memory + packed.size(), weight.bias.data(), weight.bias.size() * sizeof(float));
}

std::vector<std::byte> pack(const LinearKernel* kernel, const CanonicalWeight& w) {
  Scratch scratch;
  std::vector<std::byte> out(kernel ? kernel->packing->bytes(w.desc, w.n, w.k)
                                    : described_bytes(w.desc, w.n, w.k));
  (kernel ? kernel->packing->pack : pack_described)(rows_of(w, scratch), out.data());
  return out;
}

ProjectWeight Linear::in(Act act) const {
  const Mode& m = mode(act);
  const Copy& copy = copies_[m.copy];
  const std::byte* data = copy.data ? copy.data + m.range.first : nullptr;
  return {{desc_, n_, k_, data, m.range.bytes, bias_}, m.mode, m.kernel ? m.kernel->run : nullptr};
}

size_t Linear::pass_bytes(Act act) const {
  return mode(act).range.bytes + (has_bias_ ? size_t(n_) * sizeof(float) : 0);
}

bool Linear::runs(Act act) const {
  return std::any_of(modes_.begin(), modes_.end(),
                     [&](const Mode& m) { return m.mode.act == act; });
}

const Linear::Mode& Linear::mode(Act act) const {
  for (const Mode& m : modes_)
    if (m.mode.act == act) return m;
  fail(Code::internal, "linear: ", desc_.name, " was not built for ",
       act == Act::a8 ? "int8" : "16-bit", " activations");
}

}  // namespace stepladder
