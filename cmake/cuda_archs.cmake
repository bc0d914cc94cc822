# Turns TORCH_CUDA_ARCH_LIST, PyTorch's way to name GPU architectures, into
# CMake's. `cmake -DLIST="8.0 9.0+PTX" -P cmake/cuda_archs.cmake` prints both.
#
# s3h_cuda_archs(<list> <out> <out_text>): "8.0;9.0+PTX" becomes
# "80-real;90-real;90-virtual" and, for people, "sm_80, sm_90, PTX 90".
function(s3h_cuda_archs list out out_text)
  if(list STREQUAL "")
    set(list "8.0;9.0+PTX")
  endif()
  string(REPLACE " " ";" list "${list}")
  set(archs)
  set(names)
  foreach(entry IN LISTS list)
    if(entry STREQUAL "")
      continue()
    endif()
    if(NOT entry MATCHES "^([0-9]+)\\.([0-9])([af]?)(\\+PTX)?$")
      message(FATAL_ERROR
        "TORCH_CUDA_ARCH_LIST: expected numbers as in '8.0;9.0+PTX', "
        "got '${entry}'")
    endif()
    set(arch "${CMAKE_MATCH_1}${CMAKE_MATCH_2}${CMAKE_MATCH_3}")
    set(ptx "${CMAKE_MATCH_4}")
    # Images with PyTorch in them name older ones too.
    if(CMAKE_MATCH_1 LESS 8)
      message(NOTICE "TORCH_CUDA_ARCH_LIST: ${entry} is left out, the CUDA "
        "kernels need 8.0 (A100) or newer")
      continue()
    endif()
    list(APPEND archs "${arch}-real")
    list(APPEND names "sm_${arch}")
    if(ptx)
      list(APPEND archs "${arch}-virtual")
      list(APPEND names "PTX ${arch}")
    endif()
  endforeach()
  if(NOT archs)
    message(FATAL_ERROR
      "TORCH_CUDA_ARCH_LIST='${list}' names no architecture from 8.0 on. Name "
      "one, or build without the CUDA kernels: S3H_CUDA=off")
  endif()
  list(REMOVE_DUPLICATES archs)
  list(REMOVE_DUPLICATES names)
  list(JOIN names ", " names)
  set(${out} "${archs}" PARENT_SCOPE)
  set(${out_text} "${names}" PARENT_SCOPE)
endfunction()

if(CMAKE_SCRIPT_MODE_FILE STREQUAL CMAKE_CURRENT_LIST_FILE)
  s3h_cuda_archs("${LIST}" archs text)
  message(NOTICE "${archs}\n${text}")
endif()
