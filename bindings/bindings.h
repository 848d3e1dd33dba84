// What the module's files share: each topic adds its classes and functions to the module.
#pragma once

#include <nanobind/nanobind.h>

namespace stepladder {

void bind_errors(nanobind::module_&);
void bind_engine(nanobind::module_&);
void bind_formats(nanobind::module_&);

}  // namespace stepladder
