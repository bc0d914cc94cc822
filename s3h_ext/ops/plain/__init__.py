"""Portable forms of the operators, in tensor operations.

Each function has the name and the arguments of its operator's schema, runs on every
device, and is what the native kernels are tested against. What an operator runs is
decided in one place, :func:`s3h_ext.ops._library.implement`: the native kernel; if its
library is there and does not load, the load error; if there is no library, the form
from here.

The CPU library is part of every installation, so on the CPU an operator never runs its
portable form: a build that is missing or broken raises its error at the first call,
because training on, many times slower, would hide it. CUDA kernels are optional. Where
they were not built, CUDA tensors take the portable forms. To run one in any case, call
it from here.
"""
