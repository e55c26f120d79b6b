// Products of few rows with matrices, and attention over a cache in pages (arXiv:2309.06180).
//
// Weights stand in tiles in the order in which they are multiplied, so that a product reads them once, from end to end:
// with few rows that reading is all that it costs. Every row is computed in the same order whatever rows there are
// beside it.
#pragma once

#include "tiles.h"

#ifdef BLOCKS
#include <type_traits>

namespace {

constexpr int64_t PLACES = 64, GROUP = 16;  // tokens of a page; those whose keys stand side by side

constexpr int64_t AHEAD = 4096;  // figures between what is multiplied and what is fetched

// 32 outputs of R rows, out of pairs of tiles; they take the place of what is in `out`, or are added to it.
template <int R>
inline void few(const bf16 *x, int64_t step, const bf16 *tiles, int64_t depth, bf16 *out, int64_t width, int64_t rows,
                __mmask32 which, bool fetches, bool adds = false) {
    __m512 sums[R][2];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) sums[i][0] = sums[i][1] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; k++) {
        const bf16 *tile = tiles + 2 * k * TILE;
        for (int pair = 0; pair < 16; pair++) {
            if (fetches) {
                _mm_prefetch(tile + AHEAD + pair * 32, _MM_HINT_T0);
                _mm_prefetch(tile + AHEAD + TILE + pair * 32, _MM_HINT_T0);
            }
            const __m512bh left = reinterpret_cast<__m512bh>(_mm512_load_si512(tile + pair * 32));
            const __m512bh right = reinterpret_cast<__m512bh>(_mm512_load_si512(tile + TILE + pair * 32));
#pragma GCC unroll 8
            for (int i = 0; i < R; i++) {
                int32_t both;
                std::memcpy(&both, x + i * step + k * 32 + pair * 2, 4);
                const __m512bh one = reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
                sums[i][0] = _mm512_dpbf16_ps(sums[i][0], left, one);
                sums[i][1] = _mm512_dpbf16_ps(sums[i][1], right, one);
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
        if (i >= rows) continue;
        bf16 *place = out + i * width;
        if (adds) {
            sums[i][0] = _mm512_add_ps(wide16(place, which), sums[i][0]);
            sums[i][1] = _mm512_add_ps(wide16(place + 16, which >> 16), sums[i][1]);
        }
        _mm512_mask_storeu_epi16(place, which, narrow32(sums[i][0], sums[i][1]));
    }
}

// The same in 8 bits. Products are of numbers without a sign by those with one: 128 was added to the weights, and what
// that adds to the sums is taken away again.
template <int R>
inline void few(const int8_t *x, int64_t step, const uint8_t *tiles, int64_t depth, const float *x_scale,
                const float *scale, bf16 *out, int64_t width, int64_t rows, __mmask32 which, bool fetches) {
    __m512i sums[R][2];
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) sums[i][0] = sums[i][1] = _mm512_setzero_si512();
    for (int64_t k = 0; k < depth; k++) {
        const uint8_t *tile = tiles + k * 2048;
        for (int four = 0; four < 16; four++) {
            if (fetches) {
                _mm_prefetch(tile + 2 * AHEAD + four * 64, _MM_HINT_T0);
                _mm_prefetch(tile + 2 * AHEAD + 1024 + four * 64, _MM_HINT_T0);
            }
            const __m512i left = _mm512_load_si512(tile + four * 64), right = _mm512_load_si512(tile + 1024 + four * 64);
#pragma GCC unroll 8
            for (int i = 0; i < R; i++) {
                int32_t inputs;
                std::memcpy(&inputs, x + i * step + k * 64 + four * 4, 4);
                const __m512i one = _mm512_set1_epi32(inputs);
                add_fours(sums[i][0], left, one);
                add_fours(sums[i][1], right, one);
            }
        }
    }
    const __m512 first = _mm512_loadu_ps(scale), second = _mm512_loadu_ps(scale + 16);
#pragma GCC unroll 8
    for (int i = 0; i < R; i++) {
        if (i >= rows) continue;
        __m512i added = _mm512_setzero_si512();
        for (int64_t k = 0; k < depth; k++)
            added = _mm512_dpbusd_epi32(added, _mm512_set1_epi8(-128), _mm512_loadu_si512(x + i * step + k * 64));
        const __m512i less = _mm512_set1_epi32(_mm512_reduce_add_epi32(added));
        const __m512 own = _mm512_set1_ps(x_scale[i]);
        const __m512 one = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[i][0], less));
        const __m512 other = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[i][1], less));
        _mm512_mask_storeu_epi16(out + i * width, which, narrow32(_mm512_mul_ps(_mm512_mul_ps(one, first), own),
                                                                  _mm512_mul_ps(_mm512_mul_ps(other, second), own)));
    }
}

// each(R, first row, rows left) for rows in eights, the last ones in fewer.
template <class Each>
inline void in_eights(int64_t rows, Each each) {
    for (int64_t row = 0; row < rows; row += 8) {
        const int64_t left = rows - row;
        if (left == 1) each(std::integral_constant<int, 1>(), row, left);
        else if (left == 2) each(std::integral_constant<int, 2>(), row, left);
        else if (left <= 4) each(std::integral_constant<int, 4>(), row, left);
        else each(std::integral_constant<int, 8>(), row, left);
    }
}

struct Cache {  // of one layer: keys [page, head, group, width / 2, 16, 2] and values [page, head, place, width]
    bf16 *keys, *values;
    int64_t heads, width;

    bf16 *key_page(int64_t page, int64_t head) const { return keys + (page * heads + head) * PLACES * width; }
    bf16 *value_page(int64_t page, int64_t head) const { return values + (page * heads + head) * PLACES * width; }
};

inline void keep_row(const Cache &cache, int64_t head, int64_t place, const bf16 *key, const bf16 *value) {
    const int64_t page = place / PLACES, at = place % PLACES;
    bf16 *to = cache.key_page(page, head) + at / GROUP * GROUP * cache.width + at % GROUP * 2;
    for (int64_t pair = 0; pair < cache.width / 2; pair++) std::memcpy(to + pair * 32, key + pair * 2, 4);
    std::memcpy(cache.value_page(page, head) + at * cache.width, value, cache.width * 2);
}

struct Sight {  // what a row sees: places [first, last) of its pages
    const int32_t *pages;
    int64_t first, last;
};

// scores [Q, places of whole pages] of Q queries that share a head of keys.
template <int Q>
void score(const Cache &cache, int64_t head, const bf16 *query, Sight sight, float *scores, int64_t step) {
    const int64_t groups = PLACES / GROUP, size = GROUP * cache.width;
    for (int64_t page = sight.first / PLACES; page * PLACES < sight.last; page++) {
        const bf16 *keys = cache.key_page(sight.pages[page], head);
        __m512 sums[Q][groups];
        for (int q = 0; q < Q; q++)
            for (int g = 0; g < groups; g++) sums[q][g] = _mm512_setzero_ps();
        for (int64_t pair = 0; pair < cache.width / 2; pair++) {
            __m512bh held[groups];
            for (int g = 0; g < groups; g++)
                held[g] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(keys + g * size + pair * 32));
            for (int q = 0; q < Q; q++) {
                int32_t both;
                std::memcpy(&both, query + q * cache.width + pair * 2, 4);
                const __m512bh one = reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
                for (int g = 0; g < groups; g++) sums[q][g] = _mm512_dpbf16_ps(sums[q][g], held[g], one);
            }
        }
        for (int q = 0; q < Q; q++)
            for (int g = 0; g < groups; g++)
                _mm512_storeu_ps(scores + q * step + page * PLACES + g * GROUP, sums[q][g]);
    }
}

// scores [first, last) become 2^(score * scale - the largest); returns their sum. Whole vectors: others become 0.
float powers(float *scores, Sight sight, float scale) {
    const int64_t begin = sight.first / GROUP * GROUP;
    auto seen = [&](int64_t i) {
        return static_cast<__mmask16>(first_of(sight.last - i) & ~first_of(sight.first - i));
    };
    __m512 top = _mm512_set1_ps(-__builtin_inff()), sum = _mm512_setzero_ps();
    for (int64_t i = begin; i < sight.last; i += GROUP)
        top = _mm512_mask_max_ps(top, seen(i), top, _mm512_loadu_ps(scores + i));
    const __m512 most = _mm512_set1_ps(_mm512_reduce_max_ps(top)), factor = _mm512_set1_ps(scale);
    for (int64_t i = begin; i < sight.last; i += GROUP) {
        __m512 away = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + i), most), factor);
        __m512 power = _mm512_maskz_mov_ps(seen(i), power_of_2(away));
        _mm512_storeu_ps(scores + i, power);
        sum = _mm512_add_ps(sum, power);
    }
    return _mm512_reduce_add_ps(sum);
}

// C * 16 columns of the mixed values of Q queries.
template <int Q, int C>
void mix(const Cache &cache, int64_t head, const float *scores, int64_t step, const float *sums, Sight sight,
         int64_t column, bf16 *out) {
    __m512 mixed[Q][C];
    for (int q = 0; q < Q; q++)
        for (int c = 0; c < C; c++) mixed[q][c] = _mm512_setzero_ps();
    for (int64_t place = sight.first; place < sight.last; place++) {
        const bf16 *value = cache.value_page(sight.pages[place / PLACES], head) + place % PLACES * cache.width + column;
        __m512 held[C];
        for (int c = 0; c < C; c++) held[c] = wide16(value + c * 16, 0xffff);
        for (int q = 0; q < Q; q++) {
            const __m512 power = _mm512_set1_ps(scores[q * step + place]);
            for (int c = 0; c < C; c++) mixed[q][c] = _mm512_fmadd_ps(power, held[c], mixed[q][c]);
        }
    }
    for (int q = 0; q < Q; q++)
        for (int c = 0; c < C; c++) {
            const __m512 done = _mm512_div_ps(mixed[q][c], _mm512_set1_ps(sums[q]));
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(out + q * cache.width + column + c * 16),
                                reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(done)));
        }
}

template <int Q>
void attend_queries(const Cache &cache, int64_t head, const bf16 *query, Sight sight, float scale, float *scores,
                    int64_t step, bf16 *out) {
    score<Q>(cache, head, query, sight, scores, step);
    float sums[Q];
    for (int q = 0; q < Q; q++) sums[q] = powers(scores + q * step, sight, scale * 1.44269504f);
    int64_t column = 0;
    for (; column + 64 <= cache.width; column += 64) mix<Q, 4>(cache, head, scores, step, sums, sight, column, out);
    for (; column < cache.width; column += 16) mix<Q, 1>(cache, head, scores, step, sums, sight, column, out);
}

inline Sight seen_by(const int32_t *pages, int64_t length, int64_t window) {
    return {pages, window > 0 ? most(0, length - window) : 0, length};
}

// out [group * width] = attention of the queries [group * width] of one key head; scores [4, step].
inline void attend_head(const Cache &cache, int64_t head, const bf16 *query, Sight sight, int64_t group, float scale,
                        float *scores, int64_t step, bf16 *out) {
    for (int64_t q = 0; q < group; q += 4) {
        const bf16 *from = query + q * cache.width;
        bf16 *to = out + q * cache.width;
        switch (least(group - q, 4)) {
        case 1: attend_queries<1>(cache, head, from, sight, scale, scores, step, to); break;
        case 2: attend_queries<2>(cache, head, from, sight, scale, scores, step, to); break;
        case 3: attend_queries<3>(cache, head, from, sight, scale, scores, step, to); break;
        default: attend_queries<4>(cache, head, from, sight, scale, scores, step, to);
        }
    }
}

}  // namespace
#endif
