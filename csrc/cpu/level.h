// The instruction set that a file is compiled for, as a namespace for its
// definitions. Files that include this are compiled once per level, with
// S3H_LEVEL and the compiler's flags set by s3h_add_level
// (cmake/kernels.cmake); without these, they are the baseline.
//
// Everything but their tables has internal linkage, so that the linker cannot
// use a function compiled for a newer CPU on an older one.
#pragma once

#if !defined(S3H_LEVEL)
#define S3H_LEVEL baseline
#endif
