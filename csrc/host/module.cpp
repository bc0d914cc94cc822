// The Python module s3h_ext._s3h_host for the callbacks of data pipelines:
// NumPy arrays in and out, without PyTorch, and with the GIL released.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "../cpu/view_boxes.h"

namespace py = pybind11;

namespace {

using Whole = py::array_t<int64_t, py::array::c_style>;

std::string shape_of(const py::array& array) {
  return py::str(array.attr("shape")).cast<std::string>();
}

py::tuple sample_view_boxes(const Whole& sizes, const Whole& sample_index,
                            const Whole& view,
                            const std::vector<double>& constraint, int64_t seed,
                            int64_t epoch, int64_t stream) {
  if (sample_index.ndim() != 1)
    throw py::value_error("sample_index: expected [N], got shape " +
                          shape_of(sample_index));
  const int64_t count = sample_index.shape(0);
  if (sizes.ndim() != 2 || sizes.shape(1) != 2 ||
      (sizes.shape(0) != count && sizes.shape(0) != 1))
    throw py::value_error("sizes: expected [" + std::to_string(count) +
                          ", 2] or [1, 2], got shape " + shape_of(sizes));
  if (view.ndim() != 1 || (view.shape(0) != count && view.shape(0) != 1))
    throw py::value_error("view: expected [" + std::to_string(count) +
                          "] or [1], got shape " + shape_of(view));
  const s3h::ViewBoxProblem problem{count,
                                    sizes.data(),
                                    sizes.shape(0) == count ? 2 : 0,
                                    sample_index.data(),
                                    view.data(),
                                    view.shape(0) == count ? 1 : 0,
                                    constraint.data(),
                                    static_cast<int64_t>(constraint.size()),
                                    seed,
                                    epoch,
                                    stream};
  py::array_t<int64_t> box({count, int64_t{4}});
  py::array_t<bool> fallback(count);
  int64_t* boxes = box.mutable_data();
  bool* flags = fallback.mutable_data();
  s3h::cpu::ViewBoxFault fault;
  {
    py::gil_scoped_release unlocked;
    fault = s3h::cpu::check_view_boxes(problem);
    if (fault.argument == nullptr)
      s3h::cpu::draw_view_boxes(problem, 0, count, boxes, flags);
  }
  if (fault.argument != nullptr)
    throw py::value_error(s3h::cpu::fault_message(fault));
  return py::make_tuple(box, fallback);
}

}  // namespace

PYBIND11_MODULE(_s3h_host, module, py::mod_gil_not_used()) {
  module.doc() = "Kernels on NumPy arrays, without PyTorch.";
  module.def("sample_view_boxes", &sample_view_boxes,
             "Draws view boxes; see s3h_ext.data.views.host_boxes.",
             py::arg("sizes").noconvert(), py::arg("sample_index").noconvert(),
             py::arg("view").noconvert(), py::arg("constraint"), py::kw_only(),
             py::arg("seed"), py::arg("epoch"), py::arg("stream"));
}
