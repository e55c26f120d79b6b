// Products of many rows with a matrix in bf16, a low-rank product added before they are rounded, in vectors of AVX-512.
//
// The matrix is read as it lies and laid out in panels, so that no second copy of it is kept: two panels of 64 columns
// and up to DEPTH inputs stay in the cache while all rows pass by, some at a time. A row's sums are formed in one order,
// whatever rows are beside it and however many threads there are. Where there is AMX, torch is as fast, and does it.

#include "tiles.h"

#if defined(BLOCKS) && !defined(TILES)
namespace {

constexpr int64_t PANEL = 64, GROUP = 2;  // columns of a panel; panels that are in the cache at once
constexpr int64_t DEPTH = 2048;           // inputs of a panel: 256 kB
constexpr int64_t HEIGHT = 6;             // rows whose sums are under way at once: 24 of 32 registers
constexpr int64_t PASSING = 8 * HEIGHT;   // rows that stay in the cache while they pass a group of panels

struct Product {
    const bf16 *x;  // [rows, inner], its rows `x_step` apart
    int64_t x_step, rows, inner;
    const bf16 *matrix;  // [columns, inner]; with `down` [inner, columns]
    int64_t columns, down;
    const bf16 *low;     // [rows, ranks]; null: nothing is added
    const bf16 *factor;  // [columns, ranks]; with `down` [ranks, columns]
    int64_t ranks;
    bf16 *out;  // [rows, columns]
};

// sums [R, 16 C] += R rows by a panel: of each pair of inputs 16 C columns, side by side.
template <int R, int C>
inline void add_panel(const bf16 *x, int64_t step, const bf16 *panel, int64_t pairs, __m512 (&sums)[R][C]) {
    for (int64_t pair = 0; pair < pairs; pair++, panel += C * 32) {
        __m512bh right[C];
        for (int j = 0; j < C; j++) right[j] = reinterpret_cast<__m512bh>(_mm512_load_si512(panel + j * 32));
#pragma GCC unroll 8
        for (int i = 0; i < R; i++) {
            int32_t both;
            std::memcpy(&both, x + i * step + pair * 2, 4);
            const __m512bh one = reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
#pragma GCC unroll 4
            for (int j = 0; j < C; j++) asm("vdpbf16ps %2, %1, %0" : "+v"(sums[i][j]) : "v"(right[j]), "v"(one));
        }
    }
}

// Columns [0, 16 C) of `pairs` pairs of inputs, from a matrix with one row for each column: rows become columns.
void lay_across(const bf16 *rows, int64_t step, int64_t pairs, int64_t C, bf16 *panel) {
    for (int64_t j = 0; j < C; j++)
        for (int64_t left = 0; left < pairs; left += 16) {
            __m512i held[16];
            const __mmask16 which = first_of(pairs - left);
            for (int i = 0; i < 16; i++)
                held[i] = _mm512_maskz_loadu_epi32(which, rows + (j * 16 + i) * step + left * 2);
            transpose(held);
            for (int64_t i = 0; i < least(16, pairs - left); i++)
                _mm512_store_si512(panel + ((left + i) * C + j) * 32, held[i]);
        }
}

// The same from a matrix with one row for each input: two rows become one of pairs.
void lay_down(const bf16 *rows, int64_t step, int64_t pairs, int64_t C, bf16 *panel) {
    auto half = [](const bf16 *place) {
        return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(place)));
    };
    for (int64_t pair = 0; pair < pairs; pair++, rows += 2 * step)
        for (int64_t j = 0; j < C; j++, panel += 32) {
            const __m512i next = _mm512_slli_epi32(half(rows + step + j * 16), 16);
            _mm512_store_si512(panel, _mm512_or_si512(half(rows + j * 16), next));
        }
}

struct Panel {
    int64_t column, width;           // of the matrix: the first, and vectors
    bf16 *inputs, *low;              // laid out
    int64_t low_first, low_pairs;    // of the ranks, those that are not zero in all its columns
    float *sums;                     // [rows, PANEL], between two ranges of inputs
};

struct Range {  // of pairs of inputs
    int64_t first, pairs;
    bool is_last;
};

template <int R, int C>
void strip(const Product &of, const Panel &panel, const Range &range, int64_t row) {
    __m512 sums[R][C];
    float *held = panel.sums + row * PANEL;
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 4
        for (int j = 0; j < C; j++)
            sums[i][j] = range.first ? _mm512_load_ps(held + i * PANEL + j * 16) : _mm512_setzero_ps();
    add_panel<R, C>(of.x + row * of.x_step + range.first * 2, of.x_step, panel.inputs, range.pairs, sums);
    if (range.is_last && panel.low_pairs > 0)
        add_panel<R, C>(of.low + row * of.ranks + panel.low_first * 2, of.ranks, panel.low, panel.low_pairs, sums);
#pragma GCC unroll 8
    for (int i = 0; i < R; i++)
#pragma GCC unroll 4
        for (int j = 0; j < C; j++) {
            if (!range.is_last) {
                _mm512_store_ps(held + i * PANEL + j * 16, sums[i][j]);
                continue;
            }
            bf16 *place = of.out + (row + i) * of.columns + panel.column + j * 16;
            const __m256i rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(sums[i][j]));
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(place), rounded);
        }
}

template <int C>
void strips(const Product &of, const Panel &panel, const Range &range, int64_t row, int64_t end) {
    for (; row + HEIGHT <= end; row += HEIGHT) strip<HEIGHT, C>(of, panel, range, row);
    for (; row < end; row++) strip<1, C>(of, panel, range, row);
}

void strips(const Product &of, const Panel &panel, const Range &range, int64_t row, int64_t end) {
    switch (panel.width) {
        case 4: return strips<4>(of, panel, range, row, end);
        case 3: return strips<3>(of, panel, range, row, end);
        case 2: return strips<2>(of, panel, range, row, end);
        default: return strips<1>(of, panel, range, row, end);
    }
}

// Some inputs of a matrix that has `inner` of them, in a panel's columns.
void lay(const Product &of, const bf16 *matrix, int64_t inner, int64_t first, int64_t pairs, const Panel &panel,
         bf16 *to) {
    if (of.down)
        lay_down(matrix + first * 2 * of.columns + panel.column, of.columns, pairs, panel.width, to);
    else
        lay_across(matrix + panel.column * inner + first * 2, inner, pairs, panel.width, to);
}

// The ranks between the first and the last pair that has a figure in these columns: of layers side by side, their own.
void lay_low(const Product &of, Panel &panel) {
    const int64_t pairs = of.low == nullptr ? 0 : of.ranks / 2;
    int64_t first = pairs, last = 0;
    if (pairs) lay(of, of.factor, of.ranks, 0, pairs, panel, panel.low);
    for (int64_t place = 0; place < pairs * panel.width; place++) {
        const __m512i figures = _mm512_load_si512(panel.low + place * 32);
        if (!_mm512_test_epi32_mask(figures, figures)) continue;
        first = least(first, place / panel.width);
        last = place / panel.width + 1;
    }
    panel.low_first = first;
    panel.low_pairs = most(last - first, 0);
    panel.low += first * panel.width * 32;
}

struct Room {  // of one thread
    Buffer<bf16> inputs, low;
    Buffer<float> sums;
};

// Rows [row, end) of the columns of a group of panels.
void group(const Product &of, int64_t column, int64_t row, int64_t end, Room &room) {
    Panel panels[GROUP];
    const int64_t count = least(GROUP, (of.columns - column + PANEL - 1) / PANEL);
    const int64_t depth = least(of.inner, DEPTH) * PANEL, ranks = of.ranks * PANEL;
    bf16 *inputs = room.inputs.of(GROUP * depth), *low = room.low.of(GROUP * ranks + 64);
    float *sums = of.inner > DEPTH ? room.sums.of(GROUP * of.rows * PANEL) : nullptr;
    for (int64_t i = 0; i < count; i++) {
        const int64_t first = column + i * PANEL;
        panels[i] = {first, least(PANEL, of.columns - first) / 16, inputs + i * depth, low + i * ranks, 0, 0,
                     sums + i * of.rows * PANEL};
        lay_low(of, panels[i]);
    }
    for (int64_t first = 0; first < of.inner; first += DEPTH) {
        const Range range = {first / 2, least(DEPTH, of.inner - first) / 2, first + DEPTH >= of.inner};
        const int64_t step = of.down ? 16 : range.pairs;  // of all panels: their rows of the matrix follow each other
        for (int64_t pair = 0; pair < range.pairs; pair += step)
            for (int64_t i = 0; i < count; i++)
                lay(of, of.matrix, of.inner, range.first + pair, least(step, range.pairs - pair), panels[i],
                    panels[i].inputs + pair * panels[i].width * 32);
        for (int64_t some = row; some < end; some += PASSING)
            for (int64_t i = 0; i < count; i++) strips(of, panels[i], range, some, least(some + PASSING, end));
    }
}

}  // namespace

extern "C" void product(const Product *given, int threads) {
    const Product &of = *given;
    const int64_t groups = (of.columns + GROUP * PANEL - 1) / (GROUP * PANEL);
    const int64_t parts = groups < 8 * threads ? threads : 1;  // of the rows, where groups are too few to share out
    const int64_t height = up((of.rows + parts - 1) / parts, HEIGHT);
#pragma omp parallel num_threads(threads)
    {
        static thread_local Room room;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < groups * parts; task++) {
            const int64_t row = task % parts * height;
            group(of, task / parts * GROUP * PANEL, row, least(row + height, of.rows), room);
        }
    }
}

extern "C" int has_products() { return 1; }
#else
extern "C" int has_products() { return 0; }
#endif
