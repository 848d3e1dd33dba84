// The native half of the Python package. Its classes are thin; python/stepladder gives them
// manners.
#include "bindings.h"

NB_MODULE(_core, m) {
  // A stream may outlive the interpreter; its model ended before, at exit.
  nanobind::set_leak_warnings(false);
  m.attr("__version__") = STEPLADDER_VERSION;
  stepladder::bind_errors(m);
  stepladder::bind_engine(m);
  stepladder::bind_formats(m);
}
