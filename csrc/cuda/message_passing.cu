// CUDA backend of message_passing: checks, allocation, launches.
#include "../message_passing.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "message_passing_kernels.cuh"

namespace psis_d2 {
namespace {

static_assert(kKernelTaps == kTaps);
static_assert(static_cast<int>(KernelNorm::kSoftmax) == static_cast<int>(Norm::kSoftmax));
static_assert(static_cast<int>(KernelNorm::kSigmoidSum) == static_cast<int>(Norm::kSigmoidSum));
static_assert(static_cast<int>(KernelNorm::kNone) == static_cast<int>(Norm::kNone));
static_assert(kMaxCudaSide * kMaxCudaSide <= 4 * kMaxThreads, "kPixels of at most 4");

constexpr int64_t kDefaultShared = 48 * 1024;          // bytes that need no opt-in
constexpr int64_t kMaxWorkspace = int64_t(256) << 20;  // bytes of planes in global memory

int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

MapShape map_shape(const MessagePassingShape& shape) {
  TORCH_CHECK_VALUE(shape.height <= kMaxCudaSide && shape.width <= kMaxCudaSide,
                    "message_passing: the CUDA kernel takes maps up to ", kMaxCudaSide, " x ",
                    kMaxCudaSide, ", not ", shape.height, " x ", shape.width,
                    "; psis_d2.ops.message_passing takes any.");
  return {shape.groups(),
          static_cast<int>(shape.maps_per_group()),
          static_cast<int>(shape.height),
          static_cast<int>(shape.width),
          static_cast<int>(shape.steps),
          static_cast<KernelNorm>(shape.norm)};
}

int threads_per_block(const MapShape& shape, int pixels_per_thread) {
  const int threads = (shape.pixels() + pixels_per_thread - 1) / pixels_per_thread;
  return (threads + 31) / 32 * 32;
}

// Lets the kernel use `shared` bytes and returns how many of its blocks fill the device.
template <typename Kernel>
int64_t resident_blocks(Kernel* kernel, int threads, int64_t shared) {
  if (shared > kDefaultShared) {
    C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(shared)));
  }
  int per_processor = 0;
  C10_CUDA_CHECK(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, threads, shared));
  return std::max<int64_t>(1, per_processor) * device_attribute(cudaDevAttrMultiProcessorCount);
}

template <typename scalar_t, typename acc_t, int kPixels>
void launch_forward(const at::Tensor& m0, const at::Tensor& weights, at::Tensor& out,
                    const MapShape& shape) {
  auto* kernel = &message_passing_forward<scalar_t, acc_t, kPixels>;
  const int threads = threads_per_block(shape, kPixels);
  const int64_t shared = 2 * shape.plane() * static_cast<int64_t>(sizeof(acc_t));
  const int64_t blocks = std::min(shape.groups, resident_blocks(kernel, threads, shared));
  kernel<<<blocks, threads, shared, c10::cuda::getCurrentCUDAStream()>>>(
      weights.const_data_ptr<scalar_t>(), m0.const_data_ptr<scalar_t>(),
      out.mutable_data_ptr<scalar_t>(), shape);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename scalar_t, typename acc_t, int kPixels>
void launch_backward(const at::Tensor& grad, const at::Tensor& m0, const at::Tensor& weights,
                     at::Tensor& grad_m0, at::Tensor& grad_weights, const MapShape& shape) {
  auto* kernel = &message_passing_backward<scalar_t, acc_t, kPixels>;
  const int threads = threads_per_block(shape, kPixels);
  const int64_t planes_size = int64_t(shape.backward_planes()) * shape.plane();
  const int64_t planes_bytes = planes_size * static_cast<int64_t>(sizeof(acc_t));
  const bool in_shared = planes_bytes <= device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  const int64_t shared = in_shared ? planes_bytes : 0;
  int64_t blocks = std::min(shape.groups, resident_blocks(kernel, threads, shared));

  const auto options = m0.options().dtype(c10::CppTypeToScalarType<acc_t>::value);
  at::Tensor planes, weight_sums;
  acc_t* planes_data = nullptr;
  acc_t* weight_sums_data = nullptr;
  if (!in_shared) {
    blocks = std::min(blocks, std::max<int64_t>(1, kMaxWorkspace / planes_bytes));
    planes = at::empty({blocks, planes_size}, options);
    planes_data = planes.mutable_data_ptr<acc_t>();
  }
  if (shape.maps > 1) {
    weight_sums = at::empty({blocks, kTaps, shape.pixels()}, options);
    weight_sums_data = weight_sums.mutable_data_ptr<acc_t>();
  }
  kernel<<<blocks, threads, shared, c10::cuda::getCurrentCUDAStream()>>>(
      grad.const_data_ptr<scalar_t>(), weights.const_data_ptr<scalar_t>(),
      m0.const_data_ptr<scalar_t>(), grad_m0.mutable_data_ptr<scalar_t>(),
      grad_weights.mutable_data_ptr<scalar_t>(), planes_data, weight_sums_data, shape);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

// Calls body with the pixels per thread as a compile-time constant.
template <typename Body>
void dispatch_pixels(const MapShape& shape, const Body& body) {
  if (shape.pixels() <= kMaxThreads) {
    body(std::integral_constant<int, 1>());
  } else {
    body(std::integral_constant<int, 4>());
  }
}

at::Tensor message_passing_cuda(const at::Tensor& m0, const at::Tensor& weights, int64_t steps,
                                c10::string_view norm) {
  const MapShape shape = map_shape(check_message_passing(m0, weights, steps, norm));
  const c10::cuda::CUDAGuard guard(m0.device());
  at::Tensor out = at::empty(m0.sizes(), m0.options());
  if (out.numel() == 0) return out;
  const at::Tensor m0_dense = m0.contiguous();
  const at::Tensor weights_dense = weights.contiguous();
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, m0.scalar_type(), "message_passing_cuda", [&] {
        dispatch_pixels(shape, [&](auto pixels) {
          launch_forward<scalar_t, at::opmath_type<scalar_t>, decltype(pixels)::value>(
              m0_dense, weights_dense, out, shape);
        });
      });
  return out;
}

std::tuple<at::Tensor, at::Tensor> message_passing_bwd_cuda(const at::Tensor& grad,
                                                            const at::Tensor& m0,
                                                            const at::Tensor& weights,
                                                            int64_t steps, c10::string_view norm) {
  const MapShape shape = map_shape(check_message_passing_bwd(grad, m0, weights, steps, norm));
  const c10::cuda::CUDAGuard guard(m0.device());
  at::Tensor grad_m0 = at::empty(m0.sizes(), m0.options());
  at::Tensor grad_weights = at::empty(weights.sizes(), weights.options());
  if (grad_m0.numel() == 0) return {grad_m0, grad_weights.zero_()};
  const at::Tensor grad_dense = grad.contiguous();
  const at::Tensor m0_dense = m0.contiguous();
  const at::Tensor weights_dense = weights.contiguous();
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, m0.scalar_type(), "message_passing_bwd_cuda", [&] {
        dispatch_pixels(shape, [&](auto pixels) {
          launch_backward<scalar_t, at::opmath_type<scalar_t>, decltype(pixels)::value>(
              grad_dense, m0_dense, weights_dense, grad_m0, grad_weights, shape);
        });
      });
  return {grad_m0, grad_weights};
}

}  // namespace

TORCH_LIBRARY_IMPL(psis_d2, CUDA, m) {
  m.impl("message_passing", &message_passing_cuda);
  m.impl("message_passing_bwd", &message_passing_bwd_cuda);
}

}  // namespace psis_d2
