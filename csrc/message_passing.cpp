// Schema and argument checks of message_passing. The sentences equal those of
// psis_d2/ops/message_passing.py, which checks first on the usual road.
#include "message_passing.h"

#include <torch/library.h>

#include <string>

#include "checks.h"

namespace psis_d2 {
namespace {

Norm parse_norm(std::string_view norm) {
  if (norm == "softmax") return Norm::kSoftmax;
  if (norm == "sigmoid_sum") return Norm::kSigmoidSum;
  TORCH_CHECK_VALUE(norm == "none",
                    "message_passing: norm must be 'softmax', 'sigmoid_sum' or 'none', not '",
                    std::string(norm), "'.");
  return Norm::kNone;
}

}  // namespace

MessagePassingShape check_message_passing(const at::Tensor& m0, const at::Tensor& weights,
                                          int64_t steps, std::string_view norm) {
  TORCH_CHECK_VALUE(m0.dim() == 4, "message_passing: m0 must be [N, C, H, W], not ", m0.sizes(),
                    ".");
  TORCH_CHECK_VALUE(weights.dim() == 4, "message_passing: weights must be [N, Wc * 9, H, W], not ",
                    weights.sizes(), ".");
  const int64_t channels = m0.size(1);
  TORCH_CHECK_VALUE(weights.size(0) == m0.size(0) && weights.size(2) == m0.size(2) &&
                        weights.size(3) == m0.size(3) &&
                        (weights.size(1) == kTaps || weights.size(1) == channels * kTaps),
                    "message_passing: weights ", weights.sizes(), " do not fit m0 ", m0.sizes(),
                    ": they must be [N, 9, H, W] or [N, C * 9, H, W].");
  TORCH_CHECK_VALUE(weights.device() == m0.device(), "message_passing: m0 is on ", m0.device(),
                    " but weights are on ", weights.device(), ".");
  TORCH_CHECK_TYPE(weights.scalar_type() == m0.scalar_type(), "message_passing: m0 is ",
                   name(m0.scalar_type()), " but weights are ", name(weights.scalar_type()), ".");
  check_dtype("message_passing", m0);
  TORCH_CHECK_VALUE(steps >= 0, "message_passing: steps must be at least 0, not ", steps, ".");
  const int64_t weight_channels = weights.size(1) == channels * kTaps ? channels : 1;
  return {m0.size(0), channels, weight_channels, m0.size(2), m0.size(3), steps, parse_norm(norm)};
}

MessagePassingShape check_message_passing_bwd(const at::Tensor& grad, const at::Tensor& m0,
                                              const at::Tensor& weights, int64_t steps,
                                              std::string_view norm) {
  const MessagePassingShape shape = check_message_passing(m0, weights, steps, norm);
  TORCH_CHECK_VALUE(grad.sizes() == m0.sizes(), "message_passing: grad ", grad.sizes(),
                    " does not fit m0 ", m0.sizes(), ".");
  TORCH_CHECK_VALUE(grad.device() == m0.device(), "message_passing: m0 is on ", m0.device(),
                    " but grad is on ", grad.device(), ".");
  TORCH_CHECK_TYPE(grad.scalar_type() == m0.scalar_type(), "message_passing: m0 is ",
                   name(m0.scalar_type()), " but grad is ", name(grad.scalar_type()), ".");
  return shape;
}

TORCH_LIBRARY_FRAGMENT(psis_d2, m) {
  m.def("message_passing(Tensor m0, Tensor weights, int steps, str norm) -> Tensor");
  m.def(
      "message_passing_bwd(Tensor grad, Tensor m0, Tensor weights, int steps, str norm) "
      "-> (Tensor, Tensor)");
}

}  // namespace psis_d2
