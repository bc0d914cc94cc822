// Renders one patch after another; each thread has its own renderer.
#pragma once

#include <cstdint>
#include <vector>

#include "views.h"
#include "views_rows.h"

namespace s3h::cpu {

// The windows of one axis: output i sees source pixels first[i] .. first[i] +
// count[i] - 1.
struct AxisTaps {
  std::vector<int32_t> first;
  std::vector<int32_t> count;
  std::vector<float> weights;  // [outputs, taps], zeros after the count
  int64_t taps = 0;
};

class PatchRenderer {
 public:
  explicit PatchRenderer(const ViewsProblem& problem);

  // Renders into the view that starts at `view`.
  void render(int64_t patch, char* view);

  // Fills the view with black.
  void fill_black(char* view);

 private:
  struct Job;  // a patch with its defaults resolved

  void copy(const Job& job);
  void resize(const Job& job);
  void map(const Job& job);
  template <int Channels, bool Nearest>
  void map_row(const Job& job, int64_t y);
  void set_finish(int64_t width, const float* colour);
  void finish(const Job& job, int64_t y, const float* const* rows,
              const float* weights, int64_t taps);
  const uint8_t* padded_row(const Job& job, int64_t row, int64_t reach);
  RowTaps column_taps(const Job& job);
  void expand_pairs(int64_t width);

  const ViewsProblem& problem_;
  const RowKernels& kernels_;
  int64_t plane_;        // floats between planes of channels
  int64_t pixel_bytes_;  // size of an output pixel
  RowFinish finish_{};
  AxisTaps columns_, rows_;
  std::vector<uint32_t> pairs_;
  std::vector<uint8_t> row_;
  std::vector<float> planes_;
  std::vector<float> black_;
  std::vector<const float*> window_;
};

}  // namespace s3h::cpu
