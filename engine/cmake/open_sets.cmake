# The open sets, found by their file names: adding a folder or file is all it takes. Their names go
# into headers as lists, generated/NAME.h, so that no source file has a central list.

# sl_layer(NAME GLOBS [LINK targets...] [EACH_BACKEND]): the static library sl_NAME from the files
# that match and, if asked for, what each backend has for this layer.
function(sl_layer name globs)
  cmake_parse_arguments(arg "EACH_BACKEND" "" "LINK" ${ARGN})
  file(GLOB sources CONFIGURE_DEPENDS RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} ${globs})
  if(arg_EACH_BACKEND)
    foreach(backend ${SL_BACKENDS})
      cmake_language(CALL sl_${backend}_objects ${name} objects)
      list(APPEND sources ${objects})
    endforeach()
  endif()
  add_library(sl_${name} STATIC ${sources})
  target_link_libraries(sl_${name} PUBLIC sl_flags ${arg_LINK})
endfunction()

# ---- backends ------------------------------------------------------------------------------------
#
# backends/NAME/backend.cmake says how NAME's sources are compiled and the formats' fast paths for
# it. It defines sl_NAME_objects(LAYER OUT), called for the layers `backends` and `formats`, which
# sets OUT to the objects that NAME adds to the layer. It may append to SL_BACKEND_LINK what they
# link, or call sl_backend_missing() and define nothing.

# sl_backend_missing(WHY): the backend whose file this is cannot be built; why, and how to get it.
macro(sl_backend_missing why)
  string(REPLACE ";" "," text "${why}")
  list(APPEND SL_MISSING_BACKENDS "${SL_BACKEND}, R\"(${text})\"")
  list(REMOVE_ITEM SL_BACKENDS ${SL_BACKEND})
endmacro()

macro(sl_find_backends)
  set(SL_BACKENDS "")
  set(SL_BACKEND_LINK "")
  set(SL_MISSING_BACKENDS "")
  file(GLOB found CONFIGURE_DEPENDS RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} backends/*/backend.cmake)
  foreach(file ${found})
    string(REGEX REPLACE "^backends/(.*)/backend.cmake$" "\\1" SL_BACKEND ${file})
    list(APPEND SL_BACKENDS ${SL_BACKEND})
    include(${file})
  endforeach()
  sl_x_list(backends "SL_EACH_BACKEND" "${SL_BACKENDS}" "SL_EACH_MISSING_BACKEND" "${SL_MISSING_BACKENDS}")
endmacro()

# sl_objects(TARGET GLOB OUT): an object library from the files that match; OUT is its objects.
function(sl_objects target glob out)
  file(GLOB sources CONFIGURE_DEPENDS RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} ${glob})
  set(empty ${CMAKE_CURRENT_BINARY_DIR}/empty.cpp)
  file(CONFIGURE OUTPUT ${empty} CONTENT "")
  add_library(${target} OBJECT ${sources} ${empty})
  target_link_libraries(${target} PRIVATE sl_flags)
  target_include_directories(${target} PRIVATE $<TARGET_PROPERTY:sl_json,INTERFACE_INCLUDE_DIRECTORIES>)
  set(${out} $<TARGET_OBJECTS:${target}> PARENT_SCOPE)
endfunction()

# ---- formats -------------------------------------------------------------------------------------

# sl_fast_paths(NAMESPACE GLOB): the formats of the files that match have kernels in the namespace.
function(sl_fast_paths namespace glob)
  file(GLOB found CONFIGURE_DEPENDS RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} ${glob})
  foreach(file ${found})
    string(REGEX REPLACE "^formats/(.*)/[^/]*$" "\\1" format ${file})
    set_property(GLOBAL APPEND PROPERTY SL_FAST_PATHS "${namespace}, ${format}")
  endforeach()
endfunction()

# sl_list_formats(HEADER [folders...]): a header with SL_EACH_FORMAT(X) of X(format), those of the
# engine and of these folders too, and, of the fast paths that the backends told of,
# SL_EACH_FAST_PATH(X) with X(namespace, format).
function(sl_list_formats header)
  foreach(folder ${PROJECT_SOURCE_DIR}/engine/formats ${ARGN})
    file(GLOB found CONFIGURE_DEPENDS RELATIVE ${folder} ${folder}/*/format.cpp)
    list(APPEND described ${found})
  endforeach()
  list(TRANSFORM described REPLACE "/format.cpp$" "")
  get_property(fast GLOBAL PROPERTY SL_FAST_PATHS)
  sl_x_list(${header} "SL_EACH_FORMAT" "${described}" "SL_EACH_FAST_PATH" "${fast}")
endfunction()

# ---- drafters ------------------------------------------------------------------------------------

# generated/drafters.h: SL_EACH_DRAFTER(X) with X(name) for each spec/drafters/NAME.cpp.
function(sl_list_drafters)
  file(GLOB found CONFIGURE_DEPENDS RELATIVE ${CMAKE_CURRENT_SOURCE_DIR}/spec/drafters spec/drafters/*.cpp)
  list(TRANSFORM found REPLACE ".cpp$" "")
  sl_x_list(drafters "SL_EACH_DRAFTER" "${found}")
endfunction()

# sl_x_list(HEADER NAME list [NAME list...]): a header of macros NAME(X) with one X(element) an
# element; HEADER is a path, or the FILE of generated/FILE.h.
function(sl_x_list header)
  if(NOT IS_ABSOLUTE ${header})
    set(header ${CMAKE_BINARY_DIR}/generated/generated/${header}.h)
  endif()
  set(text "#pragma once\n")
  math(EXPR last "${ARGC} - 2")
  foreach(i RANGE 1 ${last} 2)
    math(EXPR j "${i} + 1")
    string(APPEND text "#define ${ARGV${i}}(X)")
    foreach(element ${ARGV${j}})
      string(APPEND text " X(${element})")
    endforeach()
    string(APPEND text "\n")
  endforeach()
  file(CONFIGURE OUTPUT ${header} CONTENT "${text}" @ONLY)
endfunction()
