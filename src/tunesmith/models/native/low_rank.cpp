// Both products of the gradient of low-rank factors in one pass over the wide rows, in tiles of bf16 with sums in fp32.
//
// The rows are worked off in chunks of fixed size, each with sums of its own, so that results do not depend on the number
// of threads. The same in torch: models/layer/projection.py.

#include "tiles.h"

#ifdef BLOCKS
namespace {

constexpr int64_t CHUNK = 512;  // rows with sums of their own
constexpr int64_t BLOCK = 64;   // rows taken at once

struct Fold {
    const bf16 *x;  // [rows, width]
    int64_t rows, width;
    const bf16 *low;  // [rows, ranks]
    int64_t ranks;
    const bf16 *b;  // [width, ranks]; null: nothing is lowered
    bf16 *lowered;  // [rows, ranks] = x b
    float *sums;    // [chunks, whole ranks, width], of each chunk low^T x
    int64_t whole() const { return up(ranks, 16); }
};

// `count` rows of `width` figures, filled up with zeros to `rows` and `wide`.
void padded(const bf16 *from, int64_t count, int64_t width, int64_t rows, int64_t wide, bf16 *out) {
    Rows to(out, rows, width, wide);
    for (int64_t row = 0; row < count; row++) to.put(from + row * width);
    to.fill();
}

// 32 rows of x from `x` on, columns [0, 16), as the right side of a product.
inline void pair_tile(const bf16 *x, int64_t step, bf16 *tile) {
    for (int i = 0; i < 16; i++) {
        __m512i even = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(x + 2 * i * step)));
        __m512i odd = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(x + (2 * i + 1) * step)));
        _mm512_store_si512(tile + i * 32, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
    }
}

#ifdef TILES
// sums [16, width] += left [16, BLOCK] x [BLOCK, width], and lowered [BLOCK, 16] = x b where there is b.
void fold_block(const bf16 *x, int64_t width, const bf16 *left, const bf16 *b, int64_t b_step, float *sums,
                float *lowered) {
    alignas(64) bf16 tile[2][TILE];
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t column = 0; column < width; column += 32) {
        for (int64_t half = 0; half < 32; half += 16) {
            pair_tile(x + column + half, width, tile[0]);
            pair_tile(x + 32 * width + column + half, width, tile[1]);
            _tile_loadd(4, sums + column + half, width * 4);
            _tile_loadd(6, left, 64);
            _tile_loadd(7, tile[0], 64);
            _tile_dpbf16ps(4, 6, 7);
            _tile_loadd(6, left + TILE, 64);
            _tile_loadd(7, tile[1], 64);
            _tile_dpbf16ps(4, 6, 7);
            _tile_stored(4, sums + column + half, width * 4);
        }
        if (b == nullptr) continue;
        _tile_loadd(7, b + column / 32 * b_step, 64);
        _tile_loadd(6, x + column, width * 2);
        _tile_dpbf16ps(0, 6, 7);
        _tile_loadd(6, x + 16 * width + column, width * 2);
        _tile_dpbf16ps(1, 6, 7);
        _tile_loadd(6, x + 32 * width + column, width * 2);
        _tile_dpbf16ps(2, 6, 7);
        _tile_loadd(6, x + 48 * width + column, width * 2);
        _tile_dpbf16ps(3, 6, 7);
    }
    if (b == nullptr) return;
    _tile_stored(0, lowered, 64);
    _tile_stored(1, lowered + 256, 64);
    _tile_stored(2, lowered + 512, 64);
    _tile_stored(3, lowered + 768, 64);
}
#else
// The same in vectors.
void fold_block(const bf16 *x, int64_t width, const bf16 *left, const bf16 *b, int64_t b_step, float *sums,
                float *lowered) {
    alignas(64) bf16 tile[TILE];
    for (int64_t column = 0; column < width; column += 16) {
        __m512 block[16][1];
        for (int i = 0; i < 16; i++) block[i][0] = _mm512_loadu_ps(sums + i * width + column);
        for (int64_t half = 0; half < 2; half++) {
            pair_tile(x + half * 32 * width + column, width, tile);
            add_products(left + half * TILE, 32, tile, 0, block);
        }
        for (int i = 0; i < 16; i++) _mm512_storeu_ps(sums + i * width + column, block[i][0]);
    }
    for (int64_t row = 0; b && row < BLOCK; row += 16) {
        __m512 block[16][1] = {};
        for (int64_t column = 0; column < width; column += 32)
            add_products(x + row * width + column, width, b + column / 32 * b_step, 0, block);
        for (int i = 0; i < 16; i++) _mm512_store_ps(lowered + (row + i) * 16, block[i][0]);
    }
}
#endif

// low [BLOCK, 16 ranks at a time] transposed: tiles [ranks / 16][BLOCK / 32].
void turned(const bf16 *low, int64_t wide, bf16 *tiles) {
    for (int64_t rank = 0; rank < wide; rank += 16)
        for (int64_t row = 0; row < BLOCK; row += 32, tiles += TILE) {
            pair_tile(low + row * wide + rank, wide, tiles);
            __m512i held[16];
            for (int i = 0; i < 16; i++) held[i] = _mm512_load_si512(tiles + i * 32);
            transpose(held);
            for (int i = 0; i < 16; i++) _mm512_store_si512(tiles + i * 32, held[i]);
        }
}

struct Work {  // of one thread
    Buffer<bf16> x, low, left;
};

void fold_chunk(const Fold &of, int64_t chunk, const bf16 *b, Work &work) {
    const int64_t whole = of.whole(), wide = up(of.ranks, 32);
    float *sums = of.sums + chunk * whole * of.width;
    std::memset(sums, 0, whole * of.width * sizeof(float));
    bf16 *low = work.low.of(BLOCK * wide), *left = work.left.of(BLOCK * wide);
    alignas(64) float lowered[BLOCK * 16];
    for (int64_t row = chunk * CHUNK; row < least((chunk + 1) * CHUNK, of.rows); row += BLOCK) {
        const int64_t count = least(BLOCK, of.rows - row);
        const bf16 *x = of.x + row * of.width;
        if (count < BLOCK) {
            bf16 *copy = work.x.of(BLOCK * of.width);
            padded(x, count, of.width, BLOCK, of.width, copy);
            x = copy;
        }
        padded(of.low + row * of.ranks, count, of.ranks, BLOCK, wide, low);
        turned(low, wide, left);
        for (int64_t rank = 0; rank < whole; rank += 16) {
            fold_block(x, of.width, left + rank / 16 * 2 * TILE, b ? b + rank / 16 * TILE : nullptr, wide / 16 * TILE,
                       sums + rank * of.width, lowered);
            for (int64_t i = 0; b && i < count; i++) {
                __m512 values = _mm512_load_ps(lowered + i * 16);
                _mm512_mask_storeu_epi16(of.lowered + (row + i) * of.ranks + rank, first_of(of.ranks - rank),
                                         narrow32(values, values));
            }
        }
    }
}

}  // namespace

extern "C" void fold(const Fold *given, int threads) {
    const Fold &of = *given;
    const int64_t wide = up(of.ranks, 32), chunks = (of.rows + CHUNK - 1) / CHUNK;
    Buffer<bf16> plain, tiles;
    bf16 *b = nullptr;
    if (of.b != nullptr) {
        padded(of.b, of.width, of.ranks, of.width, wide, plain.of(of.width * wide));
        b = tiles.of(of.width * wide);
        pairs(plain.of(0), of.width, wide, b);
    }
#pragma omp parallel num_threads(threads)
    {
        static thread_local Work work;
        Tiles ours;
#pragma omp for
        for (int64_t chunk = 0; chunk < chunks; chunk++) fold_chunk(of, chunk, b, work);
    }
}
#endif
