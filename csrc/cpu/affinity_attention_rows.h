// Row-wise parts of affinity_attention on one CPU thread: z-scores and softmax. Rows are contiguous
// pixels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "vec.h"

namespace psis_d2 {

// z = (x - mean) * scale over channels.  x and z [C, L], mean and scale [L]
template <typename T>
PSIS_D2_INLINE void normalize_channels(const T* __restrict x, T* __restrict z, T* __restrict mean,
                                       T* __restrict scale, int64_t channels, int64_t pixels,
                                       T factor, T eps) {
  std::fill_n(mean, pixels, T(0));
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < pixels; ++i) mean[i] += x[c * pixels + i];
  }
  for (int64_t i = 0; i < pixels; ++i) mean[i] /= T(channels);
  std::fill_n(scale, pixels, T(0));
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < pixels; ++i) {
      const T centered = x[c * pixels + i] - mean[i];
      z[c * pixels + i] = centered;
      scale[i] += centered * centered;
    }
  }
  for (int64_t i = 0; i < pixels; ++i) {
    scale[i] = T(1) / std::sqrt(scale[i] * (factor / T(channels)) + eps);
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < pixels; ++i) z[c * pixels + i] *= scale[i];
  }
}

// Gradient of normalize_channels: g from dL/dz to dL/dx, in place.  dot: scratch [2, L]
template <typename T>
PSIS_D2_INLINE void normalize_channels_grad(T* __restrict g, const T* __restrict z,
                                            const T* __restrict scale, T* __restrict dot,
                                            int64_t channels, int64_t pixels, T factor) {
  T* __restrict sum = dot + pixels;
  std::fill_n(dot, 2 * pixels, T(0));
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < pixels; ++i) {
      sum[i] += g[c * pixels + i];
      dot[i] += g[c * pixels + i] * z[c * pixels + i];
    }
  }
  for (int64_t i = 0; i < pixels; ++i) {
    sum[i] /= T(channels);
    dot[i] *= factor / T(channels);
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t i = 0; i < pixels; ++i) {
      const int64_t at = c * pixels + i;
      g[at] = scale[i] * (g[at] - sum[i] - z[at] * dot[i]);
    }
  }
}

// s[i] = exp(s[i] - shift) and their sum.
template <typename S, typename T = typename S::Lane>
PSIS_D2_INLINE T exp_row(T* s, int64_t pixels, T shift) {
  using V = typename S::Type;
  constexpr int64_t kLanes = S::kLanes;
  V sums = {};
  int64_t i = 0;
  for (; i + kLanes <= pixels; i += kLanes) {
    const V e = exp<S>(loadu<S>(s + i) - shift);
    sums += e;
    storeu<S>(s + i, e);
  }
  if (i < pixels) {
    const V e = exp<S>(load_first<S>(s + i, pixels - i) - shift);
    sums += first_lanes<S>(pixels - i) ? e : V{};
    store_first<S>(s + i, e, pixels - i);
  }
  T sum = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) sum += sums[lane];
  return sum;
}

// The largest of a row. A loop over scalars would not be vectorized, for the sake of NaN.
template <typename S, typename T = typename S::Lane>
PSIS_D2_INLINE T largest_of_row(const T* s, int64_t pixels) {
  constexpr int64_t kLanes = S::kLanes;
  auto tops = splat<S>(s[0]);
  int64_t i = 0;
  for (; i + kLanes <= pixels; i += kLanes) {
    const auto v = loadu<S>(s + i);
    tops = v > tops ? v : tops;
  }
  T top = s[0];
  for (; i < pixels; ++i) top = s[i] > top ? s[i] : top;
  for (int64_t lane = 0; lane < kLanes; ++lane) top = tops[lane] > top ? tops[lane] : top;
  return top;
}

// Sum over i of a[i] * b[i].
template <typename S, typename T = typename S::Lane>
PSIS_D2_INLINE T dot_row(const T* a, const T* b, int64_t pixels) {
  using V = typename S::Type;
  constexpr int64_t kLanes = S::kLanes;
  V sums = {};
  int64_t i = 0;
  for (; i + kLanes <= pixels; i += kLanes) sums += loadu<S>(a + i) * loadu<S>(b + i);
  T sum = 0;
  for (; i < pixels; ++i) sum += a[i] * b[i];
  for (int64_t lane = 0; lane < kLanes; ++lane) sum += sums[lane];
  return sum;
}

// Rows of logits s [rows, L] to rows of their softmax, in place.
//   foreground [L]; sums [rows], the softmax's sum over the foreground
//   largest, inverse_sums [rows]: see AffinityStat
template <typename S, typename T = typename S::Lane>
PSIS_D2_INLINE void softmax_rows(T* s, const T* foreground, T* sums, T* largest, T* inverse_sums,
                                 int64_t rows, int64_t pixels) {
  for (int64_t r = 0; r < rows; ++r, s += pixels) {
    const T top = largest_of_row<S>(s, pixels);
    const T inverse = T(1) / exp_row<S>(s, pixels, top);
    for (int64_t i = 0; i < pixels; ++i) s[i] *= inverse;
    sums[r] = dot_row<S>(s, foreground, pixels);
    largest[r] = top;
    inverse_sums[r] = inverse;
  }
}

// Rows of logits s to the softmax, and its gradient grad [rows, L] (without the part that comes
// from the sums) to the gradient of the logits, both in place.
//   foreground [L], grad_sums, largest, inverse_sums [rows]; grad_foreground [L] is added to
template <typename S, typename T = typename S::Lane>
PSIS_D2_INLINE void softmax_rows_grad(T* __restrict s, T* __restrict grad,
                                      const T* __restrict foreground, const T* grad_sums,
                                      const T* largest, const T* inverse_sums,
                                      T* __restrict grad_foreground, int64_t rows, int64_t pixels) {
  for (int64_t r = 0; r < rows; ++r, s += pixels, grad += pixels) {
    exp_row<S>(s, pixels, largest[r]);
    const T grad_sum = grad_sums[r], inverse = inverse_sums[r];
    for (int64_t i = 0; i < pixels; ++i) {
      s[i] *= inverse;
      grad[i] += grad_sum * foreground[i];
      grad_foreground[i] += grad_sum * s[i];
    }
    const T dot = dot_row<S>(s, grad, pixels);
    for (int64_t i = 0; i < pixels; ++i) grad[i] = s[i] * (grad[i] - dot);
  }
}

}  // namespace psis_d2
