// What is done to one row of figures, each in a fixed order. Statistics are fp32 for every type of the states.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "tiles.h"

namespace {

inline float wide(float value) { return value; }
inline float wide(bf16 value) {
    uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}

inline void put(float *place, float value) { *place = value; }
inline void put(bf16 *place, float value) {  // to the nearest, ties to even; NaN stays NaN
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    place->bits = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

inline float greater(float one, float other) { return one > other ? one : other; }

inline float rounded(float value, const float *) { return value; }
inline float rounded(float value, const bf16 *) {
    bf16 kept;
    put(&kept, value);
    return wide(kept);
}

// e^x within 2 units in the last place, without a branch, so that loops over it become vector instructions
// (coefficients: Cephes expf, S. Moshier, public domain). 0 below -87.3, as far as fp32 reaches above 88.
inline float power(float x) {
    float held = x < -87.3f ? -87.3f : x;
    held = held > 88.3f ? 88.3f : held;
    const float shift = 12582912.f;  // adding and taking away 1.5 * 2^23 rounds to a whole number
    float times = held * 1.44269504f + shift;
    int32_t exponent;
    std::memcpy(&exponent, &times, 4);
    times -= shift;
    float rest = held - times * 0.693359375f + times * 2.12194440e-4f;
    float sum = 1.9875691500e-4f;
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1;
    int32_t bits = (exponent - 0x4b400000 + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, 4);
    return x < -87.3f ? 0 : sum * scale;
}

// to = from / sqrt(mean(from^2) + eps) * weight, which may be in place; returns 1 / sqrt(...).
template <class T>
inline float norm_row(const T *from, const float *weight, float eps, T *to, int64_t width) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; i++) sum += wide(from[i]) * wide(from[i]);
    const float scale = 1 / std::sqrt(sum / width + eps);
#pragma omp simd
    for (int64_t i = 0; i < width; i++) put(to + i, wide(from[i]) * scale * weight[i]);
    return scale;
}

// One head turned by its position, which may be in place; `sign` is -1 for the rotation back.
template <class T>
inline void rotate_head(const T *from, const T *c, const T *s, T *to, int64_t width, float sign) {
    const int64_t half = width / 2;
    const T *s1 = sign > 0 ? s : s + half, *s2 = sign > 0 ? s + half : s;
#pragma omp simd
    for (int64_t i = 0; i < half; i++) {
        float first = wide(from[i]), second = wide(from[i + half]);
        float one = rounded(first * wide(c[i]), from), two = rounded(second * wide(c[i + half]), from);
        put(to + i, one - sign * second * wide(s1[i]));
        put(to + i + half, two + sign * first * wide(s2[i]));
    }
}

// to = silu(first) * second.
template <class T>
inline void gate_row(const T *first, const T *second, T *to, int64_t width) {
#pragma omp simd
    for (int64_t i = 0; i < width; i++) {
        float value = wide(first[i]);
        put(to + i, value / (1 + power(-value)) * wide(second[i]));
    }
}

// A row in 8 bits: its largest figure becomes 127; returns the scale, which times a result is the row again. Sizes are
// compared as bits, among which NaN is the largest: a row with NaN has the scale NaN, and so have all products with it.
template <class T>
inline float quantize_row(const T *from, int8_t *to, int64_t width) {
    uint32_t most = 0;
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < width; i++) {
        float value = wide(from[i]);
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    float top;
    std::memcpy(&top, &most, 4);
    const float times = top > 0 ? 127 / top : 0;
#pragma omp simd
    for (int64_t i = 0; i < width; i++) to[i] = static_cast<int8_t>(std::nearbyint(wide(from[i]) * times));
    return top / 127;
}

}  // namespace
