// Arrays of the tests as tensors in watched memory, and back.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>

#include "cuda_on_cpu.h"

// Mirrored in tests/cuda_source.py.
struct Array {
  void* data;
  int32_t dtype;  // of at::ScalarType
  int32_t dims;   // -1: none
  int64_t sizes[4], strides[4];

  at::Tensor view() const {
    const at::IntArrayRef size(sizes, dims), stride(strides, dims);
    return at::from_blob(data, size, stride, at::TensorOptions(at::ScalarType(dtype)));
  }
  // A copy in watched memory, of the same strides.
  at::Tensor taken() const {
    const at::IntArrayRef size(sizes, dims), stride(strides, dims);
    return at::empty_strided(size, stride, at::TensorOptions(at::ScalarType(dtype))).copy_(view());
  }
  void give(const at::Tensor& result) const { view().copy_(result); }
};

struct Settings {
  int32_t order, processors, shared_limit;

  // shared: the array that the kernels declare
  template <size_t kSize>
  cuda_on_cpu::Run run(unsigned char (&shared)[kSize]) const {
    return {{processors, shared_limit}, cuda_on_cpu::Order(order), shared, kSize};
  }
};
