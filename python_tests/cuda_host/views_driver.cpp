// Renders views.
//
//   views PROBLEM RESULT     (the layout is in kernels.py)
#include "cuda/views.h"
#include "problem_file.h"

using namespace s3h::cuda;
using s3h::ByteImage;
using s3h::ViewType;
using namespace s3h::host;

int main(int count, char** arguments) {
  if (count != 3) return 2;
  Problem problem(arguments[1]);
  s3h::ViewsProblem p{};
  const bool stacked = problem.number() != 0;
  p.images = problem.number();
  p.channels = problem.number();
  p.patches = problem.number();
  p.views = problem.number();
  p.height = problem.number();
  p.width = problem.number();
  p.nearest = problem.number() != 0;
  p.type = static_cast<ViewType>(problem.number());
  const int64_t shift = problem.number();  // of the output's address
  for (int64_t c = 0; c < p.channels; ++c) p.mean[c] = problem.real();
  for (int64_t c = 0; c < p.channels; ++c) p.std[c] = problem.real();
  p.fill = problem.real();
  std::vector<Memory> images;
  std::vector<ByteImage> list;
  for (int64_t i = 0; i < (stacked ? 1 : p.images); ++i) {
    const int64_t height = problem.number(), width = problem.number();
    images.push_back(problem.array());
    list.push_back({images.back().get<const uint8_t>(), height, width});
  }
  if (stacked)
    p.first = list[0];
  else
    p.list = list.data();
  const Memory image = problem.array(), box = problem.array();
  const Memory flip = problem.array(), colour = problem.array();
  const Memory affine = problem.array(), view = problem.array();
  const Memory rect = problem.array(), erase = problem.array();
  p.image = image.get<const int64_t>();
  p.box = box.get<const int64_t>();
  p.flip = flip.get<const bool>();
  p.colour = colour.get<const float>();
  p.affine = affine.get<const float>();
  p.view = view.get<const int64_t>();
  p.rect = rect.get<const int64_t>();
  p.erase = erase.get<const int64_t>();
  const size_t pixel = p.type == ViewType::kFloat ? 4 : 2;
  const Memory out(
      static_cast<size_t>(p.views * p.height * p.width * p.channels) * pixel,
      static_cast<size_t>(shift));
  const Memory workspace(render_views_workspace(p));
  check(render_views(p, workspace.get(), out.get(), nullptr));
  Result result(arguments[2]);
  result.put(out);
  return result.status();
}
