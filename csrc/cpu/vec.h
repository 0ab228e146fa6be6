// Vectors over the compiler's vector extension, as wide as the instruction set's registers: GCC
// takes wider ones apart, comparisons even lane by lane. Code that uses them is a template over a
// Vec<T, bytes> and is compiled once per instruction set; the loader picks.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

// PSIS_D2_CLONES compiles a function of plain loops for each instruction set.
// PSIS_D2_FOR_EACH_TARGET(DEFINE) expands DEFINE(attribute, bytes) for each of them: versions of a
// function that differ in the width of the vectors.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define PSIS_D2_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define PSIS_D2_FOR_EACH_TARGET(DEFINE)                 \
  DEFINE(__attribute__((target("default"))), 16)        \
  DEFINE(__attribute__((target("arch=x86-64-v3"))), 32) \
  DEFINE(__attribute__((target("arch=x86-64-v4"))), 64)
#else
#define PSIS_D2_CLONES
#define PSIS_D2_FOR_EACH_TARGET(DEFINE) DEFINE(, 16)
#endif
#define PSIS_D2_INLINE inline __attribute__((always_inline))

namespace psis_d2 {

template <typename T, int kBytes>
struct Vec {
  using Lane = T;
  typedef T Type __attribute__((vector_size(kBytes)));
  typedef T Unaligned __attribute__((vector_size(kBytes), aligned(sizeof(T))));
  using Bit = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  typedef Bit Mask __attribute__((vector_size(kBytes)));  // what comparisons give
  typedef std::make_unsigned_t<Bit> Bits __attribute__((vector_size(kBytes)));
  static constexpr int kLanes = kBytes / sizeof(T);
};

template <typename S>
PSIS_D2_INLINE typename S::Type load(const typename S::Lane* p) {
  return *reinterpret_cast<const typename S::Type*>(p);
}

template <typename S>
PSIS_D2_INLINE typename S::Type loadu(const typename S::Lane* p) {
  return *reinterpret_cast<const typename S::Unaligned*>(p);
}

// The first `count` lanes from memory, zeros behind them.
template <typename S>
PSIS_D2_INLINE typename S::Type load_first(const typename S::Lane* p, int64_t count) {
  alignas(64) typename S::Lane lanes[S::kLanes] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load<S>(lanes);
}

template <typename S>
PSIS_D2_INLINE void store(typename S::Lane* p, typename S::Type v) {
  *reinterpret_cast<typename S::Type*>(p) = v;
}

template <typename S>
PSIS_D2_INLINE void storeu(typename S::Lane* p, typename S::Type v) {
  *reinterpret_cast<typename S::Unaligned*>(p) = v;
}

template <typename S>
PSIS_D2_INLINE void store_first(typename S::Lane* p, typename S::Type v, int64_t count) {
  alignas(64) typename S::Lane lanes[S::kLanes];
  store<S>(lanes, v);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}

// All bits set in the lanes below `count`.
template <typename S>
PSIS_D2_INLINE typename S::Mask first_lanes(int64_t count) {
  typename S::Mask mask;
  for (int i = 0; i < S::kLanes; ++i) mask[i] = i < count ? -1 : 0;
  return mask;
}

template <typename S>
PSIS_D2_INLINE typename S::Type splat(typename S::Lane value) {
  return value - typename S::Type{};
}

// exp with a relative error below 2e-7. Arguments are clamped to where the result is a normal
// number, so it never returns 0 or infinity; NaN stays NaN. float64, for gradient checks, is the
// library's.
template <typename S>
PSIS_D2_INLINE typename S::Type exp(typename S::Type x) {
  using V = typename S::Type;
  if constexpr (sizeof(typename S::Lane) == 8) {
    for (int i = 0; i < S::kLanes; ++i) x[i] = std::exp(x[i]);
    return x;
  } else {
    constexpr float kLow = -86.6f, kHigh = 88.0f;
    constexpr float kRound =
        12582912.0f;  // 1.5 * 2^23: adding it leaves the integer in the low bits
    x = x < kLow ? splat<S>(kLow) : x;
    x = x > kHigh ? splat<S>(kHigh) : x;
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
    typename S::Bits bits, exponent;
    std::memcpy(&bits, &p, sizeof(bits));
    std::memcpy(&exponent, &shifted, sizeof(exponent));
    bits += exponent << 23;
    std::memcpy(&p, &bits, sizeof(p));
    return p;
  }
}

}  // namespace psis_d2
