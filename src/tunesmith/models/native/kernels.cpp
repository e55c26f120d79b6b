// Passes over memory between the matmuls of a layer, each in one sweep. Every row is computed by one thread, in a fixed
// order, so that results do not depend on the number of threads. The same formulas in torch: models/layer/parts.py,
// models/forest_attention.py and models/head.py. Statistics are fp32 for every type of the states.
//
// A block of rows is given by its first element, the step from one outer row to the next, and the number of inner rows
// that follow each other at once: [T, N, D] with the rows of one t side by side.

#include <cmath>
#include <cstdint>
#include <vector>

#include "rows.h"
#include "tiles.h"

#ifdef TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

template <class T>
void norm(const T *x, int64_t x_step, const float *weight, float eps, T *out, int64_t out_step, float *factor,
          int64_t outer, int64_t inner, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < outer * inner; row++) {
        const T *from = x + row / inner * x_step + row % inner * width;
        factor[row] = norm_row(from, weight, eps, out + row / inner * out_step + row % inner * width, width);
    }
}

template <class T>
void norm_backward(const T *grad, int64_t grad_step, const T *x, int64_t x_step, const float *weight,
                   const float *factor, const T *beside, T *out, int64_t outer, int64_t inner, int64_t width,
                   int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < outer * inner; row++) {
        const T *slope = grad + row / inner * grad_step + row % inner * width;
        const T *from = x + row / inner * x_step + row % inner * width;
        T *to = out + row * width;
        float dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t i = 0; i < width; i++) dot += wide(slope[i]) * weight[i] * wide(from[i]);
        float scale = factor[row], pull = dot * scale * scale * scale / width;
        if (beside) {
            const T *other = beside + row * width;
#pragma omp simd
            for (int64_t i = 0; i < width; i++)
                put(to + i, wide(slope[i]) * weight[i] * scale - wide(from[i]) * pull + wide(other[i]));
        } else {
#pragma omp simd
            for (int64_t i = 0; i < width; i++)
                put(to + i, wide(slope[i]) * weight[i] * scale - wide(from[i]) * pull);
        }
    }
}

// The heads of one key stand side by side in both blocks; `sign` is -1 for the rotation back.
template <class T>
void rotate(const T *x, int64_t x_key, int64_t x_row, const T *cosine, const T *sine, T *out, int64_t out_key,
            int64_t out_row, int64_t keys, int64_t rows, int64_t group, int64_t width, float sign, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t head = 0; head < keys * group; head++)
            rotate_head(x + head / group * x_key + row * x_row + head % group * width, cosine + row * width,
                        sine + row * width, out + head / group * out_key + row * out_row + head % group * width, width,
                        sign);
}

template <class T>
void gate(const T *both, T *out, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++)
        gate_row(both + 2 * row * width, both + (2 * row + 1) * width, out + row * width, width);
}

template <class T>
void gate_backward(const T *grad, const T *both, T *grad_both, T *product, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        const T *slope = grad + row * width, *first = both + 2 * row * width, *second = first + width;
        T *to_first = grad_both + 2 * row * width, *to_second = to_first + width, *to = product + row * width;
#pragma omp simd
        for (int64_t i = 0; i < width; i++) {
            float value = wide(first[i]), other = wide(second[i]), pull = wide(slope[i]);
            float share = 1 / (1 + power(-value)), smooth = value * share;
            put(to_first + i, pull * other * share * (1 + value * (1 - share)));
            put(to_second + i, pull * smooth);
            put(to + i, smooth * other);
        }
    }
}

// scores [B, R * group, L] become softmax(scores + bias), bias [N, R, C] for the last C of the L columns, b % N its unit.
template <class T>
void softmax(T *scores, const T *bias, int64_t batches, int64_t units, int64_t rows, int64_t group, int64_t width,
             int64_t masked, int threads) {
    int64_t open = width - masked;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> held(width);
        float *powers = held.data();
#pragma omp for
        for (int64_t row = 0; row < batches * rows * group; row++) {
            T *place = scores + row * width;
            const T *mask = bias + (row / (rows * group) % units * rows + row % (rows * group) / group) * masked;
            float largest = -INFINITY, sum = 0;
#pragma omp simd reduction(max : largest)
            for (int64_t i = 0; i < open; i++) largest = greater(wide(place[i]), largest);
#pragma omp simd reduction(max : largest)
            for (int64_t i = 0; i < masked; i++) {
                powers[open + i] = wide(place[open + i]) + wide(mask[i]);
                largest = greater(powers[open + i], largest);
            }
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < open; i++) sum += powers[i] = power(wide(place[i]) - largest);
#pragma omp simd reduction(+ : sum)
            for (int64_t i = open; i < width; i++) sum += powers[i] = power(powers[i] - largest);
            float share = 1 / sum;
#pragma omp simd
            for (int64_t i = 0; i < width; i++) put(place + i, powers[i] * share);
        }
    }
}

template <class T>
void softmax_backward(T *slopes, const T *chances, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        T *place = slopes + row * width;
        const T *chance = chances + row * width;
        float dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t i = 0; i < width; i++) dot += wide(place[i]) * wide(chance[i]);
#pragma omp simd
        for (int64_t i = 0; i < width; i++) put(place + i, wide(chance[i]) * (wide(place[i]) - dot));
    }
}

// logits [R, V] become exp(logits - largest), where each row's `largest` grows first to what it holds; worth is
// exp(largest before - largest), and what the sums of powers are multiplied by before these are added.
template <class T>
void powers(T *logits, float *largest, float *sums, float *worth, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++) {
        T *place = logits + row * width;
        float top = largest[row], sum = 0;
#pragma omp simd reduction(max : top)
        for (int64_t i = 0; i < width; i++) top = greater(wide(place[i]), top);
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < width; i++) {
            float value = power(wide(place[i]) - top);
            put(place + i, value);
            sum += value;
        }
        worth[row] = power(largest[row] - top);
        sums[row] = sums[row] * worth[row] + sum;
        largest[row] = top;
    }
}

template <class T>
void quantize(const T *x, int8_t *result, int64_t result_step, float *scale, int64_t rows, int64_t width,
              int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t row = 0; row < rows; row++)
        scale[row] = quantize_row(x + row * width, result + row * result_step, width);
}

#ifdef BLOCKS
inline void put_32(float *place, __m512 first, __m512 second, __mmask32 which) {
    _mm512_mask_storeu_ps(place, which, first);
    _mm512_mask_storeu_ps(place + 16, which >> 16, second);
}
inline void put_32(bf16 *place, __m512 first, __m512 second, __mmask32 which) {
    __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
    if (which == 0xffffffff) _mm512_storeu_si512(place, both);
    else _mm512_mask_storeu_epi16(place, which, both);
}

#ifdef TILES
// A block of 32 rows and 32 columns: sums over `depth` times 64 products.
inline void tile_products(const int8_t *x, int64_t step, const int8_t *weights, int64_t depth, int32_t *sums) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < depth; k++) {
        _tile_loadd(4, x + k * 64, step);
        _tile_loadd(6, weights + k * 1024, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(7, weights + (depth + k) * 1024, 64);
        _tile_dpbssd(1, 4, 7);
        _tile_loadd(5, x + 16 * step + k * 64, step);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
    }
    _tile_stored(0, sums, 128);
    _tile_stored(1, sums + 16, 128);
    _tile_stored(2, sums + 16 * 32, 128);
    _tile_stored(3, sums + 16 * 32 + 16, 128);
}
#else
// The same in vectors. They multiply numbers without a sign by those with one, so 128 is added to the weights, and what
// that adds to the sums is taken away again.
inline void tile_products(const int8_t *x, int64_t step, const int8_t *weights, int64_t depth, int32_t *sums) {
    const __m512i sign = _mm512_set1_epi8(-128);
    for (int row = 0; row < 32; row += 8, x += 8 * step, sums += 8 * 32) {
        __m512i first[8], second[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) first[i] = second[i] = _mm512_setzero_si512();
        for (int64_t four = 0; four < 16 * depth; four++) {
            const __m512i left = _mm512_xor_si512(sign, _mm512_loadu_si512(weights + four * 64));
            const __m512i right = _mm512_xor_si512(sign, _mm512_loadu_si512(weights + depth * 1024 + four * 64));
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                int32_t inputs;
                std::memcpy(&inputs, x + i * step + four * 4, 4);
                const __m512i one = _mm512_set1_epi32(inputs);
                add_fours(first[i], left, one);
                add_fours(second[i], right, one);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            __m512i added = _mm512_setzero_si512();
            for (int64_t k = 0; k < depth; k++)
                added = _mm512_dpbusd_epi32(added, sign, _mm512_loadu_si512(x + i * step + k * 64));
            const __m512i less = _mm512_set1_epi32(_mm512_reduce_add_epi32(added));
            _mm512_storeu_si512(sums + i * 32, _mm512_sub_epi32(first[i], less));
            _mm512_storeu_si512(sums + i * 32 + 16, _mm512_sub_epi32(second[i], less));
        }
    }
}
#endif

template <class T>
inline void put_block(const int32_t *sums, const float *row_scale, const float *scale, T *out, int64_t step,
                      int64_t rows, int64_t columns) {
    const __m512 first = _mm512_loadu_ps(scale), second = _mm512_loadu_ps(scale + 16);
    const __mmask32 which = columns == 32 ? 0xffffffff : (1u << columns) - 1;
    for (int64_t i = 0; i < rows; i++) {
        __m512 own = _mm512_set1_ps(row_scale[i]);
        __m512 one = _mm512_cvtepi32_ps(_mm512_load_si512(sums + i * 32));
        __m512 other = _mm512_cvtepi32_ps(_mm512_load_si512(sums + i * 32 + 16));
        put_32(out + i * step, _mm512_mul_ps(_mm512_mul_ps(one, first), own),
               _mm512_mul_ps(_mm512_mul_ps(other, second), own), which);
    }
}

// out = (x * its scale) (weights * their scale). x stands in rows of `step` bytes, a multiple of 32 rows of them;
// weights [N / 16, K / 64, 16, 16, 4] hold in each tile 4 inputs of 16 outputs side by side, K = step, N a multiple of 32.
template <class T>
void products(const int8_t *x, int64_t step, const float *x_scale, const int8_t *weights, const float *scale, T *out,
              int64_t rows, int64_t width, int threads) {
    const int64_t depth = step / 64, held = (1 << 19) / step / 32 * 32, panel = held > 32 ? held : 32;
#pragma omp parallel num_threads(threads)
    {
        Tiles ours;
        alignas(64) int32_t sums[32 * 32];
#pragma omp for collapse(2)
        for (int64_t left = 0; left < width; left += panel)  // weights of a panel stay in the cache
            for (int64_t row = 0; row < rows; row += 32)
                for (int64_t column = left; column < width && column < left + panel; column += 32) {
                    tile_products(x + row * step, step, weights + column * step, depth, sums);
                    put_block(sums, x_scale + row, scale + column, out + row * width + column, width,
                              least(rows - row, 32), least(width - column, 32));
                }
    }
}
#else
template <class T>
void products(const int8_t *, int64_t, const float *, const int8_t *, const float *, T *, int64_t, int64_t, int) {}
#endif

}  // namespace

#define EXPORT(NAME, T)                                                                                                \
    extern "C" void norm_##NAME(const T *x, int64_t xs, const float *w, float eps, T *out, int64_t os, float *factor,  \
                                int64_t outer, int64_t inner, int64_t width, int threads) {                            \
        norm(x, xs, w, eps, out, os, factor, outer, inner, width, threads);                                            \
    }                                                                                                                  \
    extern "C" void norm_backward_##NAME(const T *g, int64_t gs, const T *x, int64_t xs, const float *w,               \
                                         const float *factor, const T *beside, T *out, int64_t outer, int64_t inner,   \
                                         int64_t width, int threads) {                                                 \
        norm_backward(g, gs, x, xs, w, factor, beside, out, outer, inner, width, threads);                             \
    }                                                                                                                  \
    extern "C" void rotate_##NAME(const T *x, int64_t xk, int64_t xr, const T *c, const T *s, T *out, int64_t ok,      \
                                  int64_t orow, int64_t keys, int64_t rows, int64_t group, int64_t width, float sign,  \
                                  int threads) {                                                                       \
        rotate(x, xk, xr, c, s, out, ok, orow, keys, rows, group, width, sign, threads);                               \
    }                                                                                                                  \
    extern "C" void gate_##NAME(const T *both, T *out, int64_t rows, int64_t width, int threads) {                     \
        gate(both, out, rows, width, threads);                                                                         \
    }                                                                                                                  \
    extern "C" void gate_backward_##NAME(const T *g, const T *both, T *gb, T *product, int64_t rows, int64_t width,    \
                                         int threads) {                                                                \
        gate_backward(g, both, gb, product, rows, width, threads);                                                     \
    }                                                                                                                  \
    extern "C" void softmax_##NAME(T *scores, const T *bias, int64_t batches, int64_t units, int64_t rows,             \
                                   int64_t group, int64_t width, int64_t masked, int threads) {                        \
        softmax(scores, bias, batches, units, rows, group, width, masked, threads);                                    \
    }                                                                                                                  \
    extern "C" void softmax_backward_##NAME(T *slopes, const T *chances, int64_t rows, int64_t width, int threads) {   \
        softmax_backward(slopes, chances, rows, width, threads);                                                       \
    }                                                                                                                  \
    extern "C" void powers_##NAME(T *logits, float *largest, float *sums, float *worth, int64_t rows, int64_t width,   \
                                  int threads) {                                                                       \
        powers(logits, largest, sums, worth, rows, width, threads);                                                    \
    }                                                                                                                  \
    extern "C" void quantize_##NAME(const T *x, int8_t *result, int64_t step, float *scale, int64_t rows,              \
                                    int64_t width, int threads) {                                                      \
        quantize(x, result, step, scale, rows, width, threads);                                                        \
    }                                                                                                                  \
    extern "C" void products_##NAME(const int8_t *x, int64_t step, const float *xs, const int8_t *w, const float *ws,  \
                                    T *out, int64_t rows, int64_t width, int threads) {                                \
        products(x, step, xs, w, ws, out, rows, width, threads);                                                       \
    }

EXPORT(bfloat16, bf16)
EXPORT(float32, float)

// Whether blocks can be multiplied. Where tiles do it, the system must let this process use them.
extern "C" int multiplies_blocks() {
#ifdef TILES
    const int request = 0x1023, tiles = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request, tiles) == 0;
#elif defined(BLOCKS)
    return 1;
#else
    return 0;
#endif
}
