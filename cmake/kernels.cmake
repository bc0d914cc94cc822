# The kernels without torch, as a static library: the op library and the native
# tests link the same objects. The files named after an instruction set hold one
# body each, compiled with that set's flags and chosen at run time.
set(S3H_TILE_SOURCES csrc/cpu/similarity_tiles_baseline.cpp)
set(S3H_PROTOTYPE_SOURCES csrc/cpu/prototype_rows_baseline.cpp)
set(S3H_CPU_LEVELS "baseline")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(S3H_FLAGS_AVX2 -mavx2 -mfma)
  set(S3H_FLAGS_AVX512 ${S3H_FLAGS_AVX2} -mavx512f -mavx512bw -mavx512dq
      -mavx512vl -mprefer-vector-width=512)
  set(S3H_FLAGS_AVX512_BF16 ${S3H_FLAGS_AVX512} -mavx512bf16)
  foreach(level AVX2 AVX512 AVX512_BF16)
    string(TOLOWER ${level} name)
    set(source csrc/cpu/similarity_tiles_${name}.cpp)
    list(APPEND S3H_TILE_SOURCES ${source})
    set_source_files_properties(${source} PROPERTIES
      COMPILE_OPTIONS "${S3H_FLAGS_${level}}")
    string(APPEND S3H_CPU_LEVELS ", ${name}")
  endforeach()
  foreach(level AVX2 AVX512)
    string(TOLOWER ${level} name)
    set(source csrc/cpu/prototype_rows_${name}.cpp)
    list(APPEND S3H_PROTOTYPE_SOURCES ${source})
    set_source_files_properties(${source} PROPERTIES
      COMPILE_OPTIONS "${S3H_FLAGS_${level}}")
  endforeach()
endif()

add_library(s3h_kernels STATIC
  csrc/cpu/class_sums.cpp
  csrc/cpu/dispatch.cpp
  csrc/cpu/prototypes.cpp
  csrc/cpu/similarity_rows.cpp
  csrc/cpu/similarity_tiled.cpp
  ${S3H_PROTOTYPE_SOURCES}
  ${S3H_TILE_SOURCES})
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
