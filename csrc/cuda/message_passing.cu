// CUDA backend of message_passing: checks, allocation, launches.
#include "../message_passing.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <type_traits>

#include "launch.cuh"
#include "message_passing_generic.cuh"
#include "message_passing_tiles.cuh"

namespace psis_d2 {
namespace {

static_assert(kKernelTaps == kTaps);
static_assert(static_cast<int>(KernelNorm::kSoftmax) == static_cast<int>(Norm::kSoftmax));
static_assert(static_cast<int>(KernelNorm::kSigmoidSum) == static_cast<int>(Norm::kSigmoidSum));
static_assert(static_cast<int>(KernelNorm::kNone) == static_cast<int>(Norm::kNone));

constexpr const char* kName = "message_passing";
constexpr int64_t kMaxWorkspace = int64_t(256) << 20;  // bytes of planes in global memory

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

struct Inputs {
  const at::Tensor &weights, &m0;
};

struct BackwardTensors {
  const at::Tensor &grad, &weights, &m0;
  at::Tensor &grad_m0, &grad_weights;
};

// ---- 14 x 14 and 28 x 28

template <int kSide, typename scalar_t>
void launch_tile_forward(const Inputs& in, at::Tensor& out, const MapShape& shape) {
  const TileLaunch<kSide> tile{shape};
  const int64_t shared = tile.forward_shared() * static_cast<int64_t>(sizeof(float));
  launch(kName, &message_passing_tile_forward<kSide, scalar_t, float>, tile.blocks(), kTileThreads,
         shared, in.weights.const_data_ptr<scalar_t>(), in.m0.const_data_ptr<scalar_t>(),
         out.mutable_data_ptr<scalar_t>(), shape);
}

template <int kSide, typename scalar_t>
void launch_tile_backward(const BackwardTensors& t, const MapShape& shape) {
  auto* kernel = &message_passing_tile_backward<kSide, scalar_t, float>;
  const TileLaunch<kSide> tile{shape};
  const int64_t shared = tile.backward_shared() * static_cast<int64_t>(sizeof(float));
  launch(kName, kernel, tile.blocks(), kTileThreads, shared, t.grad.const_data_ptr<scalar_t>(),
         t.weights.const_data_ptr<scalar_t>(), t.m0.const_data_ptr<scalar_t>(),
         t.grad_m0.mutable_data_ptr<scalar_t>(), t.grad_weights.mutable_data_ptr<scalar_t>(),
         shape);
}

// ---- any size

// Where the planes of the generic kernels are, and how many blocks have some.
template <typename acc_t>
struct GenericLaunch {
  int threads;
  int64_t shared = 0, blocks;
  at::Tensor planes;  // not defined: in shared memory

  template <typename Kernel>
  GenericLaunch(Kernel* kernel, const MapShape& shape, int count, const at::TensorOptions& options)
      : threads(std::min(kGenericThreads, (shape.pixels() + 31) / 32 * 32)) {
    const int64_t elements = int64_t(count) * Planes(shape).size;
    const int64_t bytes = elements * static_cast<int64_t>(sizeof(acc_t));
    const bool in_shared = bytes <= shared_limit();
    if (in_shared) shared = bytes;
    allow_shared(kName, kernel, shared);
    int per_processor = 0;
    C10_CUDA_CHECK(
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, threads, shared));
    const int64_t processors = device_attribute(cudaDevAttrMultiProcessorCount);
    blocks = std::min(shape.groups, std::max(1, per_processor) * processors);
    if (!in_shared) {
      blocks = std::min(blocks, std::max<int64_t>(1, kMaxWorkspace / bytes));
      planes = at::empty({blocks, elements}, options);
    }
  }
  acc_t* planes_data() const {
    return planes.defined() ? planes.template mutable_data_ptr<acc_t>() : nullptr;
  }
};

template <typename scalar_t, typename acc_t>
void launch_generic_forward(const Inputs& in, at::Tensor& out, const MapShape& shape) {
  auto* kernel = &message_passing_forward<scalar_t, acc_t>;
  const auto options = in.m0.options().dtype(c10::CppTypeToScalarType<acc_t>::value);
  const GenericLaunch<acc_t> plan(kernel, shape, Planes::forward_count(), options);
  launch(kName, kernel, plan.blocks, plan.threads, plan.shared,
         in.weights.const_data_ptr<scalar_t>(), in.m0.const_data_ptr<scalar_t>(),
         out.mutable_data_ptr<scalar_t>(), plan.planes_data(), shape);
}

template <typename scalar_t, typename acc_t>
void launch_generic_backward(const BackwardTensors& t, const MapShape& shape) {
  auto* kernel = &message_passing_backward<scalar_t, acc_t>;
  const auto options = t.m0.options().dtype(c10::CppTypeToScalarType<acc_t>::value);
  const GenericLaunch<acc_t> plan(kernel, shape, Planes::backward_count(shape.steps), options);
  at::Tensor sums;
  acc_t* sums_data = nullptr;
  if (shape.maps > 1) {
    sums = at::empty({plan.blocks, kTaps, shape.pixels()}, options);
    sums_data = sums.mutable_data_ptr<acc_t>();
  }
  launch(kName, kernel, plan.blocks, plan.threads, plan.shared, t.grad.const_data_ptr<scalar_t>(),
         t.weights.const_data_ptr<scalar_t>(), t.m0.const_data_ptr<scalar_t>(),
         t.grad_m0.mutable_data_ptr<scalar_t>(), t.grad_weights.mutable_data_ptr<scalar_t>(),
         plan.planes_data(), sums_data, shape);
}

// ---- which of them

template <typename scalar_t>
void launch_forward(const Inputs& in, at::Tensor& out, const MapShape& shape) {
  using acc_t = at::opmath_type<scalar_t>;
  if constexpr (std::is_same_v<acc_t, float>) {
    const int side = tile_side(shape, false, false, 0);
    if (side == 14) return launch_tile_forward<14, scalar_t>(in, out, shape);
    if (side == 28) return launch_tile_forward<28, scalar_t>(in, out, shape);
  }
  launch_generic_forward<scalar_t, acc_t>(in, out, shape);
}

template <typename scalar_t>
void launch_backward(const BackwardTensors& tensors, const MapShape& shape) {
  using acc_t = at::opmath_type<scalar_t>;
  if constexpr (std::is_same_v<acc_t, float>) {
    const int side = tile_side(shape, false, true, shared_limit());
    if (side == 14) return launch_tile_backward<14, scalar_t>(tensors, shape);
    if (side == 28) return launch_tile_backward<28, scalar_t>(tensors, shape);
  }
  launch_generic_backward<scalar_t, acc_t>(tensors, shape);
}

// Side of the tile kernel that the current device takes for a shape, 0 for the generic one.
int64_t message_passing_tile(int64_t height, int64_t width, int64_t steps, at::ScalarType dtype,
                             bool backward) {
  const MapShape shape{1,
                       1,
                       static_cast<int>(height),
                       static_cast<int>(width),
                       static_cast<int>(steps),
                       KernelNorm::kNone};
  return tile_side(shape, dtype == at::kDouble, backward, shared_limit());
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
      at::kHalf, at::kBFloat16, m0.scalar_type(), "message_passing_cuda",
      [&] { launch_forward<scalar_t>({weights_dense, m0_dense}, out, shape); });
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
        launch_backward<scalar_t>({grad_dense, weights_dense, m0_dense, grad_m0, grad_weights},
                                  shape);
      });
  return {grad_m0, grad_weights};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(psis_d2, m) {
  m.def(
      "message_passing_tile(int height, int width, int steps, ScalarType dtype, bool backward) "
      "-> int",
      &message_passing_tile);
}

TORCH_LIBRARY_IMPL(psis_d2, CUDA, m) {
  m.impl("message_passing", &message_passing_cuda);
  m.impl("message_passing_bwd", &message_passing_bwd_cuda);
}

}  // namespace psis_d2
