// What the similarity kernels are called with. The host fills these in.
#pragma once

#include <cstdint>

#include "similarity.h"

namespace s3h::cuda {

// A matrix whose rows are asked for in chunks.
struct Matrix {
  const void* data;
  int64_t count;
  int64_t depth;
  bool aligned;  // all rows begin at a multiple of 16 bytes
};

// Rows or columns of the score matrix; nullptr: not there, or not of this side.
struct Side {
  Matrix matrix;
  const float* bias;        // of keys
  const int64_t* labels;    // of both or none
  const float* same;        // of queries
  const int64_t* self;      // of queries
  const float* lse;         // of queries whose log-sum-exp is differentiated
  const float* correction;  // with lse
  const float* grad;        // with lse
};

struct ScoreArguments {
  Side rows;
  Side columns;
  float inverse_temperature;
  float inverse_temperature_rest;  // what the float leaves
  float inverse_temperature_log2;  // times log2(e)
  float inverse_temperature_log2_rest;
  float same_value;  // where a query has no `same`
  bool symmetric;    // pair (i, i) is excluded
  bool bounded;      // e^x is expected to be a normal number for all x
  float most_sum;    // bounded: of e^x over a row, and the inverse of the least
  float most_log;    // its logarithm
  bool plain;        // no vector but lse and grad is there
  int first_block;   // of the backward's blocks of rows
  int chunks;        // of depth
  int stages;        // tiles in shared memory: 1, or 2 that take turns
};

struct ForwardOutputs {
  float* lse;         // [n], where one block has the whole row
  float* correction;  // [n], with lse
  float* tops;        // [splits, n], else
  float* sums;        // [splits, n]; of the triangle [n], zeros before
  bool summed;        // sums are the triangle's
};

struct BackwardOutputs {
  void* gradient;  // [rows, depth], where one block has the whole row
  float* parts;    // [splits, rows, depth], else
};

}  // namespace s3h::cuda
