// Schema and argument checks of affinity_attention. The sentences equal those of
// psis_d2/ops/affinity_attention.py, which checks first on the usual road.
#include "affinity_attention.h"

#include <ATen/AccumulateType.h>
#include <torch/library.h>

#include "checks.h"

namespace psis_d2 {
namespace {

constexpr const char* kOp = "affinity_attention";

void check_like_theta(const char* name_, const at::Tensor& tensor, const at::Tensor& theta) {
  check_same_device(kOp, "theta", theta, name_, tensor);
  check_same_dtype(kOp, "theta", theta, name_, tensor);
}

}  // namespace

AffinityAttentionShape check_affinity_attention(const at::Tensor& theta, const at::Tensor& phi,
                                                const at::Tensor& value,
                                                const at::Tensor& foreground, double eps,
                                                bool unbiased) {
  TORCH_CHECK_VALUE(theta.dim() == 4, kOp, ": theta must be [N, C, H, W], not ", theta.sizes(),
                    ".");
  TORCH_CHECK_VALUE(phi.sizes() == theta.sizes(), kOp, ": phi ", phi.sizes(),
                    " must have the shape of theta ", theta.sizes(), ".");
  const int64_t n = theta.size(0), height = theta.size(2), width = theta.size(3);
  TORCH_CHECK_VALUE(
      value.dim() == 4 && value.size(0) == n && value.size(2) == height && value.size(3) == width,
      kOp, ": value ", value.sizes(), " does not fit theta ", theta.sizes(),
      ": it must be [N, G, H, W].");
  TORCH_CHECK_VALUE(foreground.dim() == 3 && foreground.size(0) == n &&
                        foreground.size(1) == height && foreground.size(2) == width,
                    kOp, ": foreground ", foreground.sizes(), " does not fit theta ", theta.sizes(),
                    ": it must be [N, H, W].");
  TORCH_CHECK_VALUE(theta.size(1) > 0 && height * width > 0, kOp, ": theta ", theta.sizes(),
                    " has no channels or no pixels.");
  check_like_theta("phi", phi, theta);
  check_like_theta("value", value, theta);
  check_like_theta("foreground", foreground, theta);
  check_dtype(kOp, theta);
  TORCH_CHECK_VALUE(eps >= 0, kOp, ": eps must be at least 0, not ", eps, ".");
  TORCH_CHECK_VALUE(!unbiased || theta.size(1) > 1, kOp,
                    ": the unbiased variance needs at least 2 channels.");
  return {n, theta.size(1), value.size(1), height * width};
}

AffinityAttentionShape check_affinity_attention_bwd(const at::Tensor& grad_attended,
                                                    const at::Tensor& grad_sums,
                                                    const at::Tensor& theta, const at::Tensor& phi,
                                                    const at::Tensor& value,
                                                    const at::Tensor& foreground,
                                                    const at::Tensor& stats, bool unbiased) {
  const AffinityAttentionShape shape =
      check_affinity_attention(theta, phi, value, foreground, /*eps=*/0, unbiased);
  TORCH_CHECK_VALUE(grad_attended.sizes() == value.sizes(), kOp, ": grad_attended ",
                    grad_attended.sizes(), " does not fit value ", value.sizes(), ".");
  TORCH_CHECK_VALUE(grad_sums.sizes() == at::IntArrayRef({shape.regions, shape.pixels}), kOp,
                    ": grad_sums ", grad_sums.sizes(), " does not fit theta ", theta.sizes(), ".");
  TORCH_CHECK_VALUE(
      stats.sizes() == at::IntArrayRef({shape.regions, int64_t(kAffinityStats), shape.pixels}), kOp,
      ": stats ", stats.sizes(), " do not fit theta ", theta.sizes(), ".");
  check_like_theta("grad_attended", grad_attended, theta);
  check_like_theta("grad_sums", grad_sums, theta);
  check_same_device(kOp, "theta", theta, "stats", stats);
  TORCH_CHECK_TYPE(stats.scalar_type() == at::toAccumulateType(theta.scalar_type(), true), kOp,
                   ": theta is ", name(theta.scalar_type()), " but stats is ",
                   name(stats.scalar_type()), ".");
  return shape;
}

TORCH_LIBRARY_FRAGMENT(psis_d2, m) {
  // The third result is what the backward op needs beside the inputs, see AffinityStat.
  m.def(
      "affinity_attention(Tensor theta, Tensor phi, Tensor value, Tensor foreground, float scale, "
      "float eps, bool unbiased) -> (Tensor, Tensor, Tensor)");
  m.def(
      "affinity_attention_bwd(Tensor grad_attended, Tensor grad_sums, Tensor theta, Tensor phi, "
      "Tensor value, Tensor foreground, Tensor stats, float scale, bool unbiased) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}

}  // namespace psis_d2
