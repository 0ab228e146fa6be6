// Location-specific message passing: what the backends share.
//
// Shape legend: N regions, C channels, Wc weight channels (1 or C), H x W map, T steps.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>

namespace psis_d2 {

constexpr int kTaps = 9;          // 3x3 neighborhood, row-major
constexpr double kSumEps = 1e-5;  // of "sigmoid_sum", as released by ShapeProp's authors
constexpr int kMaxCudaSide = 64;  // largest H or W of the CUDA kernel

enum class Norm : int { kSoftmax = 0, kSigmoidSum = 1, kNone = 2 };

struct MessagePassingShape {
  int64_t regions;          // N
  int64_t channels;         // C
  int64_t weight_channels;  // Wc
  int64_t height;           // H
  int64_t width;            // W
  int64_t steps;            // T
  Norm norm;

  int64_t pixels() const { return height * width; }
  // Independent sets of weights, and the maps that each of them moves.
  int64_t groups() const { return regions * weight_channels; }
  int64_t maps_per_group() const { return weight_channels == 1 ? channels : 1; }
};

// Checks the arguments of the forward op; raises one sentence if they do not fit.
//   m0      [N, C, H, W]
//   weights [N, Wc * 9, H, W]
MessagePassingShape check_message_passing(const at::Tensor& m0, const at::Tensor& weights,
                                          int64_t steps, std::string_view norm);

// The same for the backward op.  grad [N, C, H, W]
MessagePassingShape check_message_passing_bwd(const at::Tensor& grad, const at::Tensor& m0,
                                              const at::Tensor& weights, int64_t steps,
                                              std::string_view norm);

}  // namespace psis_d2
