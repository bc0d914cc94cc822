# s3h_ext._s3h_host: kernels on NumPy arrays, without PyTorch. setup.py says
# where pybind11 is (python -m pybind11 --cmakedir) and which Python it is for.
set(PYBIND11_FINDPYTHON ON)
find_package(pybind11 2.13 CONFIG)
if(NOT pybind11_FOUND)
  message(FATAL_ERROR "pybind11 >= 2.13 is not here. Run: "
    "pip install 'pybind11>=2.13' && pip install --no-build-isolation .")
endif()
# No extras: they turn on link-time optimisation, which would mix the kernels of
# different instruction sets, and strip.
pybind11_add_module(s3h_host MODULE NO_EXTRAS csrc/host/module.cpp)
set_target_properties(s3h_host PROPERTIES
  PREFIX "" OUTPUT_NAME "_s3h_host" SUFFIX ".so" DEBUG_POSTFIX ""
  LIBRARY_OUTPUT_DIRECTORY "${S3H_OUTPUT_DIR}")
target_link_libraries(s3h_host PRIVATE s3h_kernels)
