// Blend of shape priors and its placement: what the backends share.
//
// Shape legend: N boxes, K priors, G groups of priors (classes; 1 if all boxes share them),
// P x P prior, H x W output grid.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace psis_d2 {

constexpr int kMaxCudaPriorSide = 128;  // largest P of the CUDA kernels
constexpr int kMaxCudaGridSide = 128;   // largest H or W of the CUDA backward kernel

struct ShapePriorBlendShape {
  int64_t boxes;   // N
  int64_t groups;  // G
  int64_t priors;  // K
  int64_t side;    // P
  int64_t height;  // H
  int64_t width;   // W

  int64_t prior_pixels() const { return side * side; }
  int64_t pixels() const { return height * width; }
};

// Checks the arguments of the forward op; raises one sentence if they do not fit.
//   logits  [N, K]
//   priors  [K, P, P], or [G, K, P, P] with classes
//   boxes   [N, 4], frames [N, 4]: x0, y0, x1, y1
//   classes int64 [N]
ShapePriorBlendShape check_shape_prior_blend(const at::Tensor& logits, const at::Tensor& priors,
                                             const at::Tensor& boxes, const at::Tensor& frames,
                                             int64_t height, int64_t width,
                                             const std::optional<at::Tensor>& classes);

// The same for the backward op.  grad [N, H, W]
ShapePriorBlendShape check_shape_prior_blend_bwd(const at::Tensor& grad, const at::Tensor& logits,
                                                 const at::Tensor& priors, const at::Tensor& boxes,
                                                 const at::Tensor& frames,
                                                 const std::optional<at::Tensor>& classes);

}  // namespace psis_d2
