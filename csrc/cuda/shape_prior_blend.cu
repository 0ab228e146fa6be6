// CUDA backend of shape_prior_blend: checks, allocation, launches.
#include "../shape_prior_blend.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/macros/Macros.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "launch.cuh"

// Fails also under NDEBUG, unlike assert.
#define PSIS_D2_KERNEL_ASSERT(condition) CUDA_KERNEL_ASSERT(condition)
#include "shape_prior_blend_kernels.cuh"

namespace psis_d2 {
namespace {

constexpr const char* kName = "shape_prior_blend";

BlendShape kernel_shape(const ShapePriorBlendShape& shape, at::ScalarType dtype,
                        double sample_offset) {
  const int64_t most = max_cuda_side(dtype);
  TORCH_CHECK_VALUE(std::max({shape.side, shape.height, shape.width}) <= most,
                    "shape_prior_blend: the CUDA kernel takes priors and grids up to ", most, " x ",
                    most, ", not ", shape.side, " x ", shape.side, " and ", shape.height, " x ",
                    shape.width, "; psis_d2.ops.shape_prior_blend takes any.");
  return {shape.boxes,
          shape.groups,
          static_cast<int>(shape.priors),
          static_cast<int>(shape.side),
          static_cast<int>(shape.height),
          static_cast<int>(shape.width),
          sample_offset};
}

// Tensors that the kernels read, dense; the pointers live as long as this does.
struct Dense {
  at::Tensor logits, priors, boxes, frames, classes;

  Dense(const at::Tensor& logits_, const at::Tensor& priors_, const at::Tensor& boxes_,
        const at::Tensor& frames_, const std::optional<at::Tensor>& classes_)
      : logits(logits_.contiguous()), priors(priors_.contiguous()) {
    const at::ScalarType dtype = at::toOpMathType(logits.scalar_type());
    boxes = boxes_.to(dtype).contiguous();
    frames = frames_.to(dtype).contiguous();
    if (classes_.has_value()) classes = classes_->contiguous();
  }

  const int64_t* class_data() const {
    return classes.defined() ? classes.const_data_ptr<int64_t>() : nullptr;
  }
  template <typename scalar_t, typename acc_t>
  BlendInputs<scalar_t, acc_t> inputs() const {
    return {logits.const_data_ptr<scalar_t>(), priors.const_data_ptr<scalar_t>(),
            boxes.const_data_ptr<acc_t>(), frames.const_data_ptr<acc_t>(), class_data()};
  }
};

at::Tensor shape_prior_blend_cuda(const at::Tensor& logits, const at::Tensor& priors,
                                  const at::Tensor& boxes, const at::Tensor& frames, int64_t height,
                                  int64_t width, const std::optional<at::Tensor>& classes,
                                  double sample_offset) {
  const BlendShape shape =
      kernel_shape(check_shape_prior_blend(logits, priors, boxes, frames, height, width, classes),
                   logits.scalar_type(), sample_offset);
  const c10::cuda::CUDAGuard guard(logits.device());
  at::Tensor out = at::empty({shape.boxes, height, width}, logits.options());
  if (out.numel() == 0) return out;
  const Dense dense(logits, priors, boxes, frames, classes);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, logits.scalar_type(), "shape_prior_blend_cuda", [&] {
        using acc_t = at::opmath_type<scalar_t>;
        auto* kernel = &shape_prior_blend_forward<scalar_t, acc_t>;
        const int64_t shared = shape.forward_shared() * static_cast<int64_t>(sizeof(acc_t));
        launch(kName, kernel, shape.boxes, kBlendThreads, shared, dense.inputs<scalar_t, acc_t>(),
               out.mutable_data_ptr<scalar_t>(), shape);
      });
  return out;
}

std::tuple<at::Tensor, at::Tensor> shape_prior_blend_bwd_cuda(
    const at::Tensor& grad, const at::Tensor& logits, const at::Tensor& priors,
    const at::Tensor& boxes, const at::Tensor& frames, const std::optional<at::Tensor>& classes,
    double sample_offset, bool priors_need_grad) {
  const BlendShape shape =
      kernel_shape(check_shape_prior_blend_bwd(grad, logits, priors, boxes, frames, classes),
                   logits.scalar_type(), sample_offset);
  const c10::cuda::CUDAGuard guard(logits.device());
  at::Tensor grad_logits = at::empty(logits.sizes(), logits.options());
  at::Tensor grad_priors =
      at::empty(priors_need_grad ? priors.sizes() : at::IntArrayRef({0}), priors.options());
  if (shape.boxes == 0) return {grad_logits, grad_priors.zero_()};
  const Dense dense(logits, priors, boxes, frames, classes);
  const at::Tensor grad_dense = grad.contiguous();
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, logits.scalar_type(), "shape_prior_blend_bwd_cuda", [&] {
        using acc_t = at::opmath_type<scalar_t>;
        at::Tensor weights, grad_blended;
        acc_t *weight_data = nullptr, *grad_blended_data = nullptr;
        if (priors_need_grad) {
          const auto options = logits.options().dtype(c10::CppTypeToScalarType<acc_t>::value);
          weights = at::empty({shape.boxes, shape.priors}, options);
          grad_blended = at::empty({shape.boxes, shape.prior_pixels()}, options);
          weight_data = weights.mutable_data_ptr<acc_t>();
          grad_blended_data = grad_blended.mutable_data_ptr<acc_t>();
        }
        auto* kernel = &shape_prior_blend_backward<scalar_t, acc_t>;
        const int64_t shared = shape.backward_shared() * static_cast<int64_t>(sizeof(acc_t));
        launch(kName, kernel, shape.boxes, kBlendThreads, shared, dense.inputs<scalar_t, acc_t>(),
               grad_dense.const_data_ptr<scalar_t>(), grad_logits.mutable_data_ptr<scalar_t>(),
               weight_data, grad_blended_data, shape);
        if (!priors_need_grad) return;
        launch(kName, &shape_prior_blend_prior_grads<scalar_t, acc_t>, shape.groups * shape.priors,
               kBlendThreads, 0, dense.class_data(), weight_data, grad_blended_data,
               grad_priors.mutable_data_ptr<scalar_t>(), shape);
      });
  return {grad_logits, grad_priors};
}

}  // namespace

TORCH_LIBRARY_IMPL(psis_d2, CUDA, m) {
  m.impl("shape_prior_blend", &shape_prior_blend_cuda);
  m.impl("shape_prior_blend_bwd", &shape_prior_blend_bwd_cuda);
}

}  // namespace psis_d2
