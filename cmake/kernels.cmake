# The kernels without torch, as a static library: the op library and the native
# tests link the same objects.
add_library(s3h_kernels STATIC
  csrc/cpu/augment.cpp
  csrc/cpu/augment_geometry.cpp
  csrc/cpu/batch_norm.cpp
  csrc/cpu/batch_norm_rows.cpp
  csrc/cpu/class_sums.cpp
  csrc/cpu/dispatch.cpp
  csrc/cpu/prototype_rows.cpp
  csrc/cpu/prototypes.cpp
  csrc/cpu/prototypical.cpp
  csrc/cpu/similarity_backward.cpp
  csrc/cpu/similarity_blocks.cpp
  csrc/cpu/similarity_forward.cpp
  csrc/cpu/similarity_operands.cpp
  csrc/cpu/similarity_pack.cpp
  csrc/cpu/similarity_rows.cpp
  csrc/cpu/similarity_tiled.cpp
  csrc/cpu/similarity_tiles.cpp
  csrc/cpu/similarity_unit_operands.cpp
  csrc/cpu/supcon.cpp
  csrc/cpu/view_boxes.cpp
  csrc/cpu/views.cpp
  csrc/cpu/views_patch.cpp
  csrc/cpu/views_rows.cpp)

function(s3h_kernel_options target)
  target_compile_options(${target} PRIVATE -ffp-contract=fast)
  # Under a sanitizer the unrolled bodies take minutes to compile at -O3.
  if(NOT S3H_SANITIZE)
    target_compile_options(${target} PRIVATE -O3)
  endif()
  target_compile_options(${target} PUBLIC -Wall -Wextra)
  if(S3H_WARNINGS_AS_ERRORS)
    target_compile_options(${target} PUBLIC -Werror)
  endif()
  if(S3H_SANITIZE)
    target_compile_options(${target} PUBLIC -fsanitize=${S3H_SANITIZE}
      -fno-sanitize-recover=all -fno-omit-frame-pointer)
    target_link_options(${target} PUBLIC -fsanitize=${S3H_SANITIZE})
  endif()
  # Whether there are levels beside the baseline.
  if(S3H_LEVELS)
    target_compile_definitions(${target} PRIVATE S3H_X86_LEVELS)
  endif()
endfunction()

# s3h_add_level(<name> <flags> <source>...): compiles sources of s3h_kernels once more,
# with an instruction set's flags. Which level runs is chosen at run time.
function(s3h_add_level name flags)
  add_library(s3h_kernels_${name} OBJECT ${ARGN})
  s3h_kernel_options(s3h_kernels_${name})
  target_compile_options(s3h_kernels_${name} PRIVATE ${flags})
  target_compile_definitions(s3h_kernels_${name} PRIVATE S3H_LEVEL=${name})
  target_sources(s3h_kernels PRIVATE $<TARGET_OBJECTS:s3h_kernels_${name}>)
endfunction()

set(S3H_CPU_LEVELS "baseline")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(S3H_LEVELS AVX2 AVX512 AVX512_BF16 AMX
      CACHE STRING "Instruction sets beside the baseline: these, or none")
  # One definition stands for all of them. A cache from before there was AMX has the
  # three.
  if(NOT S3H_LEVELS MATCHES "^(AVX2;AVX512;AVX512_BF16(;AMX)?)?$")
    message(FATAL_ERROR "S3H_LEVELS must be 'AVX2;AVX512;AVX512_BF16;AMX' or empty, "
      "got '${S3H_LEVELS}'")
  endif()
endif()
s3h_kernel_options(s3h_kernels)
if(S3H_LEVELS)
  set(avx2 -mavx2 -mfma)
  set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl
      -mprefer-vector-width=512)
  set(sources csrc/cpu/batch_norm_rows.cpp csrc/cpu/prototype_rows.cpp
      csrc/cpu/similarity_tiles.cpp csrc/cpu/views_rows.cpp)
  s3h_add_level(avx2 "${avx2}" ${sources})
  s3h_add_level(avx512 "${avx512}" ${sources})
  # For products of bfloat16, and for rounding to it.
  s3h_add_level(avx512_bf16 "${avx512};-mavx512bf16" csrc/cpu/batch_norm_rows.cpp
                csrc/cpu/similarity_tiles.cpp)
  # The tile unit, and a program that does the same, for tests.
  s3h_add_level(amx "${avx512};-mavx512bf16" csrc/cpu/similarity_tiles.cpp)
  s3h_add_level(amx_emulated "${avx512}" csrc/cpu/similarity_tiles.cpp)
  target_compile_definitions(s3h_kernels_amx PRIVATE S3H_TILE_UNIT)
  target_compile_definitions(s3h_kernels_amx_emulated PRIVATE S3H_TILE_UNIT
    S3H_TILE_UNIT_EMULATED)
  string(APPEND S3H_CPU_LEVELS ", avx2, avx512, avx512_bf16, amx")
endif()

# Bit-equal to Pillow, and boxes are the same bits on every machine: one rounding
# per operation. The definition is what csrc/common/exact.h asks for as a sign of it.
set_source_files_properties(csrc/cpu/augment.cpp csrc/cpu/augment_geometry.cpp
  csrc/cpu/view_boxes.cpp csrc/tests/augment_test.cpp PROPERTIES
  COMPILE_OPTIONS "-ffp-contract=off;-fno-math-errno"
  COMPILE_DEFINITIONS S3H_FP_CONTRACT_OFF)
