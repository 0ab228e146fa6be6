// Schema and argument checks of shape_prior_blend. The sentences equal those of
// psis_d2/ops/shape_prior_blend.py, which checks first on the usual road.
#include "shape_prior_blend.h"

#include <torch/library.h>

#include "checks.h"

namespace psis_d2 {
namespace {

constexpr const char* kOp = "shape_prior_blend";

void check_rectangles(const char* name_, const at::Tensor& rectangles, const at::Tensor& logits) {
  TORCH_CHECK_VALUE(
      rectangles.dim() == 2 && rectangles.size(0) == logits.size(0) && rectangles.size(1) == 4, kOp,
      ": ", name_, " must be [N, 4] with the N of logits ", logits.sizes(), ", not ",
      rectangles.sizes(), ".");
  check_same_device(kOp, "logits", logits, name_, rectangles);
  TORCH_CHECK_TYPE(
      rectangles.scalar_type() == at::kFloat || rectangles.scalar_type() == at::kDouble, kOp, ": ",
      name_, " must be float32 or float64, not ", name(rectangles.scalar_type()), ".");
}

}  // namespace

ShapePriorBlendShape check_shape_prior_blend(const at::Tensor& logits, const at::Tensor& priors,
                                             const at::Tensor& boxes, const at::Tensor& frames,
                                             int64_t height, int64_t width,
                                             const std::optional<at::Tensor>& classes) {
  TORCH_CHECK_VALUE(logits.dim() == 2, kOp, ": logits must be [N, K], not ", logits.sizes(), ".");
  const int64_t dims = priors.dim();
  TORCH_CHECK_VALUE((dims == 3 || dims == 4) && priors.size(dims - 1) == priors.size(dims - 2), kOp,
                    ": priors must be [K, P, P] or [classes, K, P, P], not ", priors.sizes(), ".");
  TORCH_CHECK_VALUE(priors.size(dims - 3) == logits.size(1), kOp, ": priors ", priors.sizes(),
                    " do not fit logits ", logits.sizes(), ": both must have the same K.");
  TORCH_CHECK_VALUE(priors.numel() > 0, kOp, ": priors ", priors.sizes(), " are empty.");
  TORCH_CHECK_VALUE(classes.has_value() == (dims == 4), kOp,
                    ": classes go with priors [classes, K, P, P] and only with them; priors are ",
                    priors.sizes(), ".");
  check_rectangles("boxes", boxes, logits);
  check_rectangles("frames", frames, logits);
  check_same_device(kOp, "logits", logits, "priors", priors);
  check_same_dtype(kOp, "logits", logits, "priors", priors);
  check_dtype(kOp, logits);
  TORCH_CHECK_VALUE(height > 0 && width > 0, kOp, ": size must be positive, not [", height, ", ",
                    width, "].");
  if (classes.has_value()) {
    TORCH_CHECK_VALUE(classes->dim() == 1 && classes->size(0) == logits.size(0), kOp,
                      ": classes must be [N] with the N of logits ", logits.sizes(), ", not ",
                      classes->sizes(), ".");
    check_same_device(kOp, "logits", logits, "classes", *classes);
    TORCH_CHECK_TYPE(classes->scalar_type() == at::kLong, kOp, ": classes must be int64, not ",
                     name(classes->scalar_type()), ".");
  }
  const int64_t groups = dims == 4 ? priors.size(0) : 1;
  return {logits.size(0), groups, logits.size(1), priors.size(dims - 1), height, width};
}

ShapePriorBlendShape check_shape_prior_blend_bwd(const at::Tensor& grad, const at::Tensor& logits,
                                                 const at::Tensor& priors, const at::Tensor& boxes,
                                                 const at::Tensor& frames,
                                                 const std::optional<at::Tensor>& classes) {
  TORCH_CHECK_VALUE(grad.dim() == 3, kOp, ": grad must be [N, H, W], not ", grad.sizes(), ".");
  const ShapePriorBlendShape shape =
      check_shape_prior_blend(logits, priors, boxes, frames, grad.size(1), grad.size(2), classes);
  TORCH_CHECK_VALUE(grad.size(0) == logits.size(0), kOp, ": grad ", grad.sizes(),
                    " does not fit logits ", logits.sizes(), ".");
  check_same_device(kOp, "logits", logits, "grad", grad);
  check_same_dtype(kOp, "logits", logits, "grad", grad);
  return shape;
}

TORCH_LIBRARY_FRAGMENT(psis_d2, m) {
  m.def(
      "shape_prior_blend(Tensor logits, Tensor priors, Tensor boxes, Tensor frames, int height, "
      "int width, Tensor? classes, float sample_offset) -> Tensor");
  // The second result is empty unless priors_need_grad.
  m.def(
      "shape_prior_blend_bwd(Tensor grad, Tensor logits, Tensor priors, Tensor boxes, "
      "Tensor frames, Tensor? classes, float sample_offset, bool priors_need_grad) "
      "-> (Tensor, Tensor)");
}

}  // namespace psis_d2
