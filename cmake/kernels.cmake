# The kernels without torch, as a static library: the op library and the native
# tests link the same objects. The files named after an instruction set hold one
# body each, compiled with that set's flags and chosen at run time.
set(S3H_LEVEL_SOURCES csrc/cpu/prototype_rows_baseline.cpp
    csrc/cpu/similarity_tiles_baseline.cpp csrc/cpu/views_rows_baseline.cpp)
set(S3H_CPU_LEVELS "baseline")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(S3H_FLAGS_AVX2 -mavx2 -mfma)
  set(S3H_FLAGS_AVX512 ${S3H_FLAGS_AVX2} -mavx512f -mavx512bw -mavx512dq
      -mavx512vl -mprefer-vector-width=512)
  set(S3H_FLAGS_AVX512_BF16 ${S3H_FLAGS_AVX512} -mavx512bf16)
  set(S3H_LEVELS AVX2 AVX512 AVX512_BF16
      CACHE STRING "Instruction sets beside the baseline: these, or none")
  # One definition stands for all of them.
  if(NOT S3H_LEVELS MATCHES "^(AVX2;AVX512;AVX512_BF16)?$")
    message(FATAL_ERROR "S3H_LEVELS must be 'AVX2;AVX512;AVX512_BF16' or empty, "
      "got '${S3H_LEVELS}'")
  endif()
  foreach(level ${S3H_LEVELS})
    string(TOLOWER ${level} name)
    set(sources csrc/cpu/similarity_tiles_${name}.cpp)
    # Only similarities have a use for products of bfloat16.
    if(NOT level STREQUAL AVX512_BF16)
      list(APPEND sources csrc/cpu/prototype_rows_${name}.cpp
           csrc/cpu/views_rows_${name}.cpp)
    endif()
    list(APPEND S3H_LEVEL_SOURCES ${sources})
    set_source_files_properties(${sources} PROPERTIES
      COMPILE_OPTIONS "${S3H_FLAGS_${level}}")
    string(APPEND S3H_CPU_LEVELS ", ${name}")
  endforeach()
endif()

add_library(s3h_kernels STATIC
  csrc/cpu/augment.cpp
  csrc/cpu/augment_geometry.cpp
  csrc/cpu/class_sums.cpp
  csrc/cpu/dispatch.cpp
  csrc/cpu/prototypes.cpp
  csrc/cpu/similarity_backward.cpp
  csrc/cpu/similarity_blocks.cpp
  csrc/cpu/similarity_forward.cpp
  csrc/cpu/similarity_operands.cpp
  csrc/cpu/similarity_pack.cpp
  csrc/cpu/similarity_rows.cpp
  csrc/cpu/similarity_tiled.cpp
  csrc/cpu/supcon.cpp
  csrc/cpu/view_boxes.cpp
  csrc/cpu/views.cpp
  csrc/cpu/views_patch.cpp
  ${S3H_LEVEL_SOURCES})
if(S3H_CPU_LEVELS MATCHES ",")
  target_compile_definitions(s3h_kernels PRIVATE S3H_X86_LEVELS)
endif()
target_compile_options(s3h_kernels PRIVATE -ffp-contract=fast)
# Under a sanitizer the unrolled bodies take minutes to compile at -O3.
if(NOT S3H_SANITIZE)
  target_compile_options(s3h_kernels PRIVATE -O3)
endif()
target_compile_options(s3h_kernels PUBLIC -Wall -Wextra)
if(S3H_WARNINGS_AS_ERRORS)
  target_compile_options(s3h_kernels PUBLIC -Werror)
endif()
if(S3H_SANITIZE)
  target_compile_options(s3h_kernels PUBLIC -fsanitize=${S3H_SANITIZE}
    -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_link_options(s3h_kernels PUBLIC -fsanitize=${S3H_SANITIZE})
endif()
# Bit-equal to Pillow, and boxes are the same bits on every machine: one rounding
# per operation. The definition is what csrc/common/exact.h asks for as a sign of it.
set_source_files_properties(csrc/cpu/augment.cpp csrc/cpu/augment_geometry.cpp
  csrc/cpu/view_boxes.cpp csrc/tests/augment_test.cpp PROPERTIES
  COMPILE_OPTIONS "-ffp-contract=off;-fno-math-errno"
  COMPILE_DEFINITIONS S3H_FP_CONTRACT_OFF)
