// What the argument checks of all ops share. The sentences equal those of
// psis_d2/ops/_arguments.py.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <string>

namespace psis_d2 {

inline std::string name(at::ScalarType dtype) { return c10::getDtypeNames(dtype).first; }

inline bool is_supported(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf ||
         dtype == at::kBFloat16;
}

inline void check_dtype(const char* op, const at::Tensor& tensor) {
  TORCH_CHECK_TYPE(is_supported(tensor.scalar_type()), op,
                   ": the dtype must be float16, bfloat16, float32 or float64, not ",
                   name(tensor.scalar_type()), ".");
}

// `other` lies where `tensor` lies.
inline void check_same_device(const char* op, const char* tensor_name, const at::Tensor& tensor,
                              const char* other_name, const at::Tensor& other) {
  TORCH_CHECK_VALUE(other.device() == tensor.device(), op, ": ", tensor_name, " is on ",
                    tensor.device(), " but ", other_name, " is on ", other.device(), ".");
}

inline void check_same_dtype(const char* op, const char* tensor_name, const at::Tensor& tensor,
                             const char* other_name, const at::Tensor& other) {
  TORCH_CHECK_TYPE(other.scalar_type() == tensor.scalar_type(), op, ": ", tensor_name, " is ",
                   name(tensor.scalar_type()), " but ", other_name, " is ",
                   name(other.scalar_type()), ".");
}

}  // namespace psis_d2
