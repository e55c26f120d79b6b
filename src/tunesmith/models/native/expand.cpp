// Weights that are held in 4 or 8 bits, in full: every number a value times a constant, formed in fp32 and rounded once.
// The same in torch, to the bit: models/quantized/codes.py and models/quantized/packed.py.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "tiles.h"

#if defined(__AVX512F__) && defined(__AVX512BW__)
#define WIDE
#include <immintrin.h>
#endif

namespace {

constexpr int64_t AT_ONCE = 64;  // blocks, or rows, that a thread takes

inline void put(float *place, float value) { *place = value; }
inline void put(bf16 *place, float value) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    place->bits = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#ifdef WIDE
inline void put16(float *place, __m512 values) { _mm512_storeu_ps(place, values); }
inline void put16(bf16 *place, __m512 values) {
    __m512i bits = _mm512_castps_si512(values);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(place), _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
}
#endif

// `count` numbers of one block; the first code of a byte is in its upper half.
template <class T>
void block_of_4(const uint8_t *codes, const float *table, float constant, T *out, int64_t count) {
    int64_t done = 0;
#ifdef WIDE
    const __m512 values = _mm512_mul_ps(_mm512_loadu_ps(table), _mm512_set1_ps(constant));
    for (; done + 16 <= count; done += 16) {
        __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(codes + done / 2));
        __m128i first = _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15));
        __m128i second = _mm_and_si128(bytes, _mm_set1_epi8(15));
        __m512i places = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(first, second));
        put16(out + done, _mm512_permutexvar_ps(places, values));
    }
#endif
    for (; done < count; done++) {
        int code = done % 2 ? codes[done / 2] & 15 : codes[done / 2] >> 4;
        put(out + done, table[code] * constant);
    }
}

template <class T>
void expand_4(const uint8_t *codes, const float *table, const float *constants, int64_t block, T *out, int64_t count,
              int threads) {
    const int64_t blocks = (count + block - 1) / block;
#pragma omp parallel for num_threads(threads)
    for (int64_t first = 0; first < blocks; first += AT_ONCE)
        for (int64_t i = first; i < std::min(first + AT_ONCE, blocks); i++)
            block_of_4(codes + i * block / 2, table, constants[i], out + i * block, std::min(block, count - i * block));
}

template <class T>
void expand_8(const int8_t *codes, const float *constants, T *out, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const int8_t *from = codes + row * width;
        T *to = out + row * width;
        const float constant = constants[row];
#pragma omp simd
        for (int64_t i = 0; i < width; i++) put(to + i, from[i] * constant);
    }
}

}  // namespace

#define ENTRY(T, name)                                                                                                 \
    extern "C" void expand_4_##name(const uint8_t *codes, const float *table, const float *constants, int64_t block,   \
                                    T *out, int64_t count, int threads) {                                              \
        expand_4(codes, table, constants, block, out, count, threads);                                                 \
    }                                                                                                                  \
    extern "C" void expand_8_##name(const int8_t *codes, const float *constants, T *out, int64_t rows, int64_t width,  \
                                    int threads) {                                                                     \
        expand_8(codes, constants, out, rows, width, threads);                                                         \
    }
ENTRY(float, float32)
ENTRY(bf16, bfloat16)
