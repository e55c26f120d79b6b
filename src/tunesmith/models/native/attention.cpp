// Attention over a forest of segments, forward and backward, in tiles of bf16 with sums in fp32 (the algorithm of
// arXiv:2205.14135, whole rows of scores at a time). The same in torch: models/forest_attention.py.
//
// A segment's tokens see their path: the tokens of its ancestors, then their own up to themselves, at most `window` of
// them. Rows are queries, `group` of them to a token, one for each head that shares the key. A task is a tree under one
// key head; each is worked off by one thread in a fixed order, so results do not depend on the number of threads.

#include "tiles.h"

#include <cmath>
#include <cstring>

#ifdef BLOCKS
namespace {

constexpr int64_t ROWS = 64;   // rows of queries taken at once; a multiple of 32
constexpr float LOG2_E = 1.44269504f;

template <class T>
struct Places {  // [head, token, figures of the head]
    T *first;
    int64_t head, token;
    T *at(int64_t h, int64_t t) const { return first + h * head + t * token; }
};

struct Tree { int64_t first, last; };                        // segments [first, last)
struct Segment { int64_t start, end, first_span, last_span; };  // tokens [start, end); its ancestors' spans
struct Span { int64_t start, end; };

struct Batch {
    Places<const bf16> query, key, value;
    const Tree *trees;
    const Segment *segments;
    const Span *spans;
    int64_t heads, tree_count, tokens, group, width;  // width of a head
    float scale;
    int64_t window;  // keys that a row sees at most; 0: all

    int64_t wide() const { return up(width, 32); }
    int64_t context(const Segment &segment) const {
        int64_t count = 0;
        for (int64_t i = segment.first_span; i < segment.last_span; i++) count += spans[i].end - spans[i].start;
        return count;
    }
};

// The keys (or values) along a segment's path: [count, wide].
void path_of(const Batch &batch, Places<const bf16> states, int64_t head, const Segment &segment, int64_t count,
             bf16 *out) {
    Rows rows(out, count, batch.width, batch.wide());
    for (int64_t i = segment.first_span; i < segment.last_span; i++)
        for (int64_t t = batch.spans[i].start; t < batch.spans[i].end; t++) rows.put(states.at(head, t));
    for (int64_t t = segment.start; t < segment.end; t++) rows.put(states.at(head, t));
    rows.fill();
}

struct Block {  // rows [first, last) of a segment, counted from its first token's first row
    int64_t first, last, group, context;
    int64_t count() const { return last - first; }
    int64_t depth(int64_t row) const { return context + (first + row) / group; }  // the row's own place on the path
    int64_t low(int64_t row, int64_t window) const { return window ? most(0, depth(row) - window + 1) : 0; }
    int64_t start(int64_t window) const { return low(0, window) / 32 * 32; }  // keys that any row sees, in whole tiles
    int64_t stop() const { return up(depth(count() - 1) + 1, 32); }
};

// Calls `work` with the place of every row of the block.
template <class T, class Work>
void every_row(const Batch &batch, Places<T> states, int64_t head, const Segment &segment, const Block &block, Work work) {
    int64_t token = segment.start + block.first / batch.group, member = block.first % batch.group;
    for (int64_t row = 0; row < block.count(); row++) {
        work(row, states.at(head, token) + member * batch.width);
        if (++member == batch.group) member = 0, token++;
    }
}

// The rows' queries, or what else stands where they stand: [count, wide].
void rows_of(const Batch &batch, Places<const bf16> states, int64_t head, const Segment &segment, const Block &block,
             int64_t count, bf16 *out) {
    Rows rows(out, count, batch.width, batch.wide());
    every_row(batch, states, head, segment, block, [&](int64_t, const bf16 *row) { rows.put(row); });
    rows.fill();
}

// Powers of 2 of a row's scores * scale less the largest, zero where the row does not see; returns their sum, and the
// largest of the scaled scores. Only [low, high) is seen; [start, stop) is filled, both multiples of 32.
float powers(const float *scores, float scale, int64_t low, int64_t high, int64_t start, int64_t stop, bf16 *out,
             float *largest) {
    const __m512 none = _mm512_set1_ps(-INFINITY);
    auto seen = [&](int64_t i) { return static_cast<__mmask16>(first_of(high - i) & ~first_of(low - i)); };
    __m512 top = none;
    for (int64_t i = start; i < high; i += 16) {
        __m512 here = _mm512_mask_loadu_ps(none, seen(i), scores + i);
        top = _mm512_max_ps(here, top);
    }
    const float greatest = _mm512_reduce_max_ps(top) * scale;
    const __m512 times = _mm512_set1_ps(scale), less = _mm512_set1_ps(greatest);
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = start; i < stop; i += 32) {
        auto part = [&](int64_t j) {
            return _mm512_maskz_mov_ps(seen(j), power_of_2(_mm512_fmsub_ps(_mm512_loadu_ps(scores + j), times, less)));
        };
        __m512 one = part(i), other = part(i + 16);
        sum = _mm512_add_ps(sum, _mm512_add_ps(one, other));
        _mm512_storeu_si512(out + i, narrow32(one, other));
    }
    *largest = greatest;
    return _mm512_reduce_add_ps(sum);
}

// The step between rows of so many keys: rows a power of two apart would share few places in the cache.
inline int64_t apart(int64_t keys) { return keys + 32; }

struct Forward {  // of one thread
    Buffer<bf16> path, key, value, query, chances;
    Buffer<float> scores, mixed;
};

void attend_block(const Batch &batch, int64_t head, const Segment &segment, const Block &block, int64_t keys,
                  const bf16 *key, const bf16 *value, Forward &memory, Places<bf16> out, float *sums) {
    const int64_t wide = batch.wide(), steps = wide / 32, rows = block.count();
    const int64_t start = block.start(batch.window), stop = block.stop();
    const int64_t step = apart(keys);
    bf16 *query = memory.query.of(ROWS * wide), *chances = memory.chances.of(32 * step);
    float *scores = memory.scores.of(32 * step), *mixed = memory.mixed.of(ROWS * wide), shares[ROWS];
    rows_of(batch, batch.query, head, segment, block, up(rows, 32), query);
    for (int64_t top = 0; top < rows; top += 32) {
        for (int64_t j = start; j < stop; j += 32)
            multiply(query + top * wide, wide, {key + j / 16 * steps * TILE, steps * TILE, TILE}, steps, scores + j,
                     step, false);
        for (int64_t row = top; row < least(top + 32, rows); row++) {
            float largest, sum = powers(scores + (row - top) * step, batch.scale * LOG2_E,
                                        block.low(row, batch.window), block.depth(row) + 1, start, stop,
                                        chances + (row - top) * step, &largest);
            shares[row] = 1 / sum;
            sums[segment.start * batch.group + block.first + row] = largest + std::log2(sum);
        }
        for (int64_t left = 0; left < wide; left += 32)
            multiply(chances + start, step, {value + (start / 32 * 2 * steps + left / 16) * TILE, TILE, 2 * steps * TILE},
                     (stop - start) / 32, mixed + top * wide + left, wide, false);
    }
    every_row(batch, out, head, segment, block,
              [&](int64_t row, bf16 *place) { put_row(mixed + row * wide, shares[row], batch.width, place); });
}

void attend_segment(const Batch &batch, int64_t head, const Segment &segment, Forward &memory, Places<bf16> out,
                    float *sums) {
    const int64_t context = batch.context(segment), wide = batch.wide();
    const int64_t keys = up(context + segment.end - segment.start, 32), rows = (segment.end - segment.start) * batch.group;
    bf16 *path = memory.path.of(keys * wide), *key = memory.key.of(keys * wide), *value = memory.value.of(keys * wide);
    path_of(batch, batch.key, head, segment, keys, path);
    across(path, keys, wide, key);
    path_of(batch, batch.value, head, segment, keys, path);
    pairs(path, keys, wide, value);
    for (int64_t first = 0; first < rows; first += ROWS)
        attend_block(batch, head, segment, {first, least(first + ROWS, rows), batch.group, context}, keys, key, value,
                     memory, out, sums);
}

struct Backward {  // of one thread
    Buffer<bf16> key, value, key_columns, tiles;                            // of a path
    Buffer<bf16> query, grad, query_across, grad_across, query_pairs, grad_pairs;  // of a block of rows
    Buffer<bf16> chances, slopes, slope_pairs;
    Buffer<float> scores, pulls, grad_query, path_key, path_value, tree_key, tree_value;
};

struct Figures {  // of every row: the logarithm of its sum of powers, gradient times mixed value, the keys it sees
    float sums[ROWS], dots[ROWS];
    int32_t low[ROWS], high[ROWS];
};

struct Slopes {  // what a block of rows hands back: chances and slopes [32 keys, ROWS], slopes also as `pairs`
    bf16 *chances, *plain, *pairs;
};

// 32 keys from `first` on: from scores and pulls [32, ROWS], a column for each row.
void slopes_of(const Batch &batch, const Figures &of, int64_t first, int64_t columns, const float *scores,
               const float *pulls, Slopes to) {
    const __m512 times = _mm512_set1_ps(batch.scale * LOG2_E);
    const __m512i mix = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const bool all = of.low[columns - 1] <= first && of.high[0] >= first + 31;
    for (int64_t left = 0; left < columns; left += 32) {
        for (int64_t key = 0; key < 32; key += 2) {
            __m512 slope[2][2];
            for (int one = 0; one < 2; one++) {
                __m512 chance[2];
                for (int half = 0; half < 2; half++) {
                    const int64_t column = left + half * 16, place = (key + one) * ROWS + column;
                    chance[half] = power_of_2(
                        _mm512_fmsub_ps(_mm512_loadu_ps(scores + place), times, _mm512_loadu_ps(of.sums + column)));
                    if (!all) {
                        const __m512i here = _mm512_set1_epi32(first + key + one);
                        __mmask16 seen = _mm512_cmple_epi32_mask(_mm512_loadu_si512(of.low + column), here) &
                                         _mm512_cmpge_epi32_mask(_mm512_loadu_si512(of.high + column), here);
                        chance[half] = _mm512_maskz_mov_ps(seen, chance[half]);
                    }
                    slope[one][half] = _mm512_mul_ps(
                        chance[half], _mm512_sub_ps(_mm512_loadu_ps(pulls + place), _mm512_loadu_ps(of.dots + column)));
                }
                const int64_t place = (key + one) * ROWS + left;
                _mm512_storeu_si512(to.chances + place, narrow32(chance[0], chance[1]));
                _mm512_storeu_si512(to.plain + place, narrow32(slope[one][0], slope[one][1]));
            }
            for (int half = 0; half < 2; half++)
                _mm512_storeu_si512(to.pairs + (left / 16 + half) * TILE + key * 16,
                                    _mm512_permutexvar_epi16(mix, narrow32(slope[0][half], slope[1][half])));
        }
    }
}

Figures figures_of(const Batch &batch, int64_t head, const Segment &segment, const Block &block, const bf16 *grad,
                   Places<const bf16> mixed, const float *sums) {
    Figures of;
    for (int64_t row = 0; row < ROWS; row++) {  // those that fill up see what the last row sees, with chances of 0
        of.sums[row] = 1e30f;
        of.dots[row] = 0;
        of.low[row] = block.low(least(row, block.count() - 1), batch.window);
        of.high[row] = block.depth(least(row, block.count() - 1));
    }
    every_row(batch, mixed, head, segment, block, [&](int64_t row, const bf16 *was) {
        __m512 dot = _mm512_setzero_ps();
        for (int64_t i = 0; i < batch.width; i += 16)
            dot = _mm512_fmadd_ps(wide16(grad + row * batch.wide() + i, 0xffff),
                                  wide16(was + i, first_of(batch.width - i)), dot);
        of.sums[row] = sums[segment.start * batch.group + block.first + row];
        of.dots[row] = _mm512_reduce_add_ps(dot);
    });
    return of;
}

// The gradient of the block's queries, from the slopes of the keys [start, stop).
void put_query(const Batch &batch, int64_t head, const Segment &segment, const Block &block, int64_t keys, int64_t start,
               int64_t stop, Backward &memory, Places<bf16> out) {
    const int64_t wide = batch.wide(), columns = up(block.count(), 32);
    const bf16 *key = memory.key_columns.of(wide * apart(keys)), *slopes = memory.slope_pairs.of(keys * ROWS);
    float *turned = memory.grad_query.of(2 * wide * ROWS), *grad = turned + wide * ROWS;
    for (int64_t column = 0; column < columns; column += 32)
        for (int64_t left = 0; left < wide; left += 32)
            multiply(key + left * apart(keys) + start, apart(keys), {slopes + start * ROWS + column / 16 * TILE, TILE, 32 * ROWS},
                     (stop - start) / 32, turned + left * ROWS + column, ROWS, false);
    for (int64_t column = 0; column < columns; column += 16)
        for (int64_t left = 0; left < wide; left += 16) {
            __m512i held[16];
            for (int i = 0; i < 16; i++) held[i] = _mm512_loadu_si512(turned + (left + i) * ROWS + column);
            transpose(held);
            for (int i = 0; i < 16; i++) _mm512_storeu_si512(grad + (column + i) * wide + left, held[i]);
        }
    every_row(batch, out, head, segment, block, [&](int64_t row, bf16 *place) {
        put_row(grad + row * wide, batch.scale, batch.width, place);
    });
}

struct Result {  // what goes into the backward pass and comes out of it
    Places<const bf16> grad, mixed;
    const float *sums;
    Places<bf16> query, key, value;
};

void attend_block_backward(const Batch &batch, int64_t head, const Segment &segment, const Block &block, int64_t keys,
                           Backward &memory, const Result &result) {
    const int64_t wide = batch.wide(), steps = wide / 32, columns = up(block.count(), 32);
    const int64_t start = block.start(batch.window), stop = block.stop();
    const bf16 *key = memory.key.of(keys * wide), *value = memory.value.of(keys * wide);
    bf16 *query = memory.query.of(ROWS * wide), *grad = memory.grad.of(ROWS * wide);
    bf16 *query_across = memory.query_across.of(ROWS * wide), *grad_across = memory.grad_across.of(ROWS * wide);
    bf16 *query_pairs = memory.query_pairs.of(ROWS * wide), *grad_pairs = memory.grad_pairs.of(ROWS * wide);
    rows_of(batch, batch.query, head, segment, block, columns, query);
    rows_of(batch, result.grad, head, segment, block, columns, grad);
    across(query, columns, wide, query_across);
    across(grad, columns, wide, grad_across);
    pairs(query, columns, wide, query_pairs);
    pairs(grad, columns, wide, grad_pairs);
    const Figures of = figures_of(batch, head, segment, block, grad, result.mixed, result.sums);

    float *scores = memory.scores.of(32 * ROWS), *pulls = memory.pulls.of(32 * ROWS);
    float *grad_key = memory.path_key.of(keys * wide), *grad_value = memory.path_value.of(keys * wide);
    Slopes slopes = {memory.chances.of(32 * ROWS), memory.slopes.of(32 * ROWS), memory.slope_pairs.of(keys * ROWS)};
    slopes.pairs += start * ROWS;
    for (int64_t j = start; j < stop; j += 32, slopes.pairs += 32 * ROWS) {
        for (int64_t column = 0; column < columns; column += 32) {
            const int64_t tile = column / 16 * steps * TILE;
            multiply(key + j * wide, wide, {query_across + tile, steps * TILE, TILE}, steps, scores + column, ROWS, false);
            multiply(value + j * wide, wide, {grad_across + tile, steps * TILE, TILE}, steps, pulls + column, ROWS, false);
        }
        slopes_of(batch, of, j, columns, scores, pulls, slopes);
        for (int64_t left = 0; left < wide; left += 32) {
            const int64_t tile = left / 16 * TILE, place = j * wide + left;
            multiply(slopes.chances, ROWS, {grad_pairs + tile, TILE, 2 * steps * TILE}, columns / 32,
                     grad_value + place, wide, true);
            multiply(slopes.plain, ROWS, {query_pairs + tile, TILE, 2 * steps * TILE}, columns / 32, grad_key + place,
                     wide, true);
        }
    }
    put_query(batch, head, segment, block, keys, start, stop, memory, result.query);
}

// Figures of a path are added to those of its tree's tokens, which begin with `origin`.
void add_path(const Batch &batch, const Segment &segment, const float *path, int64_t origin, float *tree) {
    const int64_t wide = batch.wide();
    auto add = [&](int64_t start, int64_t end) {
        float *to = tree + (start - origin) * wide;
        for (int64_t i = 0; i < (end - start) * wide; i++) to[i] += path[i];
        path += (end - start) * wide;
    };
    for (int64_t i = segment.first_span; i < segment.last_span; i++) add(batch.spans[i].start, batch.spans[i].end);
    add(segment.start, segment.end);
}

void attend_segment_backward(const Batch &batch, int64_t head, const Segment &segment, Backward &memory,
                             const Result &result) {
    const int64_t context = batch.context(segment), wide = batch.wide();
    const int64_t keys = up(context + segment.end - segment.start, 32), rows = (segment.end - segment.start) * batch.group;
    bf16 *key = memory.key.of(keys * wide), *tiles = memory.tiles.of(keys * wide);
    path_of(batch, batch.key, head, segment, keys, key);
    pairs(key, keys, wide, tiles);
    columns(tiles, keys, wide, memory.key_columns.of(wide * apart(keys)), apart(keys));
    path_of(batch, batch.value, head, segment, keys, memory.value.of(keys * wide));
    std::memset(memory.path_key.of(keys * wide), 0, keys * wide * sizeof(float));
    std::memset(memory.path_value.of(keys * wide), 0, keys * wide * sizeof(float));
    for (int64_t first = 0; first < rows; first += ROWS)
        attend_block_backward(batch, head, segment, {first, least(first + ROWS, rows), batch.group, context}, keys,
                              memory, result);
}

void put_keys(const Batch &batch, int64_t head, int64_t start, int64_t end, const float *key, const float *value,
              const Result &result) {
    for (int64_t t = start; t < end; t++, key += batch.wide(), value += batch.wide()) {
        put_row(key, batch.scale, batch.width, result.key.at(head, t));
        put_row(value, 1, batch.width, result.value.at(head, t));
    }
}

void attend_tree_backward(const Batch &batch, int64_t head, const Tree &tree, Backward &memory, const Result &result) {
    const Segment *segments = batch.segments;
    const int64_t wide = batch.wide(), origin = segments[tree.first].start;
    if (tree.last == tree.first + 1) {
        attend_segment_backward(batch, head, segments[tree.first], memory, result);
        put_keys(batch, head, origin, segments[tree.first].end, memory.path_key.of(0), memory.path_value.of(0), result);
        return;
    }
    int64_t end = origin;
    for (int64_t i = tree.first; i < tree.last; i++) end = most(end, segments[i].end);
    float *key = memory.tree_key.of((end - origin) * wide), *value = memory.tree_value.of((end - origin) * wide);
    std::memset(key, 0, (end - origin) * wide * sizeof(float));
    std::memset(value, 0, (end - origin) * wide * sizeof(float));
    for (int64_t i = tree.first; i < tree.last; i++) {
        attend_segment_backward(batch, head, segments[i], memory, result);
        add_path(batch, segments[i], memory.path_key.of(0), origin, key);
        add_path(batch, segments[i], memory.path_value.of(0), origin, value);
    }
    for (int64_t i = tree.first; i < tree.last; i++) {
        const int64_t place = (segments[i].start - origin) * wide;
        put_keys(batch, head, segments[i].start, segments[i].end, key + place, value + place, result);
    }
}

template <class Memory, class Work>
void every_task(const Batch &batch, int threads, Work work) {
#pragma omp parallel num_threads(threads)
    {
        static thread_local Memory memory;
        Tiles tiles;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < batch.tree_count * batch.heads; task++)
            work(task % batch.heads, batch.trees[task / batch.heads], memory);
    }
}

}  // namespace

// sums [heads, tokens * group]: the base-2 logarithm of every row's sum of powers, which the backward pass needs.
extern "C" void attend(const Batch *batch, const Places<bf16> *out, float *sums, int threads) {
    every_task<Forward>(*batch, threads, [&](int64_t head, const Tree &tree, Forward &memory) {
        for (int64_t i = tree.first; i < tree.last; i++)
            attend_segment(*batch, head, batch->segments[i], memory, *out,
                           sums + head * batch->tokens * batch->group);
    });
}

extern "C" void attend_backward(const Batch *batch, const Result *result, int threads) {
    every_task<Backward>(*batch, threads, [&](int64_t head, const Tree &tree, Backward &memory) {
        Result own = *result;
        own.sums += head * batch->tokens * batch->group;
        attend_tree_backward(*batch, head, tree, memory, own);
    });
}
#endif
