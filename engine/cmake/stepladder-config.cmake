# find_package(stepladder) gives stepladder::stepladder: one shared library with its headers.
include("${CMAKE_CURRENT_LIST_DIR}/stepladder-targets.cmake")
# Its C++ headers are C++20; a project in C alone knows no such feature.
if(CMAKE_CXX_COMPILER_LOADED)
  set_property(TARGET stepladder::stepladder APPEND PROPERTY INTERFACE_COMPILE_FEATURES cxx_std_20)
endif()
