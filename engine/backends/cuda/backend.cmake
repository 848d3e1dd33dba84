# CUDA: kernels are compiled by nvcc, everything else by the C++ compiler; the runtime is linked in,
# so that a build runs, on its CPU backend, where there is no CUDA.
#
#   STEPLADDER_CUDA                 AUTO: built where nvcc is found; ON, OFF; pip: nvcc and the
#                                   runtime from the Python environment's nvidia wheels
#   STEPLADDER_CUDA_ARCHITECTURES   as "80;89;90a"; "80-virtual" is PTX for 8.0 and later.
#                                   Empty: this machine's GPU, or 90a

set(STEPLADDER_CUDA AUTO CACHE STRING "Build the CUDA backend: AUTO (where nvcc is found), ON, OFF or pip")
set(STEPLADDER_CUDA_ARCHITECTURES "" CACHE STRING "GPU architectures, as 80;89;90a; empty = this machine's")

# sl_find_cuda(OUT): where the toolkit is, in cuda_root; OUT is why there is none, or "".
function(sl_find_cuda out)
  set(hints /usr/local/cuda/bin)
  if(STEPLADDER_CUDA STREQUAL "pip")
    execute_process(COMMAND ${Python3_EXECUTABLE} -c "import nvidia, os
for at in nvidia.__path__:
    for name in sorted(os.listdir(at)):
        if os.path.exists(os.path.join(at, name, 'bin', 'nvcc')):
            print(os.path.join(at, name))"
      OUTPUT_VARIABLE wheels ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
    string(REGEX REPLACE "\n.*" "" wheels "${wheels}")
    find_program(SL_NVCC_OF_PIP nvcc PATHS "${wheels}/bin" NO_DEFAULT_PATH)
    set(nvcc "${SL_NVCC_OF_PIP}")
  else()
    find_program(SL_NVCC nvcc HINTS ENV CUDACXX PATHS ${hints})
    set(nvcc "${SL_NVCC}")
  endif()
  set(${out} "nvcc was not found: install the CUDA toolkit 12.4 or newer, or build with STEPLADDER_CUDA=pip" PARENT_SCOPE)
  if(STEPLADDER_CUDA STREQUAL "pip")
    set(${out} "no nvcc in the Python environment: pip install nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-crt nvidia-nvvm" PARENT_SCOPE)
  endif()
  if(NOT nvcc)
    return()
  endif()
  execute_process(COMMAND ${nvcc} --version OUTPUT_VARIABLE version ERROR_QUIET)
  string(REGEX MATCH "release ([0-9.]+)" found "${version}")
  if(NOT found OR CMAKE_MATCH_1 VERSION_LESS 12.4)
    set(${out} "nvcc ${CMAKE_MATCH_1} (${nvcc}) is too old: CUDA 12.4 or newer is needed" PARENT_SCOPE)
    return()
  endif()
  file(REAL_PATH "${nvcc}" real)
  cmake_path(GET real PARENT_PATH bin)
  cmake_path(GET bin PARENT_PATH root)
  find_file(SL_CUDA_RUNTIME libcudart_static.a PATHS ${root} PATH_SUFFIXES lib64 lib targets/x86_64-linux/lib NO_DEFAULT_PATH)
  find_path(SL_CUDA_INCLUDE cuda_runtime_api.h PATHS ${root} PATH_SUFFIXES include targets/x86_64-linux/include NO_DEFAULT_PATH)
  if(NOT SL_CUDA_RUNTIME OR NOT SL_CUDA_INCLUDE)
    set(${out} "libcudart_static.a or cuda_runtime_api.h is missing beside ${nvcc}" PARENT_SCOPE)
    return()
  endif()
  set(${out} "" PARENT_SCOPE)
  set(SL_NVCC_FOUND ${nvcc} CACHE INTERNAL "")
  set(SL_NVCC_VERSION ${CMAKE_MATCH_1} PARENT_SCOPE)
endfunction()

unset(SL_NVCC_FOUND CACHE)
set(cuda_lacks "")
if(STEPLADDER_CUDA STREQUAL "OFF" OR STEPLADDER_CUDA STREQUAL "0")
  set(cuda_lacks "built with STEPLADDER_CUDA=OFF")
elseif(STEPLADDER_SANITIZE OR STEPLADDER_FUZZ)
  set(cuda_lacks "sanitizer and fuzz builds go without it")
else()
  sl_find_cuda(cuda_lacks)
  if(cuda_lacks AND NOT STEPLADDER_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "STEPLADDER_CUDA=${STEPLADDER_CUDA}: ${cuda_lacks}")
  endif()
endif()

if(cuda_lacks)
  message(STATUS "CUDA backend: no (${cuda_lacks})")
  sl_backend_missing("${cuda_lacks}")
else()
  set(SL_CUDA_ARCHS ${STEPLADDER_CUDA_ARCHITECTURES})
  if(NOT SL_CUDA_ARCHS)
    execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
      OUTPUT_VARIABLE here ERROR_QUIET RESULT_VARIABLE failed)
    if(failed OR NOT here MATCHES "^[0-9]+\\.[0-9]")
      set(SL_CUDA_ARCHS 90a)
    else()
      string(REGEX MATCHALL "[0-9]+\\.[0-9]+" SL_CUDA_ARCHS "${here}")
      list(REMOVE_DUPLICATES SL_CUDA_ARCHS)
      list(TRANSFORM SL_CUDA_ARCHS REPLACE "\\." "")
      list(TRANSFORM SL_CUDA_ARCHS REPLACE "^90$" "90a")
    endif()
  endif()
  set(code "")
  foreach(arch ${SL_CUDA_ARCHS})
    if(arch MATCHES "^([0-9]+[af]?)-virtual$")
      list(APPEND code -gencode arch=compute_${CMAKE_MATCH_1},code=compute_${CMAKE_MATCH_1})
    elseif(arch MATCHES "^[0-9]+[af]?$")
      list(APPEND code -gencode arch=compute_${arch},code=sm_${arch})
    else()
      message(FATAL_ERROR "STEPLADDER_CUDA_ARCHITECTURES: \"${arch}\" is none; write 80, 89, 90a or 80-virtual")
    endif()
  endforeach()
  set(SL_CUDA_CODE ${code} CACHE INTERNAL "")  # the benches compile kernels of their own
  list(JOIN SL_CUDA_ARCHS ", " archs)
  message(STATUS "CUDA backend: nvcc ${SL_NVCC_VERSION}, for ${archs}")
  set(SL_CUDA_ARCHS_TEXT "${archs}")
  list(APPEND SL_BACKEND_LINK ${SL_CUDA_RUNTIME} ${CMAKE_DL_LIBS} rt)
endif()

# sl_cuda_compile(GLOB OUT): objects made by nvcc from the files that match.
function(sl_cuda_compile glob out)
  file(GLOB sources CONFIGURE_DEPENDS RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} ${glob})
  set(launcher ${CMAKE_CXX_COMPILER_LAUNCHER})
  set(warnings "")
  if(STEPLADDER_WERROR)
    set(warnings --Werror all-warnings -Xptxas=-warn-spills,-Werror)
  endif()
  set(objects "")
  foreach(source ${sources})
    set(object ${CMAKE_CURRENT_BINARY_DIR}/${source}.o)
    cmake_path(GET object PARENT_PATH folder)
    file(MAKE_DIRECTORY ${folder})
    add_custom_command(OUTPUT ${object}
      COMMAND ${launcher} ${SL_NVCC_FOUND} -std=c++20 -O3 -fmad=false --expt-relaxed-constexpr ${warnings}
        -ccbin ${CMAKE_CXX_COMPILER} -Xcompiler=-fPIC,-ffp-contract=off,-Wall,-Wno-unused-function ${SL_CUDA_CODE}
        -I${PROJECT_SOURCE_DIR}/engine -I${PROJECT_SOURCE_DIR}/engine/include -I${PROJECT_SOURCE_DIR}
        -MD -MT ${object} -MF ${object}.d -c ${CMAKE_CURRENT_SOURCE_DIR}/${source} -o ${object}
      DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${source} DEPFILE ${object}.d
      COMMENT "Building CUDA object ${source}" VERBATIM)
    list(APPEND objects ${object})
  endforeach()
  set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
  set_property(GLOBAL APPEND PROPERTY SL_CUDA_OBJECTS ${objects})
  set(${out} ${objects} PARENT_SCOPE)
endfunction()

function(sl_cuda_objects layer out)
  if(layer STREQUAL "backends")
    sl_objects(sl_backends_cuda "backends/cuda/*.cpp" objects)
    target_include_directories(sl_backends_cuda SYSTEM PRIVATE ${SL_CUDA_INCLUDE})
    target_compile_definitions(sl_backends_cuda PRIVATE "SL_CUDA_ARCHITECTURES=\"${SL_CUDA_ARCHS_TEXT}\"")
    sl_cuda_compile("backends/cuda/kernels/*.cu" kernels)
  else()
    sl_objects(sl_formats_cuda "formats/cuda/*.cpp" objects)
    target_include_directories(sl_formats_cuda SYSTEM PRIVATE ${SL_CUDA_INCLUDE})
    sl_cuda_compile("formats/*/cuda.cu" kernels)
    sl_fast_paths(cuda "formats/*/cuda.cu")
  endif()
  set(${out} ${objects} ${kernels} PARENT_SCOPE)
endfunction()
