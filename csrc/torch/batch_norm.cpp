// Registers batch norm with ReLU under the LibTorch stable ABI; the schemas are
// in s3h_ext/ops/batch_norm.py.
#include "../cpu/batch_norm.h"

#include <tuple>

#include "cpu_backend.h"

namespace {

using s3h::cpu::Bfloat16;
using namespace s3h::stable;
using torch::headeronly::MemoryFormat;

Tensor channels_last(const Tensor& tensor) {
  return allocate(tensor, tensor.sizes(), tensor.scalar_type(), [&] {
    return torch::stable::contiguous(tensor, MemoryFormat::ChannelsLast);
  });
}

struct Inputs {
  Inputs(const Tensor& x_in, const Tensor& weight_in, const Tensor& bias_in,
         double eps_in)
      : x(x_in), weight(weight_in), bias(bias_in), eps(eps_in) {
    STD_TORCH_CHECK(x.dim() == 4, "x must be [N, C, H, W], got ", shape_of(x));
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float ||
                        x.scalar_type() == ScalarType::BFloat16,
                    "x must be float32 or bfloat16");
    STD_TORCH_CHECK(x.numel() > 0, "x must not be empty, got ", shape_of(x));
    x = channels_last(x);
    weight = of_channels(weight_in, "weight");
    bias = of_channels(bias_in, "bias");
  }

  // [C] in float32
  Tensor of_channels(const Tensor& tensor, const char* name) const {
    return *vector_of(tensor, x.size(1), ScalarType::Float, name);
  }

  // Another map of the same shape and type.
  Tensor map(const Tensor& tensor, const char* name) const {
    STD_TORCH_CHECK(shape_of(tensor) == shape_of(x) &&
                        tensor.scalar_type() == x.scalar_type() &&
                        tensor.device() == x.device(),
                    name, " must have x's shape ", shape_of(x),
                    ", type and device, got ", shape_of(tensor));
    return channels_last(tensor);
  }

  Tensor new_map() const {
    return allocate(x, x.sizes(), x.scalar_type(), [&] {
      return torch::stable::empty(x.sizes(), x.scalar_type(), std::nullopt,
                                  x.device(), std::nullopt,
                                  MemoryFormat::ChannelsLast);
    });
  }

  Tensor new_vector() const {
    return new_empty(x, {x.size(1)}, ScalarType::Float);
  }

  s3h::cpu::BatchNormProblem problem() const {
    return {x.numel() / x.size(1), x.size(1), data<float>(weight),
            data<float>(bias), eps};
  }

  template <typename Body>
  void with_element(const Body& body) const {
    if (x.scalar_type() == ScalarType::BFloat16)
      body.template operator()<Bfloat16>();
    else
      body.template operator()<float>();
  }

  Tensor x, weight, bias;
  double eps;
};

std::tuple<Tensor, Tensor, Tensor> batch_norm_relu(
    const Tensor& x, const Tensor& weight, const Tensor& bias,
    const OptionalTensor& residual, double eps) {
  const Inputs in(x, weight, bias, eps);
  const Cpu backend(x.device());
  OptionalTensor added;
  if (residual.has_value()) added = in.map(*residual, "residual");
  const Tensor out = in.new_map();
  const Tensor mean = in.new_vector(), variance = in.new_vector();
  in.with_element([&]<typename Element>() {
    s3h::cpu::batch_norm_relu(
        in.problem(), backend.threads(), data<Element>(in.x),
        pointer<Element>(added), mutable_data<Element>(out),
        mutable_data<float>(mean), mutable_data<float>(variance));
  });
  return {out, mean, variance};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_relu_backward(
    const Tensor& grad_in, const Tensor& out_in, const Tensor& mean_in,
    const Tensor& variance_in, const Tensor& x, const Tensor& weight,
    const Tensor& bias, const OptionalTensor& residual, double eps) {
  const Inputs in(x, weight, bias, eps);
  const Cpu backend(x.device());
  const Tensor grad = in.map(grad_in, "grad"), out = in.map(out_in, "out");
  const Tensor mean = in.of_channels(mean_in, "mean");
  const Tensor variance = in.of_channels(variance_in, "variance");
  const Tensor to_x = in.new_map();
  const Tensor to_weight = in.new_vector(), to_bias = in.new_vector();
  const Tensor to_residual = residual.has_value()
                                 ? in.new_map()
                                 : new_empty(in.x, {0}, in.x.scalar_type());
  in.with_element([&]<typename Element>() {
    s3h::cpu::batch_norm_relu_backward(
        in.problem(), backend.threads(), data<Element>(grad),
        data<Element>(out), data<Element>(in.x), data<float>(mean),
        data<float>(variance), mutable_data<Element>(to_x),
        mutable_data<float>(to_weight), mutable_data<float>(to_bias),
        static_cast<Element*>(target(to_residual, residual.has_value())));
  });
  return {to_x, to_weight, to_bias, to_residual};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, CPU, library) {
  library.impl("batch_norm_relu", TORCH_BOX(&batch_norm_relu));
  library.impl("batch_norm_relu_backward",
               TORCH_BOX(&batch_norm_relu_backward));
}
