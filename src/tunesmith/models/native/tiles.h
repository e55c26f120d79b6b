// Products of blocks in bf16: in tiles of AMX, 8 of them, of 16 rows of 64 bytes; without AMX in vectors of AVX-512.
//
// The right side of a product holds two of its rows side by side in every number of 32 bits. Such tiles are made of rows
// in two ways: `across`, for products with the rows transposed, and `pairs`, for products with the rows as they are.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VNNI__) && defined(__linux__)
#define BLOCKS  // blocks can be multiplied
#include <immintrin.h>
#if defined(__AMX_INT8__) && defined(__AMX_BF16__)
#define TILES  // and tiles do it
#endif
#endif

namespace {

struct bf16 { uint16_t bits; };

#ifdef BLOCKS
#ifdef TILES
struct TileConfig {  // palette 1: all tiles whole
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Tiles are ours while this lives; whoever had them before gets them back as they were set up.
class Tiles {
    TileConfig before;

public:
    Tiles() {
        TileConfig ours;
        _tile_storeconfig(&before);
        _tile_loadconfig(&ours);
    }
    ~Tiles() {
        if (before.palette) _tile_loadconfig(&before); else _tile_release();
    }
    Tiles(const Tiles &) = delete;
};
#else
struct Tiles {
    Tiles() {}  // nothing to set up
};
#endif

constexpr int64_t TILE = 512;  // figures of a tile

inline int64_t up(int64_t count, int64_t step) { return (count + step - 1) / step * step; }
inline int64_t least(int64_t one, int64_t other) { return one < other ? one : other; }
inline int64_t most(int64_t one, int64_t other) { return one > other ? one : other; }

template <class T>
class Buffer {  // memory of one thread, taken once and written over: fresh memory costs more than what is done in it
    T *data = nullptr;
    int64_t size = 0;

public:
    T *of(int64_t count) {
        if (count > size) {
            std::free(data);
            data = static_cast<T *>(std::aligned_alloc(64, up(count * sizeof(T), 64)));
            size = count;
        }
        return data;
    }
    ~Buffer() { std::free(data); }
};

// 2^x within 3e-6 of its size; 0 far below, NaN for NaN.
inline __m512 power_of_2(__m512 x) {
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 rest = _mm512_sub_ps(x, whole), sum = _mm512_set1_ps(1.33335581e-3f);
    for (float next : {9.61812911e-3f, 5.55041087e-2f, 2.40226507e-1f, 6.93147181e-1f, 1.f})
        sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(next));
    return _mm512_scalef_ps(sum, whole);
}

inline __mmask16 first_of(int64_t count) { return count >= 16 ? 0xffff : (1u << most(count, 0)) - 1; }
inline __mmask32 first_of_32(int64_t count) { return count >= 32 ? 0xffffffff : (1u << most(count, 0)) - 1; }

// Rows of `width` figures, filled up with zeros to `wide` of them and to `count` rows.
class Rows {
    bf16 *to;
    int64_t width, wide, left;

public:
    Rows(bf16 *to, int64_t count, int64_t width, int64_t wide) : to(to), width(width), wide(wide), left(count) {}
    void put(const bf16 *from) {
        for (int64_t i = 0; i < wide; i += 32, to += 32)
            _mm512_storeu_si512(to, _mm512_maskz_loadu_epi16(first_of_32(width - i), from + i));
        left--;
    }
    void fill() { std::memset(to, 0, left * wide * sizeof(bf16)); }
};

inline __m512 wide16(const bf16 *place, __mmask16 which) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(which, place)), 16));
}

inline __m512i narrow32(__m512 first, __m512 second) {
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
}

inline __m512i lanes(__m512i one, __m512i other, bool odd) {
    return odd ? _mm512_shuffle_i32x4(one, other, 0xdd) : _mm512_shuffle_i32x4(one, other, 0x88);
}

// 16 rows of 16 numbers of 32 bits become columns.
inline void transpose(__m512i *rows) {
    __m512i twos[16], fours[16];
    for (int i = 0; i < 16; i += 2) {
        twos[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        twos[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            fours[i + 2 * j] = _mm512_unpacklo_epi64(twos[i + j], twos[i + 2 + j]);
            fours[i + 2 * j + 1] = _mm512_unpackhi_epi64(twos[i + j], twos[i + 2 + j]);
        }
    for (int j = 0; j < 4; j++)
        for (int odd = 0; odd < 2; odd++) {
            __m512i upper = lanes(fours[j], fours[4 + j], odd), lower = lanes(fours[8 + j], fours[12 + j], odd);
            rows[4 * odd + j] = lanes(upper, lower, false);
            rows[8 + 4 * odd + j] = lanes(upper, lower, true);
        }
}

// rows [count, wide] as tiles [count / 16][wide / 32]: the right side of x rows^T.
void across(const bf16 *rows, int64_t count, int64_t wide, bf16 *tiles) {
    for (int64_t row = 0; row < count; row += 16)
        for (int64_t left = 0; left < wide; left += 32, tiles += TILE) {
            __m512i held[16];
            for (int i = 0; i < 16; i++) held[i] = _mm512_loadu_si512(rows + (row + i) * wide + left);
            transpose(held);
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(tiles + i * 32, held[i]);
        }
}

// rows [count, wide] as tiles [count / 32][wide / 16]: the right side of x rows.
void pairs(const bf16 *rows, int64_t count, int64_t wide, bf16 *tiles) {
    for (int64_t row = 0; row < count; row += 32)
        for (int64_t left = 0; left < wide; left += 16, tiles += TILE)
            for (int i = 0; i < 16; i++) {
                const bf16 *one = rows + (row + 2 * i) * wide + left;
                auto half = [](const bf16 *place) {
                    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(place)));
                };
                _mm512_storeu_si512(tiles + i * 32, _mm512_or_si512(half(one), _mm512_slli_epi32(half(one + wide), 16)));
            }
}

// The rows of `pairs` as columns: out [wide, count], its rows `step` apart.
void columns(const bf16 *tiles, int64_t count, int64_t wide, bf16 *out, int64_t step) {
    for (int64_t row = 0; row < count; row += 32)
        for (int64_t left = 0; left < wide; left += 16, tiles += TILE) {
            __m512i held[16];
            for (int i = 0; i < 16; i++) held[i] = _mm512_loadu_si512(tiles + i * 32);
            transpose(held);
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(out + (left + i) * step + row, held[i]);
        }
}

struct Right {  // tiles on the right of a product: the step to the next 16 columns, and to the next 32 rows
    const bf16 *tiles;
    int64_t column, row;
};

#ifdef TILES
// out [32, 32] = left [32, 32 * depth] right, or is added to.
inline void multiply(const bf16 *left, int64_t left_step, Right right, int64_t depth, float *out, int64_t out_step,
                     bool add) {
    if (add) {
        _tile_loadd(0, out, out_step * 4);
        _tile_loadd(1, out + 16, out_step * 4);
        _tile_loadd(2, out + 16 * out_step, out_step * 4);
        _tile_loadd(3, out + 16 * out_step + 16, out_step * 4);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < depth; k++) {
        const bf16 *tile = right.tiles + k * right.row;
        _tile_loadd(4, left + k * 32, left_step * 2);
        _tile_loadd(6, tile, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, tile + right.column, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, left + 16 * left_step + k * 32, left_step * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, out_step * 4);
    _tile_stored(1, out + 16, out_step * 4);
    _tile_stored(2, out + 16 * out_step, out_step * 4);
    _tile_stored(3, out + 16 * out_step + 16, out_step * 4);
}
#else
// sums [R, 16 C] += left [R, 32] right, of C tiles that lie `column` apart.
template <int R, int C>
inline void add_products(const bf16 *left, int64_t left_step, const bf16 *tile, int64_t column, __m512 (&sums)[R][C]) {
    for (int pair = 0; pair < 16; pair++) {
        __m512bh right[C];
        for (int j = 0; j < C; j++)
            right[j] = reinterpret_cast<__m512bh>(_mm512_load_si512(tile + j * column + pair * 32));
#pragma GCC unroll 16
        for (int i = 0; i < R; i++) {
            int32_t both;
            std::memcpy(&both, left + i * left_step + pair * 2, 4);
            const __m512bh one = reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
#pragma GCC unroll 4
            for (int j = 0; j < C; j++) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], right[j], one);
        }
    }
}

// out [32, 32] = left [32, 32 * depth] right, or is added to. 16 sums are under way at once: a product takes several
// cycles, of which two can begin.
inline void multiply(const bf16 *left, int64_t left_step, Right right, int64_t depth, float *out, int64_t out_step,
                     bool add) {
    for (int row = 0; row < 32; row += 8) {
        __m512 sums[8][2];
        float *place = out + row * out_step;
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            for (int j = 0; j < 2; j++)
                sums[i][j] = add ? _mm512_loadu_ps(place + i * out_step + j * 16) : _mm512_setzero_ps();
        for (int64_t k = 0; k < depth; k++)
            add_products(left + row * left_step + k * 32, left_step, right.tiles + k * right.row, right.column, sums);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            for (int j = 0; j < 2; j++) _mm512_storeu_ps(place + i * out_step + j * 16, sums[i][j]);
    }
}
#endif

// sums += the products of 4 numbers each. Not by the intrinsic function: GCC 12 copies its sums to and fro.
inline void add_fours(__m512i &sums, __m512i plain, __m512i with_sign) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(plain), "v"(with_sign));
}

void put_row(const float *row, float times, int64_t width, bf16 *out) {
    const __m512 factor = _mm512_set1_ps(times);
    for (int64_t i = 0; i < width; i += 32) {
        __m512i both = narrow32(_mm512_mul_ps(_mm512_loadu_ps(row + i), factor),
                                _mm512_mul_ps(_mm512_loadu_ps(row + i + 16), factor));
        _mm512_mask_storeu_epi16(out + i, first_of_32(width - i), both);
    }
}
#endif

}  // namespace
