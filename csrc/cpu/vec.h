// Fixed 64-byte vectors over the compiler's vector extension. A function that uses them and is
// marked PSIS_D2_CLONES is compiled once per instruction set; the loader picks.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define PSIS_D2_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PSIS_D2_CLONES
#endif
#define PSIS_D2_INLINE inline __attribute__((always_inline))

namespace psis_d2 {

template <typename T>
struct Vec;

template <>
struct Vec<float> {
  typedef float Type __attribute__((vector_size(64)));
  typedef float Unaligned __attribute__((vector_size(64), aligned(4)));
  typedef int32_t Mask __attribute__((vector_size(64)));
  typedef uint32_t Bits __attribute__((vector_size(64)));
  static constexpr int kLanes = 16;
};

template <>
struct Vec<double> {
  typedef double Type __attribute__((vector_size(64)));
  typedef double Unaligned __attribute__((vector_size(64), aligned(8)));
  typedef int64_t Mask __attribute__((vector_size(64)));
  static constexpr int kLanes = 8;
};

template <typename T>
PSIS_D2_INLINE typename Vec<T>::Type load(const T* p) {
  return *reinterpret_cast<const typename Vec<T>::Type*>(p);
}

template <typename T>
PSIS_D2_INLINE typename Vec<T>::Type loadu(const T* p) {
  return *reinterpret_cast<const typename Vec<T>::Unaligned*>(p);
}

// The first `count` lanes from memory, zeros behind them.
template <typename T>
PSIS_D2_INLINE typename Vec<T>::Type load_first(const T* p, int64_t count) {
  alignas(64) T lanes[Vec<T>::kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
}

template <typename T>
PSIS_D2_INLINE void store(T* p, typename Vec<T>::Type v) {
  *reinterpret_cast<typename Vec<T>::Type*>(p) = v;
}

template <typename T>
PSIS_D2_INLINE void storeu(T* p, typename Vec<T>::Type v) {
  *reinterpret_cast<typename Vec<T>::Unaligned*>(p) = v;
}

template <typename T>
PSIS_D2_INLINE void store_first(T* p, typename Vec<T>::Type v, int64_t count) {
  alignas(64) T lanes[Vec<T>::kLanes];
  store(lanes, v);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}

// All bits set in the lanes below `count`.
template <typename T>
PSIS_D2_INLINE typename Vec<T>::Mask first_lanes(int64_t count) {
  typename Vec<T>::Mask mask;
  for (int i = 0; i < Vec<T>::kLanes; ++i) mask[i] = i < count ? -1 : 0;
  return mask;
}

template <typename T>
PSIS_D2_INLINE typename Vec<T>::Type splat(T value) {
  return value - typename Vec<T>::Type{};
}

PSIS_D2_INLINE Vec<double>::Type exp(Vec<double>::Type x) {
  for (int i = 0; i < Vec<double>::kLanes; ++i) x[i] = std::exp(x[i]);
  return x;
}

// exp with a relative error below 2e-7. Arguments are clamped to where the result is a normal
// number, so it never returns 0 or infinity; NaN stays NaN.
PSIS_D2_INLINE Vec<float>::Type exp(Vec<float>::Type x) {
  using V = Vec<float>::Type;
  using Bits = Vec<float>::Bits;
  constexpr float kLow = -86.6f, kHigh = 88.0f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the integer in the low bits
  x = x < kLow ? splat(kLow) : x;
  x = x > kHigh ? splat(kHigh) : x;
  const V shifted = x * 1.44269504f + kRound;
  const V n = shifted - kRound;
  const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n through the exponent field.
  Bits bits, exponent;
  std::memcpy(&bits, &p, sizeof(bits));
  std::memcpy(&exponent, &shifted, sizeof(exponent));
  bits += exponent << 23;
  std::memcpy(&p, &bits, sizeof(p));
  return p;
}

}  // namespace psis_d2
