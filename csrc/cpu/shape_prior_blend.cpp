// CPU kernels of shape_prior_blend: threads over boxes. Where all boxes share the priors, blending
// is one matrix product, which PyTorch's library does best.
#include "../shape_prior_blend.h"

#include <ATen/AccumulateType.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/_softmax_backward_data.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "shape_prior_place.h"

namespace psis_d2 {
namespace {

// Function multiversioning does not take templates. float64 serves gradient checks: one version.
PSIS_D2_CLONES void place_box(const float* prior, float* out, const Taps<float>& rows,
                              const Taps<float>& columns, int64_t side, float* row) {
  place(prior, out, rows, columns, side, row);
}

void place_box(const double* prior, double* out, const Taps<double>& rows,
               const Taps<double>& columns, int64_t side, double* row) {
  place(prior, out, rows, columns, side, row);
}

PSIS_D2_CLONES void place_box_grad(const float* grad, float* grad_prior, const Readers<float>& rows,
                                   const Readers<float>& columns, int64_t side, int64_t width,
                                   float* row_grad) {
  place_grad(grad, grad_prior, rows, columns, side, width, row_grad);
}

void place_box_grad(const double* grad, double* grad_prior, const Readers<double>& rows,
                    const Readers<double>& columns, int64_t side, int64_t width, double* row_grad) {
  place_grad(grad, grad_prior, rows, columns, side, width, row_grad);
}

PSIS_D2_CLONES void blend_box(const float* weights, const float* priors, float* out, int64_t count,
                              int64_t pixels) {
  blend(weights, priors, out, count, pixels);
}

void blend_box(const double* weights, const double* priors, double* out, int64_t count,
               int64_t pixels) {
  blend(weights, priors, out, count, pixels);
}

PSIS_D2_CLONES void blend_box_grad(const float* grad, const float* priors, float* out,
                                   int64_t count, int64_t pixels) {
  blend_grad(grad, priors, out, count, pixels);
}

void blend_box_grad(const double* grad, const double* priors, double* out, int64_t count,
                    int64_t pixels) {
  blend_grad(grad, priors, out, count, pixels);
}

// The arguments as the kernels read them: dense, of the dtype that is computed in.
struct Arguments {
  // Autocast would lower the matrix products.
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
  ShapePriorBlendShape shape;
  at::Tensor weights;        // [N, K], softmax of the logits
  at::Tensor priors;         // [G * K, P * P]
  at::Tensor boxes, frames;  // [N, 4]
  at::Tensor classes_dense;  // [N], undefined where all boxes share the priors

  Arguments(const ShapePriorBlendShape& shape, const at::Tensor& logits, const at::Tensor& priors_,
            const at::Tensor& boxes_, const at::Tensor& frames_,
            const std::optional<at::Tensor>& classes_)
      : shape(shape) {
    const at::ScalarType dtype = at::toAccumulateType(logits.scalar_type(), /*is_cuda=*/true);
    weights = at::softmax(logits.to(dtype), 1).contiguous();
    priors = priors_.to(dtype).contiguous().view({-1, shape.prior_pixels()});
    boxes = boxes_.to(dtype).contiguous();
    frames = frames_.to(dtype).contiguous();
    if (!classes_.has_value()) return;
    classes_dense = classes_->contiguous();
    for (int64_t n = 0; n < shape.boxes; ++n) {
      TORCH_CHECK_INDEX(group(n) >= 0 && group(n) < shape.groups,
                        "shape_prior_blend: classes must be from 0 to ", shape.groups - 1, ", not ",
                        group(n), ".");
    }
  }

  bool shared() const { return !classes_dense.defined(); }
  // Row of the priors that box n uses.
  int64_t group(int64_t n) const {
    return shared() ? 0 : classes_dense.const_data_ptr<int64_t>()[n];
  }

  at::Tensor empty(at::IntArrayRef sizes) const { return at::empty(sizes, weights.options()); }

  // Where the priors of box n begin.
  template <typename T>
  const T* priors_of(int64_t n) const {
    return priors.const_data_ptr<T>() + group(n) * shape.priors * shape.prior_pixels();
  }

  // Axis 0 is x, 1 is y.
  template <typename T>
  void set_taps(int64_t n, int axis, double sample_offset, Taps<T>& taps) const {
    const T* box = boxes.const_data_ptr<T>() + n * 4 + axis;
    const T* frame = frames.const_data_ptr<T>() + n * 4 + axis;
    taps.set(box[0], box[2], frame[0], frame[2], shape.side, static_cast<T>(sample_offset));
  }
};

// Boxes per task: enough that a task outweighs its start.
int64_t grain_size(const ShapePriorBlendShape& shape) {
  return std::max<int64_t>(1, 32768 / (shape.pixels() + shape.prior_pixels()));
}

template <typename T>
at::Tensor blend_all(const Arguments& a) {
  const ShapePriorBlendShape& shape = a.shape;
  if (a.shared()) return at::mm(a.weights, a.priors);
  at::Tensor blended = a.empty({shape.boxes, shape.prior_pixels()});
  const T* weights = a.weights.const_data_ptr<T>();
  T* out = blended.mutable_data_ptr<T>();
  at::parallel_for(0, shape.boxes, grain_size(shape), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      blend_box(weights + n * shape.priors, a.priors_of<T>(n), out + n * shape.prior_pixels(),
                shape.priors, shape.prior_pixels());
    }
  });
  return blended;
}

template <typename T>
at::Tensor place_all(const Arguments& a, const at::Tensor& blended, double sample_offset) {
  const ShapePriorBlendShape& shape = a.shape;
  at::Tensor out = a.empty({shape.boxes, shape.height, shape.width});
  const T* source = blended.const_data_ptr<T>();
  T* target = out.mutable_data_ptr<T>();
  at::parallel_for(0, shape.boxes, grain_size(shape), [&](int64_t begin, int64_t end) {
    Taps<T> columns(shape.width), rows(shape.height);
    std::vector<T> row(shape.side + 2);
    for (int64_t n = begin; n < end; ++n) {
      a.set_taps(n, 0, sample_offset, columns);
      a.set_taps(n, 1, sample_offset, rows);
      place_box(source + n * shape.prior_pixels(), target + n * shape.pixels(), rows, columns,
                shape.side, row.data());
    }
  });
  return out;
}

// Gradient of the blended priors [N, P * P].
template <typename T>
at::Tensor place_all_grad(const Arguments& a, const at::Tensor& grad, double sample_offset) {
  const ShapePriorBlendShape& shape = a.shape;
  at::Tensor grad_blended = a.empty({shape.boxes, shape.prior_pixels()});
  const T* source = grad.const_data_ptr<T>();
  T* target = grad_blended.mutable_data_ptr<T>();
  at::parallel_for(0, shape.boxes, grain_size(shape), [&](int64_t begin, int64_t end) {
    Taps<T> columns(shape.width), rows(shape.height);
    Readers<T> of_columns, of_rows;
    std::vector<T> row(shape.width);
    for (int64_t n = begin; n < end; ++n) {
      a.set_taps(n, 0, sample_offset, columns);
      a.set_taps(n, 1, sample_offset, rows);
      of_columns.set(columns, shape.side);
      of_rows.set(rows, shape.side);
      place_box_grad(source + n * shape.pixels(), target + n * shape.prior_pixels(), of_rows,
                     of_columns, shape.side, shape.width, row.data());
    }
  });
  return grad_blended;
}

template <typename T>
at::Tensor weight_grads(const Arguments& a, const at::Tensor& grad_blended) {
  const ShapePriorBlendShape& shape = a.shape;
  if (a.shared()) return at::mm(grad_blended, a.priors.t());
  at::Tensor grads = a.empty({shape.boxes, shape.priors});
  const T* source = grad_blended.const_data_ptr<T>();
  T* target = grads.mutable_data_ptr<T>();
  at::parallel_for(0, shape.boxes, grain_size(shape), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      blend_box_grad(source + n * shape.prior_pixels(), a.priors_of<T>(n),
                     target + n * shape.priors, shape.priors, shape.prior_pixels());
    }
  });
  return grads;
}

// Gradient of the priors [G * K, P * P]. A thread owns whole classes, so that sums have one order.
template <typename T>
at::Tensor prior_grads(const Arguments& a, const at::Tensor& grad_blended) {
  const ShapePriorBlendShape& shape = a.shape;
  if (a.shared()) return at::mm(a.weights.t(), grad_blended);
  at::Tensor grads = at::zeros(a.priors.sizes(), a.priors.options());
  const T* weights = a.weights.const_data_ptr<T>();
  const T* source = grad_blended.const_data_ptr<T>();
  T* target = grads.mutable_data_ptr<T>();
  const int64_t pixels = shape.prior_pixels();
  at::parallel_for(0, shape.groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = 0; n < shape.boxes; ++n) {
      const int64_t group = a.group(n);
      if (group < begin || group >= end) continue;
      for (int64_t k = 0; k < shape.priors; ++k) {
        const T w = weights[n * shape.priors + k];
        T* sum = target + (group * shape.priors + k) * pixels;
        for (int64_t p = 0; p < pixels; ++p) sum[p] += w * source[n * pixels + p];
      }
    }
  });
  return grads;
}

at::Tensor shape_prior_blend_cpu(const at::Tensor& logits, const at::Tensor& priors,
                                 const at::Tensor& boxes, const at::Tensor& frames, int64_t height,
                                 int64_t width, const std::optional<at::Tensor>& classes,
                                 double sample_offset) {
  const Arguments a(check_shape_prior_blend(logits, priors, boxes, frames, height, width, classes),
                    logits, priors, boxes, frames, classes);
  at::Tensor out;
  AT_DISPATCH_FLOATING_TYPES(a.weights.scalar_type(), "shape_prior_blend_cpu", [&] {
    out = place_all<scalar_t>(a, blend_all<scalar_t>(a), sample_offset);
  });
  return out.to(logits.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> shape_prior_blend_bwd_cpu(
    const at::Tensor& grad, const at::Tensor& logits, const at::Tensor& priors,
    const at::Tensor& boxes, const at::Tensor& frames, const std::optional<at::Tensor>& classes,
    double sample_offset, bool priors_need_grad) {
  const Arguments a(check_shape_prior_blend_bwd(grad, logits, priors, boxes, frames, classes),
                    logits, priors, boxes, frames, classes);
  const at::ScalarType dtype = a.weights.scalar_type();
  const at::Tensor grad_dense = grad.to(dtype).contiguous();
  at::Tensor grad_logits;
  at::Tensor grad_priors = at::empty({0}, priors.options());
  AT_DISPATCH_FLOATING_TYPES(dtype, "shape_prior_blend_bwd_cpu", [&] {
    const at::Tensor grad_blended = place_all_grad<scalar_t>(a, grad_dense, sample_offset);
    grad_logits =
        at::_softmax_backward_data(weight_grads<scalar_t>(a, grad_blended), a.weights, 1, dtype);
    if (priors_need_grad) {
      grad_priors =
          prior_grads<scalar_t>(a, grad_blended).view(priors.sizes()).to(priors.scalar_type());
    }
  });
  return {grad_logits.to(logits.scalar_type()), grad_priors};
}

}  // namespace

TORCH_LIBRARY_IMPL(psis_d2, CPU, m) {
  m.impl("shape_prior_blend", &shape_prior_blend_cpu);
  m.impl("shape_prior_blend_bwd", &shape_prior_blend_bwd_cpu);
}

}  // namespace psis_d2
