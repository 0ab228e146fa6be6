// Autograd of affinity_attention: backward keeps the inputs and six numbers per pixel.
#include <torch/library.h>

#include <string>
#include <tuple>

#include "autograd.h"

namespace psis_d2 {
namespace {

constexpr const char* kOp = "affinity_attention";

using Three = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
using Four = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using Forward = Three(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                      double, double, bool);
using Backward = Four(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                      const at::Tensor&, const at::Tensor&, const at::Tensor&, double, bool);

struct AffinityAttentionBackward : torch::autograd::Node {
  SavedVariable theta, phi, value, foreground, stats;
  double scale = 1;
  bool unbiased = false;

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!grads[0].defined() && !grads[1].defined()) return variable_list(4);
    static const auto op = find_op<Backward>("psis_d2::affinity_attention_bwd");
    const at::Tensor v = value.unpack(), m = foreground.unpack();
    // The sums [N, L] have the foreground's [N, H, W] elements.
    const at::Tensor grad_sums = grads[1].defined() ? grads[1] : at::zeros_like(m).flatten(1);
    const at::Tensor grad_attended = grads[0].defined() ? grads[0] : at::zeros_like(v);
    auto [grad_theta, grad_phi, grad_value, grad_foreground] =
        op.call(grad_attended, grad_sums, theta.unpack(), phi.unpack(), v, m, stats.unpack(), scale,
                unbiased);
    return {grad_theta, grad_phi, grad_value, grad_foreground};
  }
  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* saved : {&theta, &phi, &value, &foreground, &stats}) saved->reset_data();
  }
  std::string name() const override { return "AffinityAttentionBackward"; }
};

Three forward(c10::DispatchKeySet keys, const at::Tensor& theta, const at::Tensor& phi,
              const at::Tensor& value, const at::Tensor& foreground, double scale, double eps,
              bool unbiased) {
  static const auto op = find_op<Forward>("psis_d2::affinity_attention");
  refuse_tangents(kOp, theta, phi, value, foreground);
  Three out = below_autograd([&] {
    return op.redispatch(keys & c10::after_autograd_keyset, theta, phi, value, foreground, scale,
                         eps, unbiased);
  });
  if (needs_node(theta, phi, value, foreground)) {
    const auto node = make_node<AffinityAttentionBackward>(theta, phi, value, foreground);
    node->theta = SavedVariable(theta, false);
    node->phi = SavedVariable(phi, false);
    node->value = SavedVariable(value, false);
    node->foreground = SavedVariable(foreground, false);
    node->stats = SavedVariable(std::get<2>(out), false);
    node->scale = scale;
    node->unbiased = unbiased;
    torch::autograd::set_history(std::get<0>(out), node);
    torch::autograd::set_history(std::get<1>(out), node);
  }
  return out;
}

Four backward(c10::DispatchKeySet keys, const at::Tensor& grad_attended,
              const at::Tensor& grad_sums, const at::Tensor& theta, const at::Tensor& phi,
              const at::Tensor& value, const at::Tensor& foreground, const at::Tensor& stats,
              double scale, bool unbiased) {
  static const auto op = find_op<Backward>("psis_d2::affinity_attention_bwd");
  refuse_tangents(kOp, grad_attended, grad_sums, theta, phi, value, foreground, stats);
  Four grads = below_autograd([&] {
    return op.redispatch(keys & c10::after_autograd_keyset, grad_attended, grad_sums, theta, phi,
                         value, foreground, stats, scale, unbiased);
  });
  if (needs_node(grad_attended, grad_sums, theta, phi, value, foreground, stats)) {
    const auto node =
        no_second_derivative(kOp, grad_attended, grad_sums, theta, phi, value, foreground, stats);
    torch::autograd::set_history(std::get<0>(grads), node);
    torch::autograd::set_history(std::get<1>(grads), node);
    torch::autograd::set_history(std::get<2>(grads), node);
    torch::autograd::set_history(std::get<3>(grads), node);
  }
  return grads;
}

}  // namespace

TORCH_LIBRARY_IMPL(psis_d2, Autograd, m) {
  m.impl("affinity_attention", &forward);
  m.impl("affinity_attention_bwd", &backward);
}

}  // namespace psis_d2
