# The CPU: kernels are compiled once for each instruction set, with SL_ISA set to its name, which
# they use as their namespace.

# Name, then flags; generated/isas.h has the names.
set(SL_ISAS portable)
set(SL_FLAGS_portable "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  list(APPEND SL_ISAS avx2 avx512)
  set(SL_FLAGS_avx2 -mavx2 -mfma -mf16c -mbmi2)
  set(SL_FLAGS_avx512 -mavx2 -mfma -mf16c -mbmi2 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni
                      -mavx512vbmi -mavx512bf16 -mprefer-vector-width=512
                      -Wno-maybe-uninitialized)  # g++ 12 warns of its own _mm512_undefined_*()
endif()
if(STEPLADDER_ISAS)
  list(FILTER SL_ISAS INCLUDE REGEX "^(${STEPLADDER_ISAS})$")
endif()
sl_x_list(isas "SL_EACH_ISA" "${SL_ISAS}")

# Tests compile kernels of their own.
set(SL_ISAS ${SL_ISAS} PARENT_SCOPE)
foreach(isa ${SL_ISAS})
  set_property(GLOBAL PROPERTY SL_FLAGS_${isa} ${SL_FLAGS_${isa}})
endforeach()

# sl_for_isa(TARGET ISA): compiles the target's files for one instruction set.
function(sl_for_isa target isa)
  get_property(flags GLOBAL PROPERTY SL_FLAGS_${isa})
  target_link_libraries(${target} PRIVATE sl_flags)
  target_compile_definitions(${target} PRIVATE SL_ISA=${isa} SL_ISA_${isa}=1)
  target_compile_options(${target} PRIVATE -O3 -fno-math-errno -fno-trapping-math ${flags})
  target_include_directories(${target} PRIVATE $<TARGET_PROPERTY:sl_json,INTERFACE_INCLUDE_DIRECTORIES>)
  if(STEPLADDER_SANITIZE)
    # Sanitizers watch readers and threads; inside kernels they take minutes and see nothing new.
    target_compile_options(${target} PRIVATE -fno-sanitize=all)
  endif()
endfunction()

function(sl_cpu_objects layer out)
  set(each_isa "formats/*/cpu.cpp")
  set(objects "")
  if(layer STREQUAL "backends")
    set(each_isa "backends/cpu/kernels/*.cpp")
    sl_objects(sl_backends_cpu "backends/cpu/*.cpp" objects)
  endif()
  foreach(isa ${SL_ISAS})
    sl_objects(sl_${layer}_${isa} ${each_isa} of_isa)
    list(APPEND objects ${of_isa})
    sl_for_isa(sl_${layer}_${isa} ${isa})
    if(layer STREQUAL "formats")
      sl_fast_paths(${isa} ${each_isa})
    endif()
  endforeach()
  set(${out} ${objects} PARENT_SCOPE)
endfunction()
