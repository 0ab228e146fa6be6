// Bilinear placement of one blended prior on one CPU thread. It is separable: two taps along y,
// then two along x.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "vec.h"

namespace psis_d2 {

// One axis of one box. Prior cells are counted from 1, cells 0 and P + 1 are the zeros around them:
// output i reads cell[i] and cell[i] + 1, with the weights lower[i] and upper[i].
template <typename T>
struct Taps {
  std::vector<int32_t> cell;
  std::vector<T> lower, upper;
  int64_t begin = 0, end = 0;  // outputs outside are zero

  explicit Taps(int64_t size) : cell(size), lower(size), upper(size) {}
  int64_t size() const { return static_cast<int64_t>(cell.size()); }

  // box and frame: where the prior and the output grid begin and end along this axis.
  void set(T box_begin, T box_end, T frame_begin, T frame_end, int64_t side, T sample_offset) {
    const T cells_per_unit = T(side) / (box_end - box_begin);
    const T unit = (frame_end - frame_begin) / T(size());
    begin = end = 0;
    for (int64_t i = 0; i < size(); ++i) {
      const T position =
          (frame_begin - box_begin + (T(i) + sample_offset) * unit) * cells_per_unit -
          sample_offset;
      // False for NaN too, as it comes from a box without extent.
      const bool inside = box_end > box_begin && position > T(-1) && position < T(side);
      const T floor = inside ? std::floor(position) : T(-1);
      cell[i] = static_cast<int32_t>(floor) + 1;
      upper[i] = inside ? position - floor : T(0);
      lower[i] = inside ? T(1) - upper[i] : T(0);
      if (!inside) continue;
      if (begin == end) begin = i;
      end = i + 1;
    }
  }
};

// Transposed taps: prior cell c (from 0) is read by count[c] outputs, of which the t-th is
// output[t * P + c], with weight[t * P + c].
template <typename T>
struct Readers {
  std::vector<int32_t> count, output;
  std::vector<T> weight;
  int64_t most = 0;  // rows of output and weight; rows are filled up with weights of zero

  void set(const Taps<T>& taps, int64_t side) {
    count.assign(side, 0);
    most = 0;
    for (int64_t i = taps.begin; i < taps.end; ++i) add(taps, i, side, [](int64_t, T) {});
    for (const int32_t n : count) most = std::max<int64_t>(most, n);
    output.assign(most * side, 0);
    weight.assign(most * side, T(0));
    count.assign(side, 0);
    for (int64_t i = taps.begin; i < taps.end; ++i) {
      add(taps, i, side, [&](int64_t at, T w) {
        output[at] = static_cast<int32_t>(i);
        weight[at] = w;
      });
    }
  }

 private:
  // Calls enter(place in the table, weight) for the taps of output i that lie on the prior.
  template <typename Enter>
  void add(const Taps<T>& taps, int64_t i, int64_t side, const Enter& enter) {
    const int64_t c = taps.cell[i] - 1;
    if (c >= 0) enter(count[c]++ * side + c, taps.lower[i]);
    if (c + 1 < side) enter(count[c + 1]++ * side + c + 1, taps.upper[i]);
  }
};

// out [H, W] from prior [P, P].  row: scratch [P + 2]
template <typename T>
PSIS_D2_INLINE void place(const T* __restrict prior, T* __restrict out, const Taps<T>& rows,
                          const Taps<T>& columns, int64_t side, T* __restrict row) {
  const int64_t width = columns.size();
  const int32_t* __restrict cell = columns.cell.data();
  const T* __restrict lower = columns.lower.data();
  const T* __restrict upper = columns.upper.data();
  row[0] = row[side + 1] = T(0);
  for (int64_t y = 0; y < rows.size(); ++y, out += width) {
    if (y < rows.begin || y >= rows.end || columns.begin == columns.end) {
      for (int64_t x = 0; x < width; ++x) out[x] = T(0);
      continue;
    }
    // A cell outside the prior has a weight that multiplies nothing: any row stands in for it.
    const int64_t c = rows.cell[y] - 1;
    const T low = c < 0 ? T(0) : rows.lower[y];
    const T high = c + 1 < side ? rows.upper[y] : T(0);
    const T* __restrict first = prior + (c < 0 ? 0 : c) * side;
    const T* __restrict second = prior + (c + 1 < side ? c + 1 : c) * side;
    for (int64_t x = 0; x < side; ++x) row[x + 1] = low * first[x] + high * second[x];
    for (int64_t x = 0; x < width; ++x) {
      out[x] = lower[x] * row[cell[x]] + upper[x] * row[cell[x] + 1];
    }
  }
}

// Transpose of place: grad_prior [P, P] from grad [H, W].  rows_grad: scratch [P, W]
template <typename T>
PSIS_D2_INLINE void place_grad(const T* __restrict grad, T* __restrict grad_prior,
                               const Readers<T>& rows, const Readers<T>& columns, int64_t side,
                               int64_t width, T* __restrict row_grad) {
  for (int64_t r = 0; r < side; ++r, grad_prior += side) {
    for (int64_t x = 0; x < width; ++x) row_grad[x] = T(0);
    for (int64_t t = 0; t < rows.count[r]; ++t) {
      const T w = rows.weight[t * side + r];
      const T* __restrict source = grad + rows.output[t * side + r] * width;
      for (int64_t x = 0; x < width; ++x) row_grad[x] += w * source[x];
    }
    for (int64_t c = 0; c < side; ++c) grad_prior[c] = T(0);
    for (int64_t t = 0; t < columns.most; ++t) {
      const T* __restrict w = columns.weight.data() + t * side;
      const int32_t* __restrict output = columns.output.data() + t * side;
      for (int64_t c = 0; c < side; ++c) grad_prior[c] += w[c] * row_grad[output[c]];
    }
  }
}

// out[p] = sum_k weights[k] * priors[k, p].
template <typename T>
PSIS_D2_INLINE void blend(const T* __restrict weights, const T* __restrict priors,
                          T* __restrict out, int64_t count, int64_t pixels) {
  for (int64_t p = 0; p < pixels; ++p) out[p] = T(0);
  for (int64_t k = 0; k < count; ++k) {
    const T w = weights[k];
    const T* __restrict prior = priors + k * pixels;
    for (int64_t p = 0; p < pixels; ++p) out[p] += w * prior[p];
  }
}

// Gradient of the weights: out[k] = sum_p priors[k, p] * grad[p].
template <typename T>
PSIS_D2_INLINE void blend_grad(const T* __restrict grad, const T* __restrict priors,
                               T* __restrict out, int64_t count, int64_t pixels) {
  constexpr int64_t kLanes = 16;  // sums of their own, so that the compiler may vectorize
  for (int64_t k = 0; k < count; ++k) {
    const T* __restrict prior = priors + k * pixels;
    T sums[kLanes] = {};
    int64_t p = 0;
    for (; p + kLanes <= pixels; p += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += prior[p + lane] * grad[p + lane];
    }
    for (; p < pixels; ++p) sums[0] += prior[p] * grad[p];
    T sum = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) sum += sums[lane];
    out[k] = sum;
  }
}

}  // namespace psis_d2
