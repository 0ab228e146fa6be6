// CPU kernels of message_passing: threads over sets of weights, vectors along rows.
#include "../message_passing.h"

#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <new>
#include <tuple>
#include <vector>

#include "message_passing_map.h"

namespace psis_d2 {
namespace {

// Function multiversioning does not take templates. float64 serves gradient checks: one version.
using Double = Vec<double, 16>;

#define DEFINE_VERSION(TARGET, BYTES)                                                              \
  TARGET int64_t vector_lanes(float) { return Vec<float, BYTES>::kLanes; }                         \
  TARGET void forward(Norm norm, const float* weights, const float* m0, float* out, int64_t maps,  \
                      int64_t steps, const RowLayout& layout, float* scratch) {                    \
    forward_group<Vec<float, BYTES>>(norm, weights, m0, out, maps, steps, layout, scratch);        \
  }                                                                                                \
  TARGET void backward(Norm norm, const float* grad, const float* weights, const float* m0,        \
                       float* grad_m0, float* grad_weights, int64_t maps, int64_t steps,           \
                       const RowLayout& layout, float* scratch) {                                  \
    backward_group<Vec<float, BYTES>>(norm, grad, weights, m0, grad_m0, grad_weights, maps, steps, \
                                      layout, scratch);                                            \
  }
PSIS_D2_FOR_EACH_TARGET(DEFINE_VERSION)
#undef DEFINE_VERSION

int64_t vector_lanes(double) { return Double::kLanes; }

void forward(Norm norm, const double* weights, const double* m0, double* out, int64_t maps,
             int64_t steps, const RowLayout& layout, double* scratch) {
  forward_group<Double>(norm, weights, m0, out, maps, steps, layout, scratch);
}

void backward(Norm norm, const double* grad, const double* weights, const double* m0,
              double* grad_m0, double* grad_weights, int64_t maps, int64_t steps,
              const RowLayout& layout, double* scratch) {
  backward_group<Double>(norm, grad, weights, m0, grad_m0, grad_weights, maps, steps, layout,
                         scratch);
}

// `size` zeros, aligned to a vector.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t size)
      : data_(static_cast<T*>(::operator new(size * sizeof(T), kAlignment))) {
    std::fill_n(data_.get(), size, T(0));
  }
  T* get() { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(T* p) const { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<T, Free> data_;
};

// Lets kernels in opmath_t read and write arrays of scalar_t: directly if the types agree, else
// through a converted copy.
template <typename scalar_t, typename opmath_t>
class Converted {
 public:
  explicit Converted(int64_t size) : copy_(kSame ? 0 : size), size_(size) {}
  const opmath_t* read(const scalar_t* source) {
    if constexpr (kSame) {
      return source;
    } else {
      std::copy_n(source, size_, copy_.data());
      return copy_.data();
    }
  }
  opmath_t* target(scalar_t* destination) {
    if constexpr (kSame) {
      return destination;
    } else {
      return copy_.data();
    }
  }
  void write(scalar_t* destination) {
    if constexpr (!kSame) std::copy_n(copy_.data(), size_, destination);
  }

 private:
  static constexpr bool kSame = std::is_same_v<scalar_t, opmath_t>;
  std::vector<opmath_t> copy_;
  int64_t size_;
};

// Sets of weights per task: enough pixel steps that a task outweighs its start.
int64_t grain_size(const MessagePassingShape& shape) {
  const int64_t work = shape.maps_per_group() * shape.pixels() * (shape.steps + 10);
  return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, work));
}

at::Tensor message_passing_cpu(const at::Tensor& m0, const at::Tensor& weights, int64_t steps,
                               c10::string_view norm) {
  const MessagePassingShape shape = check_message_passing(m0, weights, steps, norm);
  const at::Tensor m0_dense = m0.contiguous();
  const at::Tensor weights_dense = weights.contiguous();
  at::Tensor out = at::empty(m0.sizes(), m0.options());
  if (out.numel() == 0) return out;

  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, m0.scalar_type(), "message_passing_cpu", [&] {
        using opmath_t = at::opmath_type<scalar_t>;
        const RowLayout layout(shape.height, shape.width, vector_lanes(opmath_t()));
        const int64_t map_size = shape.maps_per_group() * shape.pixels();
        const int64_t weight_size = kTaps * shape.pixels();
        const scalar_t* m0_data = m0_dense.const_data_ptr<scalar_t>();
        const scalar_t* weight_data = weights_dense.const_data_ptr<scalar_t>();
        scalar_t* out_data = out.mutable_data_ptr<scalar_t>();
        at::parallel_for(0, shape.groups(), grain_size(shape), [&](int64_t begin, int64_t end) {
          Scratch<opmath_t> scratch(layout.forward_scratch());
          Converted<scalar_t, opmath_t> w(weight_size), m(map_size), o(map_size);
          for (int64_t i = begin; i < end; ++i) {
            scalar_t* target = out_data + i * map_size;
            forward(shape.norm, w.read(weight_data + i * weight_size),
                    m.read(m0_data + i * map_size), o.target(target), shape.maps_per_group(),
                    shape.steps, layout, scratch.get());
            o.write(target);
          }
        });
      });
  return out;
}

std::tuple<at::Tensor, at::Tensor> message_passing_bwd_cpu(const at::Tensor& grad,
                                                           const at::Tensor& m0,
                                                           const at::Tensor& weights, int64_t steps,
                                                           c10::string_view norm) {
  const MessagePassingShape shape = check_message_passing_bwd(grad, m0, weights, steps, norm);
  const at::Tensor grad_dense = grad.contiguous();
  const at::Tensor m0_dense = m0.contiguous();
  const at::Tensor weights_dense = weights.contiguous();
  at::Tensor grad_m0 = at::empty(m0.sizes(), m0.options());
  at::Tensor grad_weights = at::empty(weights.sizes(), weights.options());
  if (grad_m0.numel() == 0) return {grad_m0, grad_weights.zero_()};

  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, m0.scalar_type(), "message_passing_bwd_cpu", [&] {
        using opmath_t = at::opmath_type<scalar_t>;
        const RowLayout layout(shape.height, shape.width, vector_lanes(opmath_t()));
        const int64_t map_size = shape.maps_per_group() * shape.pixels();
        const int64_t weight_size = kTaps * shape.pixels();
        const scalar_t* grad_data = grad_dense.const_data_ptr<scalar_t>();
        const scalar_t* m0_data = m0_dense.const_data_ptr<scalar_t>();
        const scalar_t* weight_data = weights_dense.const_data_ptr<scalar_t>();
        scalar_t* grad_m0_data = grad_m0.mutable_data_ptr<scalar_t>();
        scalar_t* grad_weight_data = grad_weights.mutable_data_ptr<scalar_t>();
        at::parallel_for(0, shape.groups(), grain_size(shape), [&](int64_t begin, int64_t end) {
          Scratch<opmath_t> scratch(layout.backward_scratch(shape.steps));
          Converted<scalar_t, opmath_t> g(map_size), w(weight_size), m(map_size);
          Converted<scalar_t, opmath_t> dm(map_size), dw(weight_size);
          for (int64_t i = begin; i < end; ++i) {
            scalar_t* dm_target = grad_m0_data + i * map_size;
            scalar_t* dw_target = grad_weight_data + i * weight_size;
            backward(shape.norm, g.read(grad_data + i * map_size),
                     w.read(weight_data + i * weight_size), m.read(m0_data + i * map_size),
                     dm.target(dm_target), dw.target(dw_target), shape.maps_per_group(),
                     shape.steps, layout, scratch.get());
            dm.write(dm_target);
            dw.write(dw_target);
          }
        });
      });
  return {grad_m0, grad_weights};
}

}  // namespace

TORCH_LIBRARY_IMPL(psis_d2, CPU, m) {
  m.impl("message_passing", &message_passing_cpu);
  m.impl("message_passing_bwd", &message_passing_bwd_cpu);
}

}  // namespace psis_d2
