// Message passing of one set of weights on one CPU thread; everything stays in the L1/L2 cache.
//
// A row of a map is padded with zeros to whole vectors, at least one lane, so that the lane
// left of a row's first pixel (the last lane of the row before) and right of its last pixel is the
// zero border. The padding of the weights is zero too, therefore every step leaves the padding of
// its result zero.
//
//   plane    [kLanes zeros][H][pitch]        one map, followed by another plane or by kLanes zeros
//   weights  [H][9][pitch]                   K of eq. 4, normalized
#pragma once

#include <algorithm>
#include <cstdint>

#include "../message_passing.h"
#include "vec.h"

namespace psis_d2 {

struct RowLayout {
  int64_t height, width, pitch, lanes;

  RowLayout(int64_t height, int64_t width, int64_t lanes)
      : height(height), width(width), pitch((width + lanes) / lanes * lanes), lanes(lanes) {}
  int64_t plane() const { return lanes + height * pitch; }
  int64_t weights() const { return height * kTaps * pitch; }
  // Elements of scratch, see forward_group and backward_group.
  int64_t forward_scratch() const { return weights() + 2 * plane() + lanes; }
  int64_t backward_scratch(int64_t steps) const {
    return 3 * weights() + height * pitch + (2 * steps + 1) * plane() + lanes;
  }
};

// Moves `count` = width pixels between dense rows and padded rows. Whole vectors are moved where
// they stay inside the dense map: rows go in ascending order, so what is written behind a row's end
// is overwritten by the next row.
template <typename S>
struct DenseRows {
  using T = typename S::Lane;
  const RowLayout& layout;

  // Lanes of vector x of a row that hold pixels.
  PSIS_D2_INLINE int64_t used(int64_t x) const {
    return std::max<int64_t>(0, std::min(layout.lanes, layout.width - x));
  }
  PSIS_D2_INLINE bool inside(int64_t row, int64_t x) const {
    return row * layout.width + x + layout.lanes <= layout.height * layout.width;
  }
  PSIS_D2_INLINE typename S::Type load_row(const T* map, int64_t row, int64_t x) const {
    const T* p = map + row * layout.width + x;
    return inside(row, x) ? loadu<S>(p) : load_first<S>(p, used(x));
  }
  PSIS_D2_INLINE void store_row(T* map, int64_t row, int64_t x, typename S::Type v) const {
    T* p = map + row * layout.width + x;
    if (inside(row, x)) {
      storeu<S>(p, v);
    } else {
      store_first<S>(p, v, used(x));
    }
  }
};

template <typename S, typename T = typename S::Lane>
PSIS_D2_INLINE void load_plane(const T* map, T* rows, const RowLayout& layout) {
  const DenseRows<S> dense{layout};
  for (int64_t x = 0; x < layout.pitch; x += layout.lanes) {
    const auto mask = first_lanes<S>(dense.used(x));
    for (int64_t u = 0; u < layout.height; ++u) {
      const auto v = dense.load_row(map, u, x);
      store<S>(rows + u * layout.pitch + x, mask ? v : typename S::Type{});
    }
  }
}

template <typename S, typename T = typename S::Lane>
PSIS_D2_INLINE void store_plane(const T* rows, T* map, const RowLayout& layout) {
  const DenseRows<S> dense{layout};
  for (int64_t u = 0; u < layout.height; ++u) {
    for (int64_t x = 0; x < layout.pitch; x += layout.lanes) {
      dense.store_row(map, u, x, load<S>(rows + u * layout.pitch + x));
    }
  }
}

// K from the nine weights w of some pixels, in place. Returns what normalize_grad needs:
// sum + eps for kSigmoidSum.
template <Norm norm, typename S, typename V = typename S::Type>
PSIS_D2_INLINE V normalize(V (&w)[kTaps]) {
  using T = typename S::Lane;
  V sum = {};
  if constexpr (norm == Norm::kSoftmax) {
    V top = w[0];
    for (int j = 1; j < kTaps; ++j) top = w[j] > top ? w[j] : top;
    for (int j = 0; j < kTaps; ++j) sum += w[j] = exp<S>(w[j] - top);
  } else if constexpr (norm == Norm::kSigmoidSum) {
    for (int j = 0; j < kTaps; ++j) sum += w[j] = T(1) / (T(1) + exp<S>(-w[j]));
    sum += T(kSumEps);
  }
  if constexpr (norm != Norm::kNone) {
    const V scale = T(1) / sum;
    for (int j = 0; j < kTaps; ++j) w[j] *= scale;
  }
  return sum;
}

// Gradient with respect to the weights from the gradient g with respect to K, in place.
template <typename S, typename V = typename S::Type>
PSIS_D2_INLINE void normalize_grad(Norm norm, V (&g)[kTaps], const V (&k)[kTaps], V sum) {
  using T = typename S::Lane;
  if (norm == Norm::kNone) return;
  V dot = {};
  for (int j = 0; j < kTaps; ++j) dot += g[j] * k[j];
  for (int j = 0; j < kTaps; ++j) {
    g[j] = k[j] * (g[j] - dot);
    // K_j = s_j / sum, s the sigmoid: the quotient's derivative, then ds/dw = s (1 - s).
    if (norm == Norm::kSigmoidSum) g[j] *= T(1) - k[j] * sum;
  }
}

// weights dense [9][H][W] to K [H][9][pitch]; sums [H][pitch] may be null.
template <Norm norm, typename S, typename T = typename S::Lane>
PSIS_D2_INLINE void prepare_weights_as(const T* weights, T* k, T* sums, const RowLayout& layout) {
  using V = typename S::Type;
  const DenseRows<S> dense{layout};
  const int64_t pixels = layout.height * layout.width;
  for (int64_t x = 0; x < layout.pitch; x += layout.lanes) {
    const auto mask = first_lanes<S>(dense.used(x));
    for (int64_t u = 0; u < layout.height; ++u) {
      V w[kTaps];
      for (int j = 0; j < kTaps; ++j) w[j] = dense.load_row(weights + j * pixels, u, x);
      const V sum = normalize<norm, S>(w);
      for (int j = 0; j < kTaps; ++j) {
        store<S>(k + (u * kTaps + j) * layout.pitch + x, mask ? w[j] : V{});
      }
      if (sums != nullptr) store<S>(sums + u * layout.pitch + x, sum);
    }
  }
}

template <typename S, typename T = typename S::Lane>
PSIS_D2_INLINE void prepare_weights(Norm norm, const T* weights, T* k, T* sums,
                                    const RowLayout& layout) {
  if (norm == Norm::kSoftmax) {
    prepare_weights_as<Norm::kSoftmax, S>(weights, k, sums, layout);
  } else if (norm == Norm::kSigmoidSum) {
    prepare_weights_as<Norm::kSigmoidSum, S>(weights, k, sums, layout);
  } else {
    prepare_weights_as<Norm::kNone, S>(weights, k, sums, layout);
  }
}

// Weights of the transposed step: kt[8 - tap, q] = k[tap, q - d(tap)], so that `step` with kt is
// the transpose of `step` with k.
template <typename S, typename T = typename S::Lane>
PSIS_D2_INLINE void transpose_weights(const T* k, T* kt, const RowLayout& layout) {
  using V = typename S::Type;
  const DenseRows<S> dense{layout};
  const int64_t pitch = layout.pitch;
  for (int64_t x = 0; x < pitch; x += layout.lanes) {
    const auto mask = first_lanes<S>(dense.used(x));
    for (int64_t u = 0; u < layout.height; ++u) {
      for (int tap = 0; tap < kTaps; ++tap) {
        const int64_t row = u - (tap / 3 - 1);
        const int64_t shift = -(tap % 3 - 1);
        V v = {};
        if (row >= 0 && row < layout.height) {
          // The row's neighbors in memory are other taps, not a border: mask the ends by hand.
          const T* p = k + (row * kTaps + tap) * pitch;
          for (int lane = 0; lane < S::kLanes; ++lane) {
            const int64_t column = x + lane + shift;
            v[lane] = column >= 0 && column < pitch ? p[column] : T(0);
          }
        }
        store<S>(kt + (u * kTaps + 8 - tap) * pitch + x, mask ? v : V{});
      }
    }
  }
}

// One step of eq. 4. A row of `in` is read once for the three rows of `out` that it feeds.
template <typename S, typename T = typename S::Lane>
PSIS_D2_INLINE void step(const T* __restrict in, const T* __restrict k, T* __restrict out,
                         const RowLayout& layout) {
  using V = typename S::Type;
  const int64_t pitch = layout.pitch;
  const int64_t last = layout.height - 1;
  for (int64_t x = 0; x < pitch; x += layout.lanes) {
    const T* kx = k + x;
    V above = {}, here = {};
    for (int64_t u = 0; u <= last; ++u) {
      const T* row = in + u * pitch + x;
      const V left = loadu<S>(row - 1), center = load<S>(row), right = loadu<S>(row + 1);
      const auto taps = [&](int64_t target, int first) __attribute__((always_inline)) {
        const T* p = kx + (target * kTaps + first) * pitch;
        return load<S>(p) * left + load<S>(p + pitch) * center + load<S>(p + 2 * pitch) * right;
      };
      if (u > 0) store<S>(out + (u - 1) * pitch + x, above + taps(u - 1, 6));
      above = here + taps(u, 3);
      if (u < last) here = taps(u + 1, 0);
    }
    store<S>(out + last * pitch + x, above);
  }
}

// dK[tap, p] = sum over steps of grad_{t+1}[p] * m_t[p + d(tap)] for one vector of row u.
// Top/bottom: the row above/below exists.
template <bool has_above, bool has_below, typename S, typename T = typename S::Lane>
PSIS_D2_INLINE void weight_grad(typename S::Type (&g)[kTaps], const T* state, const T* grad,
                                int64_t steps, int64_t pitch, int64_t state_stride,
                                int64_t grad_stride) {
  for (int64_t t = 0; t < steps; ++t) {
    const typename S::Type scale = load<S>(grad + t * grad_stride);
    const T* row = state + t * state_stride;
    if constexpr (has_above) {
      g[0] += scale * loadu<S>(row - pitch - 1);
      g[1] += scale * load<S>(row - pitch);
      g[2] += scale * loadu<S>(row - pitch + 1);
    }
    g[3] += scale * loadu<S>(row - 1);
    g[4] += scale * load<S>(row);
    g[5] += scale * loadu<S>(row + 1);
    if constexpr (has_below) {
      g[6] += scale * loadu<S>(row + pitch - 1);
      g[7] += scale * load<S>(row + pitch);
      g[8] += scale * loadu<S>(row + pitch + 1);
    }
  }
}

// All maps of one set of weights.
//   weights [9, H, W], m0 and out [maps, H, W], dense; scratch: forward_scratch() zeros, 64-byte
//   aligned. The planes' borders must stay zero, everything else is overwritten.
template <typename S, typename T = typename S::Lane>
PSIS_D2_INLINE void forward_group(Norm norm, const T* weights, const T* m0, T* out, int64_t maps,
                                  int64_t steps, const RowLayout& layout, T* scratch) {
  T* k = scratch;
  T* planes[2] = {k + layout.weights() + layout.lanes,
                  k + layout.weights() + layout.plane() + layout.lanes};
  prepare_weights<S>(norm, weights, k, static_cast<T*>(nullptr), layout);
  const int64_t pixels = layout.height * layout.width;
  for (int64_t c = 0; c < maps; ++c) {
    load_plane<S>(m0 + c * pixels, planes[0], layout);
    for (int64_t t = 0; t < steps; ++t) step<S>(planes[t % 2], k, planes[(t + 1) % 2], layout);
    store_plane<S>(planes[steps % 2], out + c * pixels, layout);
  }
}

// Gradients of all maps of one set of weights.
//   grad, m0, grad_m0 [maps, H, W], weights, grad_weights [9, H, W]; scratch as above, of
//   backward_scratch(T).
template <typename S, typename T = typename S::Lane>
PSIS_D2_INLINE void backward_group(Norm norm, const T* grad, const T* weights, const T* m0,
                                   T* grad_m0, T* grad_weights, int64_t maps, int64_t steps,
                                   const RowLayout& layout, T* scratch) {
  using V = typename S::Type;
  const DenseRows<S> dense{layout};
  const int64_t pixels = layout.height * layout.width;
  const int64_t pitch = layout.pitch;
  const int64_t plane = layout.plane();
  T* k = scratch;
  T* kt = k + layout.weights();
  T* dk = kt + layout.weights();
  T* sums = dk + layout.weights();
  T* states = sums + layout.height * pitch + layout.lanes;  // m_0 .. m_{T-1}
  T* grads = states + steps * plane;                        // of m_0 .. m_T
  prepare_weights<S>(norm, weights, k, sums, layout);
  transpose_weights<S>(k, kt, layout);
  for (int64_t c = 0; c < maps; ++c) {
    if (steps > 0) load_plane<S>(m0 + c * pixels, states, layout);
    load_plane<S>(grad + c * pixels, grads + steps * plane, layout);
    for (int64_t t = 1; t < steps; ++t) {
      step<S>(states + (t - 1) * plane, k, states + t * plane, layout);
    }
    for (int64_t t = steps; t > 0; --t) {
      step<S>(grads + t * plane, kt, grads + (t - 1) * plane, layout);
    }
    store_plane<S>(grads, grad_m0 + c * pixels, layout);

    for (int64_t u = 0; u < layout.height; ++u) {
      for (int64_t x = 0; x < pitch; x += layout.lanes) {
        T* saved = dk + u * kTaps * pitch + x;
        V g[kTaps];
        for (int j = 0; j < kTaps; ++j) g[j] = c > 0 ? load<S>(saved + j * pitch) : V{};
        const T* m = states + u * pitch + x;
        const T* next = grads + plane + u * pitch + x;
        const bool above = u > 0, below = u + 1 < layout.height;
        if (above && below) {
          weight_grad<true, true, S>(g, m, next, steps, pitch, plane, plane);
        } else if (above) {
          weight_grad<true, false, S>(g, m, next, steps, pitch, plane, plane);
        } else if (below) {
          weight_grad<false, true, S>(g, m, next, steps, pitch, plane, plane);
        } else {
          weight_grad<false, false, S>(g, m, next, steps, pitch, plane, plane);
        }
        if (c + 1 < maps) {
          for (int j = 0; j < kTaps; ++j) store<S>(saved + j * pitch, g[j]);
          continue;
        }
        V kj[kTaps];
        for (int j = 0; j < kTaps; ++j) kj[j] = load<S>(k + (u * kTaps + j) * pitch + x);
        normalize_grad<S>(norm, g, kj, load<S>(sums + u * pitch + x));
        for (int j = 0; j < kTaps; ++j) dense.store_row(grad_weights + j * pixels, u, x, g[j]);
      }
    }
  }
}

}  // namespace psis_d2
