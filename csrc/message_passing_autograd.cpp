// Autograd of message_passing: the inputs are all that backward keeps.
#include <torch/library.h>

#include <string>
#include <tuple>

#include "autograd.h"

namespace psis_d2 {
namespace {

constexpr const char* kOp = "message_passing";

using Forward = at::Tensor(const at::Tensor&, const at::Tensor&, int64_t, c10::string_view);
using Backward = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&,
                                                    const at::Tensor&, int64_t, c10::string_view);

struct MessagePassingBackward : torch::autograd::Node {
  SavedVariable m0, weights;
  int64_t steps = 0;
  std::string norm;

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined()) return {at::Tensor(), at::Tensor()};
    static const auto op = find_op<Backward>("psis_d2::message_passing_bwd");
    auto [grad_m0, grad_weights] = op.call(grads[0], m0.unpack(), weights.unpack(), steps, norm);
    return {grad_m0, grad_weights};
  }
  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    m0.reset_data();
    weights.reset_data();
  }
  std::string name() const override { return "MessagePassingBackward"; }
};

at::Tensor forward(c10::DispatchKeySet keys, const at::Tensor& m0, const at::Tensor& weights,
                   int64_t steps, c10::string_view norm) {
  static const auto op = find_op<Forward>("psis_d2::message_passing");
  refuse_tangents(kOp, m0, weights);
  std::shared_ptr<MessagePassingBackward> node;
  if (needs_node(m0, weights)) {
    node = make_node<MessagePassingBackward>(m0, weights);
    node->m0 = SavedVariable(m0, false);
    node->weights = SavedVariable(weights, false);
    node->steps = steps;
    node->norm = std::string(norm);
  }
  at::Tensor out = below_autograd(
      [&] { return op.redispatch(keys & c10::after_autograd_keyset, m0, weights, steps, norm); });
  if (node) torch::autograd::set_history(out, node);
  return out;
}

std::tuple<at::Tensor, at::Tensor> backward(c10::DispatchKeySet keys, const at::Tensor& grad,
                                            const at::Tensor& m0, const at::Tensor& weights,
                                            int64_t steps, c10::string_view norm) {
  static const auto op = find_op<Backward>("psis_d2::message_passing_bwd");
  refuse_tangents(kOp, grad, m0, weights);
  auto grads = below_autograd([&] {
    return op.redispatch(keys & c10::after_autograd_keyset, grad, m0, weights, steps, norm);
  });
  if (needs_node(grad, m0, weights)) {
    const auto node = no_second_derivative(kOp, grad, m0, weights);
    torch::autograd::set_history(std::get<0>(grads), node);
    torch::autograd::set_history(std::get<1>(grads), node);
  }
  return grads;
}

}  // namespace

TORCH_LIBRARY_IMPL(psis_d2, Autograd, m) {
  m.impl("message_passing", &forward);
  m.impl("message_passing_bwd", &backward);
}

}  // namespace psis_d2
