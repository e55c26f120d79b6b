// One step of AdamW whose means are kept in 8 bits, in one sweep over blocks of 256 numbers that share a scale. The same
// in torch: train/optimizers/adamw8bit.py. Products are joined with sums where torch joins them and nowhere else, so that
// both differ only by the square roots, of which torch's may be off by a unit in the last place.

#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr int64_t BLOCK = 256;

struct Mean {
    uint8_t *codes;
    float *scales;
    const float *values;    // of the 256 codes
    const uint32_t *cells;  // of 16 (mean) or 8 (root) neighbouring halves: where they change code, then both codes
};

struct Moments {
    const float *gradient;
    float *weight;
    Mean mean, root;
    int64_t count;
    float forget_mean, keep_squares, forget_squares, decay, rate, eps;
};

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

// The bits of the nearest half-precision number, ties to even, of a value from -2 to 2; without a branch.
inline uint32_t half_of(float value) {
    const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    float positive;
    std::memcpy(&positive, &size, 4);
    const uint32_t small = bits_of(positive + 0.5f) - 0x3f000000;  // a whole number of 2^-24
    const uint32_t large = (size + 0xfff + (size >> 13 & 1) - 0x38000000) >> 13;
    return sign | (size < 0x38800000 ? small : large);
}

__attribute__((always_inline)) inline void decode(const Mean &of, int64_t start, int64_t width, float scale, float *out) {
    for (int64_t i = 0; i < width; i++) out[i] = of.values[of.codes[start + i]] * scale;
}

template <bool SIGNED>
__attribute__((always_inline)) inline void encode(const Mean &of, int64_t start, int64_t width, const float *values) {
    constexpr uint32_t SHIFT = SIGNED ? 4 : 3, INSIDE = (1 << SHIFT) - 1;
    float largest = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < width; i++) {
        const float size = SIGNED ? std::fabs(values[i]) : values[i];
        largest = size > largest ? size : largest;
    }
    const float share = 1.f / (largest > 1e-38f ? largest : 1e-38f);
    int64_t i = 0;
#ifdef __AVX512F__
    for (; i + 16 <= width; i += 16) {
        const __m512 value = _mm512_mul_ps(_mm512_loadu_ps(values + i), _mm512_set1_ps(share));
        const __m512i half = _mm512_cvtepu16_epi32(_mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        const __m512i place = SIGNED ? _mm512_xor_si512(half, _mm512_set1_epi32(0x8000))
                                     : _mm512_and_si512(half, _mm512_set1_epi32(0x7fff));
        const __m512i cell = _mm512_i32gather_epi32(_mm512_srli_epi32(place, SHIFT), of.cells, 4);
        const __mmask16 first = _mm512_cmplt_epu32_mask(_mm512_and_si512(place, _mm512_set1_epi32(INSIDE)),
                                                        _mm512_srli_epi32(cell, 16));
        const __m512i code = _mm512_mask_mov_epi32(_mm512_srli_epi32(cell, 8), first, cell);
        _mm_storeu_si128(reinterpret_cast<__m128i *>(of.codes + start + i), _mm512_cvtepi32_epi8(code));
    }
#endif
    for (; i < width; i++) {
        const uint32_t half = half_of(values[i] * share);
        const uint32_t place = SIGNED ? half ^ 0x8000 : half & 0x7fff;  // negative halves come first, zero before one
        const uint32_t cell = of.cells[place >> SHIFT];
        of.codes[start + i] = static_cast<uint8_t>((place & INSIDE) < cell >> 16 ? cell : cell >> 8);
    }
    of.scales[start / BLOCK] = largest;
}

__attribute__((always_inline)) inline void step(const Moments &of, int64_t start, int64_t width) {
    float mean[BLOCK], root[BLOCK];
    const float *gradient = of.gradient + start;
    float *__restrict weight = of.weight + start;
    decode(of.mean, start, width, of.mean.scales[start / BLOCK], mean);
    decode(of.root, start, width, of.root.scales[start / BLOCK], root);
    for (int64_t i = 0; i < width; i++) {
        mean[i] = std::fma(of.forget_mean, gradient[i] - mean[i], mean[i]);
        const float kept = root[i] * root[i] * of.keep_squares;
        root[i] = std::sqrt(std::fma(of.forget_squares * gradient[i], gradient[i], kept));
        const float decayed = weight[i] * of.decay;
        weight[i] = decayed + of.rate * mean[i] / (root[i] + of.eps);
    }
    encode<true>(of.mean, start, width, mean);
    encode<false>(of.root, start, width, root);
}

}  // namespace

extern "C" void moments(const Moments *given, int threads) {
    const Moments &of = *given;
#pragma omp parallel for num_threads(threads)
    for (int64_t start = 0; start < of.count; start += BLOCK) {
        if (of.count - start >= BLOCK) step(of, start, BLOCK);
        else step(of, start, of.count - start);
    }
}
