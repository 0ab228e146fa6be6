// CPU kernels of affinity_attention: threads over regions. Affinities exist for one block of rows
// at a time; products are PyTorch's library's, the rest is in affinity_attention_rows.h.
#include "../affinity_attention.h"

#include <ATen/AccumulateType.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "affinity_attention_rows.h"

namespace psis_d2 {
namespace {

constexpr int64_t kBlockRows = 64;
using Double = Vec<double, 16>;

// Function multiversioning does not take templates. float64 serves gradient checks: one version.
PSIS_D2_CLONES void normalize(const float* x, float* z, float* mean, float* scale, int64_t channels,
                              int64_t pixels, float factor, float eps) {
  normalize_channels(x, z, mean, scale, channels, pixels, factor, eps);
}

void normalize(const double* x, double* z, double* mean, double* scale, int64_t channels,
               int64_t pixels, double factor, double eps) {
  normalize_channels(x, z, mean, scale, channels, pixels, factor, eps);
}

PSIS_D2_CLONES void normalize_grad(float* g, const float* z, const float* scale, float* dot,
                                   int64_t channels, int64_t pixels, float factor) {
  normalize_channels_grad(g, z, scale, dot, channels, pixels, factor);
}

void normalize_grad(double* g, const double* z, const double* scale, double* dot, int64_t channels,
                    int64_t pixels, double factor) {
  normalize_channels_grad(g, z, scale, dot, channels, pixels, factor);
}

#define DEFINE_VERSION(TARGET, BYTES)                                                              \
  TARGET void softmax(float* s, const float* foreground, float* sums, float* largest,              \
                      float* inverse_sums, int64_t rows, int64_t pixels) {                         \
    softmax_rows<Vec<float, BYTES>>(s, foreground, sums, largest, inverse_sums, rows, pixels);     \
  }                                                                                                \
  TARGET void softmax_grad(float* s, float* grad, const float* foreground, const float* grad_sums, \
                           const float* largest, const float* inverse_sums,                        \
                           float* grad_foreground, int64_t rows, int64_t pixels) {                 \
    softmax_rows_grad<Vec<float, BYTES>>(s, grad, foreground, grad_sums, largest, inverse_sums,    \
                                         grad_foreground, rows, pixels);                           \
  }
PSIS_D2_FOR_EACH_TARGET(DEFINE_VERSION)
#undef DEFINE_VERSION

void softmax(double* s, const double* foreground, double* sums, double* largest,
             double* inverse_sums, int64_t rows, int64_t pixels) {
  softmax_rows<Double>(s, foreground, sums, largest, inverse_sums, rows, pixels);
}

void softmax_grad(double* s, double* grad, const double* foreground, const double* grad_sums,
                  const double* largest, const double* inverse_sums, double* grad_foreground,
                  int64_t rows, int64_t pixels) {
  softmax_rows_grad<Double>(s, grad, foreground, grad_sums, largest, inverse_sums, grad_foreground,
                            rows, pixels);
}

// PyTorch's products called from a kernel, in whichever thread: no autograd, nothing lowered.
struct PlainProducts {
  at::AutoDispatchBelowAutograd no_autograd;
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
};

at::Tensor dense(const at::Tensor& tensor, at::ScalarType dtype, at::IntArrayRef sizes) {
  return tensor.to(dtype).contiguous().view(sizes);
}

template <typename T>
T* data(const at::Tensor& tensor) {
  return tensor.mutable_data_ptr<T>();
}

// One region of the forward op.
//   theta, phi [C, L], value [G, L], foreground [L]; attended [G, L], sums [L], stats [5, L]
template <typename T>
void forward_region(const at::Tensor& theta, const at::Tensor& phi, const at::Tensor& value,
                    const at::Tensor& foreground, at::Tensor attended, const at::Tensor& sums,
                    const at::Tensor& stats, T scale, T eps, T factor) {
  const int64_t channels = theta.size(0), pixels = theta.size(1);
  const at::Tensor queries = at::empty_like(theta), keys = at::empty_like(phi);
  const at::Tensor block = at::empty({std::min(kBlockRows, pixels), pixels}, theta.options());
  T* stat = data<T>(stats);
  normalize(data<T>(theta), data<T>(queries), stat + kThetaMean * pixels,
            stat + kThetaScale * pixels, channels, pixels, factor, eps);
  normalize(data<T>(phi), data<T>(keys), stat + kPhiMean * pixels, stat + kPhiScale * pixels,
            channels, pixels, factor, eps);
  for (int64_t first = 0; first < pixels; first += kBlockRows) {
    const int64_t rows = std::min(kBlockRows, pixels - first);
    at::Tensor s = block.narrow(0, 0, rows);
    at::addmm_out(s, s, queries.narrow(1, first, rows).t(), keys, 0, scale);
    softmax(data<T>(s), data<T>(foreground), data<T>(sums) + first,
            stat + kLargest * pixels + first, stat + kInverseSum * pixels + first, rows, pixels);
    at::Tensor out = attended.narrow(1, first, rows);
    at::mm_out(out, value, s.t());
  }
}

// One region of the backward op; arguments as above, gradients of the shape of what they belong to.
template <typename T>
void backward_region(const at::Tensor& grad_attended, const at::Tensor& grad_sums,
                     const at::Tensor& theta, const at::Tensor& phi, const at::Tensor& value,
                     const at::Tensor& foreground, const at::Tensor& stats, at::Tensor grad_theta,
                     at::Tensor grad_phi, at::Tensor grad_value, const at::Tensor& grad_foreground,
                     T scale, T factor) {
  const int64_t channels = theta.size(0), pixels = theta.size(1);
  const at::Tensor queries = at::empty_like(theta), keys = at::empty_like(phi);
  const int64_t block_rows = std::min(kBlockRows, pixels);
  const at::Tensor block = at::empty({2, block_rows, pixels}, theta.options());
  const at::Tensor scratch = at::empty({2, pixels}, theta.options());
  const T* stat = data<T>(stats);
  const auto restore = [&](const at::Tensor& x, const at::Tensor& z, int mean, int deviation) {
    const T *from = data<T>(x), *center = stat + mean * pixels, *by = stat + deviation * pixels;
    T* to = data<T>(z);
    for (int64_t c = 0; c < channels; ++c, from += pixels, to += pixels) {
      for (int64_t i = 0; i < pixels; ++i) to[i] = (from[i] - center[i]) * by[i];
    }
  };
  restore(theta, queries, kThetaMean, kThetaScale);
  restore(phi, keys, kPhiMean, kPhiScale);
  for (int64_t first = 0; first < pixels; first += kBlockRows) {
    const int64_t rows = std::min(kBlockRows, pixels - first);
    at::Tensor s = block[0].narrow(0, 0, rows), grad = block[1].narrow(0, 0, rows);
    const at::Tensor own_queries = queries.narrow(1, first, rows);
    const at::Tensor own_grad = grad_attended.narrow(1, first, rows);
    at::addmm_out(s, s, own_queries.t(), keys, 0, scale);
    at::mm_out(grad, own_grad.t(), value);
    softmax_grad(data<T>(s), data<T>(grad), data<T>(foreground), data<T>(grad_sums) + first,
                 stat + kLargest * pixels + first, stat + kInverseSum * pixels + first,
                 data<T>(grad_foreground), rows, pixels);
    const T keep = first == 0 ? T(0) : T(1);  // the sums' first block overwrites
    at::Tensor own = grad_theta.narrow(1, first, rows);
    at::addmm_out(own, own, keys, grad.t(), 0, scale);
    at::addmm_out(grad_phi, grad_phi, own_queries, grad, keep, scale);
    at::addmm_out(grad_value, grad_value, own_grad, s, keep, 1);
  }
  normalize_grad(data<T>(grad_theta), data<T>(queries), stat + kThetaScale * pixels,
                 data<T>(scratch), channels, pixels, factor);
  normalize_grad(data<T>(grad_phi), data<T>(keys), stat + kPhiScale * pixels, data<T>(scratch),
                 channels, pixels, factor);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> affinity_attention_cpu(
    const at::Tensor& theta, const at::Tensor& phi, const at::Tensor& value,
    const at::Tensor& foreground, double scale, double eps, bool unbiased) {
  const AffinityAttentionShape shape =
      check_affinity_attention(theta, phi, value, foreground, eps, unbiased);
  const auto [n, c, g, pixels] = shape;
  const at::ScalarType dtype = at::toAccumulateType(theta.scalar_type(), /*is_cuda=*/true);
  const at::Tensor x = dense(theta, dtype, {n, c, pixels}), y = dense(phi, dtype, {n, c, pixels});
  const at::Tensor v = dense(value, dtype, {n, g, pixels});
  const at::Tensor m = dense(foreground, dtype, {n, pixels});
  const at::Tensor attended = at::empty(v.sizes(), v.options());
  const at::Tensor sums = at::empty(m.sizes(), m.options());
  const at::Tensor stats = at::empty({n, kAffinityStats, pixels}, m.options());
  AT_DISPATCH_FLOATING_TYPES(dtype, "affinity_attention_cpu", [&] {
    at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
      const PlainProducts plain;
      for (int64_t i = begin; i < end; ++i) {
        forward_region<scalar_t>(x[i], y[i], v[i], m[i], attended[i], sums[i], stats[i], scale, eps,
                                 variance_factor(shape.channels, unbiased));
      }
    });
  });
  return {attended.to(theta.scalar_type()).view(value.sizes()), sums.to(theta.scalar_type()),
          stats};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> affinity_attention_bwd_cpu(
    const at::Tensor& grad_attended, const at::Tensor& grad_sums, const at::Tensor& theta,
    const at::Tensor& phi, const at::Tensor& value, const at::Tensor& foreground,
    const at::Tensor& stats, double scale, bool unbiased) {
  const AffinityAttentionShape shape = check_affinity_attention_bwd(
      grad_attended, grad_sums, theta, phi, value, foreground, stats, unbiased);
  const auto [n, c, g, pixels] = shape;
  const at::ScalarType dtype = stats.scalar_type();
  const at::Tensor x = dense(theta, dtype, {n, c, pixels}), y = dense(phi, dtype, {n, c, pixels});
  const at::Tensor v = dense(value, dtype, {n, g, pixels});
  const at::Tensor m = dense(foreground, dtype, {n, pixels});
  const at::Tensor go = dense(grad_attended, dtype, {n, g, pixels});
  const at::Tensor gs = dense(grad_sums, dtype, {n, pixels});
  const at::Tensor stats_dense = stats.contiguous();
  const at::Tensor gx = at::empty(x.sizes(), x.options()), gy = at::empty(y.sizes(), y.options());
  const at::Tensor gv = at::empty(v.sizes(), v.options());
  const at::Tensor gm = at::zeros(m.sizes(), m.options());
  AT_DISPATCH_FLOATING_TYPES(dtype, "affinity_attention_bwd_cpu", [&] {
    at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
      const PlainProducts plain;
      for (int64_t i = begin; i < end; ++i) {
        backward_region<scalar_t>(go[i], gs[i], x[i], y[i], v[i], m[i], stats_dense[i], gx[i],
                                  gy[i], gv[i], gm[i], scale,
                                  variance_factor(shape.channels, unbiased));
      }
    });
  });
  const at::ScalarType out = theta.scalar_type();
  return {gx.to(out).view(theta.sizes()), gy.to(out).view(phi.sizes()),
          gv.to(out).view(value.sizes()), gm.to(out).view(foreground.sizes())};
}

}  // namespace

TORCH_LIBRARY_IMPL(psis_d2, CPU, m) {
  m.impl("affinity_attention", &affinity_attention_cpu);
  m.impl("affinity_attention_bwd", &affinity_attention_bwd_cpu);
}

}  // namespace psis_d2
