"""Portable implementations of the operators, from tensor operations.

Each function has the name and the arguments of its operator's schema and runs on every
device; the native kernels are tested against it. One function,
:func:`s3h_ext.ops._library.implement`, decides what an operator runs: the native
kernel; the load error if its library is installed but does not load; the function from
here if there is no library.

The CPU library is part of every installation, so CPU operators never fall back to these
functions. A missing or broken build raises its error at the first call, because
training many times slower would hide it. CUDA kernels are optional: if they were not
built, CUDA tensors use these functions. To run one in any case, import it from here.
"""
