// CUDA backend of affinity_attention: checks, allocation, launches.
#include "../affinity_attention.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <tuple>

#include "affinity_attention_kernels.cuh"
#include "launch.cuh"

namespace psis_d2 {
namespace {

constexpr const char* kName = "affinity_attention";

static_assert(kStats == kAffinityStats);
static_assert(kThetaMean == 0 && kThetaScale == 1 && kPhiMean == 2 && kPhiScale == 3);
static_assert(kLargest == 4 && kInverseSum == 5);

AttentionShape kernel_shape(const AffinityAttentionShape& shape) {
  TORCH_CHECK_VALUE(shape.pixels <= kMaxCudaPixels,
                    "affinity_attention: the CUDA kernel takes maps up to ", kMaxCudaPixels,
                    " pixels, not ", shape.pixels, "; psis_d2.ops.affinity_attention takes any.");
  return {shape.regions, static_cast<int>(shape.channels), static_cast<int>(shape.value_channels),
          static_cast<int>(shape.pixels)};
}

// Launches a kernel that owns kRows rows of `matrices` matrices per block.
template <typename acc_t, typename... Parameters, typename... Arguments>
void launch_rows(void (*kernel)(Parameters...), const AttentionShape& shape, int matrices,
                 const Arguments&... arguments) {
  launch(kName, kernel, shape.regions * shape.blocks_per_region(), kThreads,
         AttentionShared::size(shape, matrices) * static_cast<int64_t>(sizeof(acc_t)),
         arguments...);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> affinity_attention_cuda(
    const at::Tensor& theta, const at::Tensor& phi, const at::Tensor& value,
    const at::Tensor& foreground, double scale, double eps, bool unbiased) {
  const AffinityAttentionShape checked =
      check_affinity_attention(theta, phi, value, foreground, eps, unbiased);
  const AttentionShape shape = kernel_shape(checked);
  const c10::cuda::CUDAGuard guard(theta.device());
  const at::Tensor x = theta.contiguous(), y = phi.contiguous(), v = value.contiguous();
  const at::Tensor m = foreground.contiguous();
  at::Tensor attended = at::empty(value.sizes(), value.options());
  at::Tensor sums = at::empty({checked.regions, checked.pixels}, theta.options());
  at::Tensor stats;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, theta.scalar_type(), "affinity_attention_cuda", [&] {
        using acc_t = at::opmath_type<scalar_t>;
        stats = at::empty({checked.regions, kStats, checked.pixels},
                          theta.options().dtype(c10::CppTypeToScalarType<acc_t>::value));
        if (checked.regions == 0) return;
        acc_t* stat = stats.mutable_data_ptr<acc_t>();
        const int64_t blocks = 2 * shape.regions * ((shape.pixels + kThreads - 1) / kThreads);
        launch(kName, &affinity_stats<scalar_t, acc_t>, blocks, kThreads, 0,
               x.const_data_ptr<scalar_t>(), y.const_data_ptr<scalar_t>(), stat,
               static_cast<acc_t>(variance_factor(checked.channels, unbiased)),
               static_cast<acc_t>(eps), shape);
        launch_rows<acc_t>(&affinity_attention_forward<scalar_t, acc_t>, shape, 1,
                           x.const_data_ptr<scalar_t>(), y.const_data_ptr<scalar_t>(),
                           v.const_data_ptr<scalar_t>(), m.const_data_ptr<scalar_t>(),
                           attended.mutable_data_ptr<scalar_t>(), sums.mutable_data_ptr<scalar_t>(),
                           stat, static_cast<acc_t>(scale), shape);
      });
  return {attended, sums, stats};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> affinity_attention_bwd_cuda(
    const at::Tensor& grad_attended, const at::Tensor& grad_sums, const at::Tensor& theta,
    const at::Tensor& phi, const at::Tensor& value, const at::Tensor& foreground,
    const at::Tensor& stats, double scale, bool unbiased) {
  const AffinityAttentionShape checked = check_affinity_attention_bwd(
      grad_attended, grad_sums, theta, phi, value, foreground, stats, unbiased);
  const AttentionShape shape = kernel_shape(checked);
  const c10::cuda::CUDAGuard guard(theta.device());
  const at::Tensor go = grad_attended.contiguous(), gs = grad_sums.contiguous();
  const at::Tensor x = theta.contiguous(), y = phi.contiguous(), v = value.contiguous();
  const at::Tensor m = foreground.contiguous(), st = stats.contiguous();
  at::Tensor grad_theta = at::empty(theta.sizes(), theta.options());
  at::Tensor grad_phi = at::empty(phi.sizes(), phi.options());
  at::Tensor grad_value = at::empty(value.sizes(), value.options());
  at::Tensor grad_foreground = at::empty(foreground.sizes(), foreground.options());
  if (checked.regions == 0) return {grad_theta, grad_phi, grad_value, grad_foreground};
  at::Tensor dots = at::empty({checked.regions, checked.pixels}, stats.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, theta.scalar_type(), "affinity_attention_bwd_cuda", [&] {
        using acc_t = at::opmath_type<scalar_t>;
        const BackwardInputs<scalar_t, acc_t> in{
            go.const_data_ptr<scalar_t>(), gs.const_data_ptr<scalar_t>(),
            x.const_data_ptr<scalar_t>(),  y.const_data_ptr<scalar_t>(),
            v.const_data_ptr<scalar_t>(),  m.const_data_ptr<scalar_t>(),
            st.const_data_ptr<acc_t>()};
        const acc_t factor = static_cast<acc_t>(variance_factor(checked.channels, unbiased));
        acc_t* dot = dots.mutable_data_ptr<acc_t>();
        launch_rows<acc_t>(&affinity_attention_theta_grad<scalar_t, acc_t>, shape, 2, in,
                           grad_theta.mutable_data_ptr<scalar_t>(), dot, static_cast<acc_t>(scale),
                           factor, shape);
        launch_rows<acc_t>(
            &affinity_attention_phi_grad<scalar_t, acc_t>, shape, 2, in, dot,
            grad_phi.mutable_data_ptr<scalar_t>(), grad_value.mutable_data_ptr<scalar_t>(),
            grad_foreground.mutable_data_ptr<scalar_t>(), static_cast<acc_t>(scale), factor, shape);
      });
  return {grad_theta, grad_phi, grad_value, grad_foreground};
}

}  // namespace

TORCH_LIBRARY_IMPL(psis_d2, CUDA, m) {
  m.impl("affinity_attention", &affinity_attention_cuda);
  m.impl("affinity_attention_bwd", &affinity_attention_bwd_cuda);
}

}  // namespace psis_d2
