// The list of drafters, from the files that CMake found.
#include "generated/drafters.h"
#include "core/error.h"
#include "spec/drafter_kind.h"

namespace stepladder {

namespace drafter {
#define SL_DECLARE_DRAFTER(name) extern const DrafterKind name;
SL_EACH_DRAFTER(SL_DECLARE_DRAFTER)
}  // namespace drafter

std::span<const DrafterKind* const> drafter_kinds() {
#define SL_ADDRESS_OF(name) &drafter::name,
  static constexpr const DrafterKind* kAll[] = {SL_EACH_DRAFTER(SL_ADDRESS_OF)};
  return kAll;
}

const DrafterKind* find_drafter(const std::string& word) {
  for (const DrafterKind* kind : drafter_kinds())
    if (word == kind->word) return kind;
  return nullptr;
}

int DrafterSetup::option(const std::string& name) const {
  for (const auto& [given, value] : options)
    if (given == name) return value;
  fail(Code::internal, "drafter: option ", name, " is not in its setup");
}

}  // namespace stepladder
