// Autograd of shape_prior_blend: the inputs are all that backward keeps. Boxes and frames are
// constants.
#include <torch/library.h>

#include <optional>
#include <string>
#include <tuple>

#include "autograd.h"

namespace psis_d2 {
namespace {

constexpr const char* kOp = "shape_prior_blend";

using Classes = std::optional<at::Tensor>;
using Forward = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                           const at::Tensor&, int64_t, int64_t, const Classes&, double);
using Backward = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&,
                                                    const at::Tensor&, const at::Tensor&,
                                                    const at::Tensor&, const Classes&, double,
                                                    bool);

struct ShapePriorBlendBackward : torch::autograd::Node {
  SavedVariable logits, priors, boxes, frames, classes;
  bool has_classes = false;
  double sample_offset = 0.5;

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined()) return variable_list(2);
    static const auto op = find_op<Backward>("psis_d2::shape_prior_blend_bwd");
    const bool need_priors = task_should_compute_output(1);
    auto [grad_logits, grad_priors] =
        op.call(grads[0], logits.unpack(), priors.unpack(), boxes.unpack(), frames.unpack(),
                has_classes ? Classes(classes.unpack()) : std::nullopt, sample_offset, need_priors);
    return {grad_logits, need_priors ? grad_priors : at::Tensor()};
  }
  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* saved : {&logits, &priors, &boxes, &frames, &classes}) saved->reset_data();
  }
  std::string name() const override { return "ShapePriorBlendBackward"; }
};

at::Tensor forward(c10::DispatchKeySet keys, const at::Tensor& logits, const at::Tensor& priors,
                   const at::Tensor& boxes, const at::Tensor& frames, int64_t height, int64_t width,
                   const Classes& classes, double sample_offset) {
  static const auto op = find_op<Forward>("psis_d2::shape_prior_blend");
  refuse_tangents(kOp, logits, priors, boxes, frames);
  std::shared_ptr<ShapePriorBlendBackward> node;
  if (needs_node(logits, priors)) {
    node = make_node<ShapePriorBlendBackward>(logits, priors);
    node->logits = SavedVariable(logits, false);
    node->priors = SavedVariable(priors, false);
    node->boxes = SavedVariable(boxes, false);
    node->frames = SavedVariable(frames, false);
    node->has_classes = classes.has_value();
    if (classes.has_value()) node->classes = SavedVariable(*classes, false);
    node->sample_offset = sample_offset;
  }
  at::Tensor out = below_autograd([&] {
    return op.redispatch(keys & c10::after_autograd_keyset, logits, priors, boxes, frames, height,
                         width, classes, sample_offset);
  });
  if (node) torch::autograd::set_history(out, node);
  return out;
}

std::tuple<at::Tensor, at::Tensor> backward(c10::DispatchKeySet keys, const at::Tensor& grad,
                                            const at::Tensor& logits, const at::Tensor& priors,
                                            const at::Tensor& boxes, const at::Tensor& frames,
                                            const Classes& classes, double sample_offset,
                                            bool priors_need_grad) {
  static const auto op = find_op<Backward>("psis_d2::shape_prior_blend_bwd");
  refuse_tangents(kOp, grad, logits, priors, boxes, frames);
  auto grads = below_autograd([&] {
    return op.redispatch(keys & c10::after_autograd_keyset, grad, logits, priors, boxes, frames,
                         classes, sample_offset, priors_need_grad);
  });
  if (needs_node(grad, logits, priors)) {
    const auto node = no_second_derivative(kOp, grad, logits, priors);
    torch::autograd::set_history(std::get<0>(grads), node);
    torch::autograd::set_history(std::get<1>(grads), node);
  }
  return grads;
}

}  // namespace

TORCH_LIBRARY_IMPL(psis_d2, Autograd, m) {
  m.impl("shape_prior_blend", &forward);
  m.impl("shape_prior_blend_bwd", &backward);
}

}  // namespace psis_d2
