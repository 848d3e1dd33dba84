# Installs the build into a folder of its own, builds the projects beside this file against it, in C and
# in C++, and runs the results.
function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE code)
  if(code)
    string(REPLACE ";" " " line "${ARGV}")
    message(FATAL_ERROR "${line} ended with ${code}")
  endif()
endfunction()

file(REMOVE_RECURSE ${WORK})
run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${WORK}/prefix --component sdk)
run(${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR} -B ${WORK}/build -G ${GENERATOR} -DCMAKE_MAKE_PROGRAM=${MAKE}
    -DCMAKE_C_COMPILER=${CC} -DCMAKE_C_FLAGS=${FLAGS} -DCMAKE_PREFIX_PATH=${WORK}/prefix)
run(${CMAKE_COMMAND} --build ${WORK}/build)
run(${WORK}/build/embed ${MODEL})
run(${WORK}/build/embed ${MODEL} cast:int8,lookup)
run(${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR}/cpp -B ${WORK}/cpp -G ${GENERATOR} -DCMAKE_MAKE_PROGRAM=${MAKE}
    -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_CXX_FLAGS=${FLAGS} -DCMAKE_PREFIX_PATH=${WORK}/prefix)
run(${CMAKE_COMMAND} --build ${WORK}/cpp)
run(${WORK}/cpp/embed_cpp ${MODEL})
