// Error -> the class of stepladder.base.errors that its code names.
#include <nanobind/nanobind.h>

#include "bindings.h"
#include "stepladder/error.h"

namespace nb = nanobind;

namespace stepladder {
namespace {

const char* name_of(Code code) {
  switch (code) {
    case Code::invalid_argument:
      return "invalid_argument";
    case Code::unsupported:
      return "unsupported";
    case Code::io:
      return "io";
    case Code::model_format:
      return "model_format";
    case Code::vocab_mismatch:
      return "vocab_mismatch";
    case Code::out_of_memory:
      return "out_of_memory";
    case Code::cancelled:
      return "cancelled";
    case Code::internal:
      return "internal";
    case Code::device:
      return "device";
  }
  return "internal";
}

/// Sets Python's error; a path in a message need not be UTF-8.
void raise_in_python(Code code, const std::string& message) {
  try {
    nb::object classes = nb::module_::import_("stepladder.base.errors").attr("BY_CODE");
    nb::object type = classes[name_of(code)];
    nb::object text = nb::steal(PyUnicode_DecodeUTF8(
        message.data(), static_cast<Py_ssize_t>(message.size()), "backslashreplace"));
    PyErr_SetObject(type.ptr(), text.ptr());
  } catch (nb::python_error& failed) {
    failed.restore();
  }
}

}  // namespace

void bind_errors(nb::module_&) {
  nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (const Error& e) {
      raise_in_python(e.code(), e.what());
    } catch (const std::bad_alloc&) {
      raise_in_python(Code::out_of_memory, "memory ran out");
    }
  });
}

}  // namespace stepladder
