// The parts of a step of decoding, each as a pass of its own.

#include "decode.h"

#ifdef BLOCKS
// out [rows, outputs] = x weights^T for rows of `step` figures, a multiple of 32; `tiles` are those of `pack`.
extern "C" void few_rows(const bf16 *x, int64_t step, const bf16 *tiles, bf16 *out, int64_t rows, int64_t outputs,
                         int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t column = 0; column < outputs; column += 32)
        in_eights(rows, [&](auto count, int64_t row, int64_t left) {
            few<count>(x + row * step, step, tiles + column * step, step / 32, out + row * outputs + column, outputs,
                       left, first_of_32(outputs - column), row == 0);
        });
}

// The same in 8 bits, rows of a multiple of 64 figures, each with its scale; tiles [outputs / 32, inputs / 64, 2, 16,
// 16, 4] of weights + 128, with a scale for every output.
extern "C" void few_rows_int8(const int8_t *x, int64_t step, const float *x_scale, const uint8_t *tiles,
                              const float *scale, bf16 *out, int64_t rows, int64_t outputs, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t column = 0; column < outputs; column += 32)
        in_eights(rows, [&](auto count, int64_t row, int64_t left) {
            few<count>(x + row * step, step, tiles + column * step, step / 64, x_scale + row, scale + column,
                       out + row * outputs + column, outputs, left, first_of_32(outputs - column), row == 0);
        });
}

// weights [outputs, inputs] in tiles [outputs / 32, inputs / 32, 2], filled up with zeros.
extern "C" void pack(const bf16 *weights, int64_t outputs, int64_t inputs, bf16 *tiles, int threads) {
    const int64_t wide = up(inputs, 32);
#pragma omp parallel num_threads(threads)
    {
        static thread_local Buffer<bf16> rows, column;
        bf16 *held = rows.of(16 * wide), *own = column.of(16 * wide);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < up(outputs, 32); row += 16) {
            Rows filled(held, 16, inputs, wide);
            for (int64_t i = row; i < least(row + 16, outputs); i++) filled.put(weights + i * inputs);
            filled.fill();
            across(held, 16, wide, own);
            bf16 *to = tiles + row / 32 * 32 * wide + row / 16 % 2 * TILE;
            for (int64_t k = 0; k < wide / 32; k++) std::memcpy(to + 2 * k * TILE, own + k * TILE, TILE * sizeof(bf16));
        }
    }
}

// Keys and values [heads, rows, width] of new tokens into their places: page * 64 + the place in the page.
extern "C" void keep(bf16 *keys, bf16 *values, const bf16 *key, const bf16 *value, const int64_t *places, int64_t heads,
                     int64_t rows, int64_t width) {
    const Cache cache{keys, values, heads, width};
    for (int64_t head = 0; head < heads; head++)
        for (int64_t row = 0; row < rows; row++) {
            const int64_t from = (head * rows + row) * width;
            keep_row(cache, head, places[row], key + from, value + from);
        }
}

// out [rows, heads * group * width] = attention of queries [heads, rows, group * width] over the pages [rows, most] of
// every row, of which it sees the last `window` (0: all) of its `lengths` places.
extern "C" void attend_pages(const bf16 *query, bf16 *keys, bf16 *values, const int32_t *pages, const int64_t *lengths,
                             bf16 *out, int64_t rows, int64_t heads, int64_t group, int64_t width, int64_t most_pages,
                             int64_t window, float scale, int threads) {
    const Cache cache{keys, values, heads, width};
    const int64_t step = most_pages * PLACES;
#pragma omp parallel num_threads(threads)
    {
        static thread_local Buffer<float> memory;
        float *scores = memory.of(4 * step);
#pragma omp for collapse(2) schedule(static)
        for (int64_t row = 0; row < rows; row++)
            for (int64_t head = 0; head < heads; head++) {
                const Sight sight = seen_by(pages + row * most_pages, lengths[row], window);
                attend_head(cache, head, query + (head * rows + row) * group * width, sight, group, scale, scores,
                            step, out + (row * heads + head) * group * width);
            }
    }
}
#endif
