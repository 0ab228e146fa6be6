// What the autograd kernels of all ops share.
//
// In C++, as PyTorch's own derivatives are: formulas that are registered in Python nearly double
// what a small blend takes forward and backward (16 boxes, 20 priors of 14 x 14 on one EPYC thread:
// 81 us instead of 45). Nodes and no torch::autograd::Function, which refuses torch.func.grad.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <memory>
#include <mutex>
#include <string>
#include <utility>

namespace psis_d2 {

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// Forward-mode derivatives (torch.func.jvp, dual tensors) would silently be zero without this.
template <typename... Tensors>
void refuse_tangents(const char* op, const Tensors&... inputs) {
  const bool found = ((inputs.defined() && inputs._fw_grad(/*level=*/0).defined()) || ...);
  TORCH_CHECK_NOT_IMPLEMENTED(
      !found, op, ": the compiled op has no forward-mode derivative, which torch.func.jvp and ",
      "jacfwd need; psis_d2.ops.reference.", op, " has one.");
}

// Runs `call` below autograd, as the dispatcher would without this kernel.
template <typename Call>
auto below_autograd(const Call& call) {
  at::AutoDispatchBelowADInplaceOrView guard;
  return call();
}

// Whether autograd has to record a call with these inputs.
template <typename... Tensors>
bool needs_node(const Tensors&... inputs) {
  return torch::autograd::compute_requires_grad(inputs...);
}

// A node of type N whose edges lead to the inputs.
template <typename N, typename... Tensors>
std::shared_ptr<N> make_node(const Tensors&... inputs) {
  auto node = std::shared_ptr<N>(new N(), torch::autograd::deleteNode);
  node->set_next_edges(torch::autograd::collect_next_edges(inputs...));
  return node;
}

// What the outputs of a backward op lead to: its own derivatives are not written.
template <typename... Tensors>
std::shared_ptr<torch::autograd::Node> no_second_derivative(const char* op,
                                                            const Tensors&... inputs) {
  const std::string sentence = std::string(op) +
                               ": the compiled op cannot be differentiated twice; "
                               "psis_d2.ops.reference." +
                               op + " can.";
  return std::shared_ptr<torch::autograd::Node>(
      new torch::autograd::Error(sentence, torch::autograd::collect_next_edges(inputs...)),
      torch::autograd::deleteNode);
}

// The op's handle, looked up once.
template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace psis_d2
