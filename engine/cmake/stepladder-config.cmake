# find_package(stepladder) gives stepladder::stepladder: one shared library with its headers.
include("${CMAKE_CURRENT_LIST_DIR}/stepladder-targets.cmake")
