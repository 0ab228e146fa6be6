// Attention by pixel affinities with the affinities' sums over a foreground: what the backends
// share.
//
// Shape legend: N regions, C channels that affinities are made of, G channels of the value, H x W
// map, L = H * W pixels.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace psis_d2 {

constexpr int kMaxCudaPixels = 208;  // largest L of the CUDA kernels

// Rows of the statistics that the forward op hands to the backward op.
enum AffinityStat : int {
  kThetaMean = 0,
  kThetaScale = 1,  // 1 / standard deviation
  kPhiMean = 2,
  kPhiScale = 3,
  // Of a row of scores: the largest, and 1 / sum of exp(score - largest). The logarithm of the sum
  // alone would be rounded like the scores, which spoils the gradient where they are large.
  kLargest = 4,
  kInverseSum = 5,
  kAffinityStats = 6
};

struct AffinityAttentionShape {
  int64_t regions;         // N
  int64_t channels;        // C
  int64_t value_channels;  // G
  int64_t pixels;          // L
};

// Checks the arguments of the forward op; raises one sentence if they do not fit.
//   theta, phi [N, C, H, W], value [N, G, H, W], foreground [N, H, W]
AffinityAttentionShape check_affinity_attention(const at::Tensor& theta, const at::Tensor& phi,
                                                const at::Tensor& value,
                                                const at::Tensor& foreground, double eps,
                                                bool unbiased);

// The same for the backward op.
//   grad_attended [N, G, H, W], grad_sums [N, L], stats [N, kAffinityStats, L]
AffinityAttentionShape check_affinity_attention_bwd(const at::Tensor& grad_attended,
                                                    const at::Tensor& grad_sums,
                                                    const at::Tensor& theta, const at::Tensor& phi,
                                                    const at::Tensor& value,
                                                    const at::Tensor& foreground,
                                                    const at::Tensor& stats, bool unbiased);

// What the variance is multiplied with: c / (c - 1) if it is the unbiased one.
inline double variance_factor(int64_t channels, bool unbiased) {
  return unbiased ? static_cast<double>(channels) / static_cast<double>(channels - 1) : 1.0;
}

}  // namespace psis_d2
