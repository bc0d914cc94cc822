# The second op library: CUDA kernels and their registrations. It needs nvcc, and
# no torch built for CUDA: the registrations name a function of libtorch_cuda.so,
# which is found when the library is loaded.
enable_language(CUDA)
# CMake before 3.26 does not know that nvcc has it.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_EXTENSIONS OFF)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)

file(GLOB kernels CONFIGURE_DEPENDS csrc/cuda/*.cu)
# Boxes and augmented bytes are the same on every machine: one rounding per
# operation.
set_source_files_properties(csrc/cuda/augment.cu csrc/cuda/view_boxes.cu
  PROPERTIES COMPILE_OPTIONS --fmad=false)
# The kernels see no torch: the same objects serve a build against another one.
add_library(s3h_cuda_kernels OBJECT ${kernels})
set_target_properties(s3h_cuda_kernels PROPERTIES
  CUDA_ARCHITECTURES "${S3H_CUDA_ARCHITECTURES}")
target_include_directories(s3h_cuda_kernels PRIVATE csrc)
target_compile_options(s3h_cuda_kernels PRIVATE -Xcompiler=-Wall,-Wextra)

add_library(s3h_cuda MODULE ${S3H_OPERATORS})
target_link_libraries(s3h_cuda PRIVATE s3h_cuda_kernels)
set_target_properties(s3h_cuda PROPERTIES
  PREFIX "" OUTPUT_NAME "_s3h_cuda" SUFFIX ".so"
  LIBRARY_OUTPUT_DIRECTORY "${S3H_OUTPUT_DIR}"
  # No toolkit has to be there; the driver must know this one's major version.
  CUDA_RUNTIME_LIBRARY Static
  LINKER_LANGUAGE CUDA
  SKIP_BUILD_RPATH ON)
target_compile_definitions(s3h_cuda PRIVATE
  TORCH_TARGET_VERSION=0x020b000000000000 USE_CUDA
  "S3H_CUDA_ARCHS=\"${S3H_CUDA_ARCHS}\"")
target_include_directories(s3h_cuda PRIVATE csrc)
target_include_directories(s3h_cuda SYSTEM PRIVATE
  "${S3H_TORCH_DIR}/include" ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_compile_options(s3h_cuda PRIVATE -Wall -Wextra)
if(S3H_WARNINGS_AS_ERRORS)
  target_compile_options(s3h_cuda_kernels PRIVATE -Werror=all-warnings)
  target_compile_options(s3h_cuda PRIVATE -Werror)
endif()
# torch carries a CUDA runtime of its own, under the same names.
target_link_options(s3h_cuda PRIVATE -Wl,--exclude-libs,ALL)
# Python loads torch's libraries and ours each for itself, so a name is only found in
# what ours says it needs. libtorch.so has no function of its own: it stands for
# libtorch_cpu.so and, in a torch with CUDA, libtorch_cuda.so, which a torch without
# CUDA does not have. A linker that drops what seems unused must not drop it.
set(libraries "${S3H_TORCH_DIR}/lib/libtorch.so")
if(EXISTS "${S3H_TORCH_DIR}/lib/libtorch_cuda.so")
  list(APPEND libraries "${S3H_TORCH_DIR}/lib/libtorch_cuda.so")
endif()
target_link_libraries(s3h_cuda PRIVATE
  -Wl,--push-state,--no-as-needed ${libraries} -Wl,--pop-state
  "${S3H_TORCH_DIR}/lib/libtorch_cpu.so")
