// One token of every row through all layers. The threads are called once for all of them, and wait for each other
// between the parts of a layer: calling them for every part costs more than most parts.

#include "decode.h"
#include "rows.h"

#ifdef BLOCKS
#include <atomic>
#include <omp.h>
#include <sched.h>

struct Matrix {  // out = x tiles^T (+ bias) (+ (x a^T) b^T); all in tiles of `pack`, or the first in 8 bits
    const void *tiles;
    const float *scale;  // of every output, in 8 bits; null: bf16
    const bf16 *bias, *a, *b;  // null where there is none
    int64_t inputs, outputs, ranks;
};

struct Norm {
    const float *weight;  // null: none
    int64_t width;
    float eps;
};

struct Layer {
    Matrix qkv, out, gate_up, down;
    Norm before_attention, after_attention, before_mlp, after_mlp, query, key;
    int64_t window, rotary;
    float scale;
};

struct Step {
    const Layer *layers;
    bf16 *const *keys, *const *values;  // of every layer
    const int32_t *pages;               // [rows, most_pages]
    const int64_t *lengths, *places;
    const bf16 *cosine, *sine;  // [rows, width]
    bf16 *states;               // [rows, hidden], in and out
    int64_t count, rows, hidden, heads, key_heads, width, most_pages;
};

// models/native/step.py has the same structs, and asserts the same sizes
static_assert(sizeof(Matrix) == 64 && sizeof(Norm) == 24 && sizeof(Layer) == 424 && sizeof(Step) == 128, "padding");

namespace {

class Crew {  // threads that work side by side, and wait for each other; what they write is apart from what they watch
    alignas(64) std::atomic<int> arrived{0};
    alignas(64) std::atomic<int> turn{0};

public:
    void wait(int count) {
        const int own = turn.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == count) {
            arrived.store(0, std::memory_order_relaxed);
            turn.store(own + 1, std::memory_order_release);
            return;
        }
        for (int turns = 0; turn.load(std::memory_order_acquire) == own; turns++) {
            if (turns < 2000) _mm_pause();
            else sched_yield();
        }
    }
};

struct Rows8 {  // rows that are to be multiplied, filled up with zeros: as they are, and in 8 bits with their scales
    bf16 *plain;
    int8_t *eight;
    float *scale;
    int64_t step;
};

class Memory {  // of one step, zeros at first
    Buffer<char> held;
    int64_t used = 0;
    char *begin = nullptr;

public:
    void clear(int64_t size) { begin = held.of(size), used = 0, std::memset(begin, 0, size); }
    template <class T>
    T *take(int64_t count) {
        T *place = reinterpret_cast<T *>(begin + used);
        used += up(count * sizeof(T), 64);
        return place;
    }
    Rows8 rows(int64_t count, int64_t width) {
        const int64_t step = up(width, 64);
        return {take<bf16>(count * step), take<int8_t>(count * step), take<float>(count), step};
    }
    static int64_t of_rows(int64_t count, int64_t width) { return 3 * count * up(width, 64) + 4 * count + 256; }
};

struct Work {  // what the parts of a layer hand to each other
    Rows8 input, mixed, product;
    bf16 *raw, *both, *half, *low;
};

class Worker {
    const Step &step;
    const Work &work;
    Crew &crew;
    const int me, threads;
    float *scores;
    const int64_t query_width, key_width;

    template <class Each>
    void in_turn(int64_t count, Each each) {
        for (int64_t i = me; i < count; i += threads) each(i);
        crew.wait(threads);
    }

    // Blocks of 32 outputs that follow each other, so that each thread reads weights from end to end.
    template <class Each>
    void in_blocks(int64_t outputs, Each each) {
        const int64_t count = up(outputs, 32) / 32;
        for (int64_t i = count * me / threads; i < count * (me + 1) / threads; i++) each(i * 32);
        crew.wait(threads);
    }

    void few_plain(const bf16 *x, int64_t x_step, const bf16 *tiles, int64_t depth, bf16 *out, int64_t outputs,
                   int64_t column, bool adds) {
        in_eights(step.rows, [&](auto count, int64_t row, int64_t left) {
            few<count>(x + row * x_step, x_step, tiles + column * depth, depth / 32, out + row * outputs + column,
                       outputs, left, first_of_32(outputs - column), row == 0, adds);
        });
    }

    void few_eight(const Rows8 &x, const Matrix &matrix, bf16 *out, int64_t column) {
        const uint8_t *tiles = static_cast<const uint8_t *>(matrix.tiles);
        const int64_t depth = up(matrix.inputs, 64);
        in_eights(step.rows, [&](auto count, int64_t row, int64_t left) {
            few<count>(x.eight + row * x.step, x.step, tiles + column * depth, depth / 64, x.scale + row,
                       matrix.scale + column, out + row * matrix.outputs + column, matrix.outputs, left,
                       first_of_32(matrix.outputs - column), row == 0);
        });
    }

    void add_bias(const Matrix &matrix, bf16 *out, int64_t column) {
        for (int64_t row = 0; row < step.rows; row++)
            for (int64_t i = column; i < least(column + 32, matrix.outputs); i++)
                put(out + row * matrix.outputs + i, wide(out[row * matrix.outputs + i]) + wide(matrix.bias[i]));
    }

    void multiply(const Rows8 &x, const Matrix &matrix, bf16 *out) {
        const int64_t depth = up(matrix.inputs, 32), ranks = up(matrix.ranks, 32);
        if (matrix.a)
            in_blocks(ranks, [&](int64_t column) {
                few_plain(x.plain, x.step, matrix.a, depth, work.low, ranks, column, false);
            });
        in_blocks(matrix.outputs, [&](int64_t column) {
            if (matrix.scale) few_eight(x, matrix, out, column);
            else few_plain(x.plain, x.step, static_cast<const bf16 *>(matrix.tiles), depth, out, matrix.outputs, column,
                           false);
            if (matrix.bias) add_bias(matrix, out, column);
            if (matrix.a) few_plain(work.low, ranks, matrix.b, ranks, out, matrix.outputs, column, true);
        });
    }

    void in_eight_bits(const Rows8 &rows, const Matrix &matrix, int64_t row) {
        const int64_t place = row * rows.step;
        if (matrix.scale) rows.scale[row] = quantize_row(rows.plain + place, rows.eight + place, matrix.inputs);
    }

    void make_ready(int64_t row, const Norm &norm, const Matrix &matrix) {
        const bf16 *from = step.states + row * step.hidden;
        bf16 *to = work.input.plain + row * work.input.step;
        if (norm.weight) norm_row(from, norm.weight, norm.eps, to, step.hidden);
        else std::memcpy(to, from, step.hidden * sizeof(bf16));
        in_eight_bits(work.input, matrix, row);
    }

    void add_half(int64_t row, const Norm &after) {
        bf16 *states = step.states + row * step.hidden, *half = work.half + row * step.hidden;
        if (after.weight) norm_row(half, after.weight, after.eps, half, step.hidden);
#pragma omp simd
        for (int64_t i = 0; i < step.hidden; i++) put(states + i, wide(states[i]) + wide(half[i]));
    }

    void turn_heads(bf16 *heads, int64_t width, const Norm &norm, const Layer &layer, int64_t row) {
        if (norm.weight)
            for (int64_t i = 0; i < width; i += norm.width)
                norm_row(heads + i, norm.weight, norm.eps, heads + i, norm.width);
        const int64_t place = row * step.width;
        if (layer.rotary)
            for (bf16 *head = heads; head < heads + width; head += step.width)
                rotate_head(head, step.cosine + place, step.sine + place, head, step.width, 1.f);
    }

    void keep_heads(int64_t row, const Layer &layer, const Cache &cache) {
        bf16 *query = work.raw + row * layer.qkv.outputs, *key = query + query_width, *value = key + key_width;
        turn_heads(query, query_width, layer.query, layer, row);
        turn_heads(key, key_width, layer.key, layer, row);
        for (int64_t head = 0; head < step.key_heads; head++)
            keep_row(cache, head, step.places[row], key + head * step.width, value + head * step.width);
    }

    void attend(int64_t row, int64_t head, const Layer &layer, const Cache &cache) {
        const int64_t group = step.heads / step.key_heads, place = head * group * step.width;
        const Sight sight = seen_by(step.pages + row * step.most_pages, step.lengths[row], layer.window);
        attend_head(cache, head, work.raw + row * layer.qkv.outputs + place, sight, group, layer.scale, scores,
                    step.most_pages * PLACES, work.mixed.plain + row * work.mixed.step + place);
    }

    void pass_layer(const Layer &layer, const Cache &cache) {
        multiply(work.input, layer.qkv, work.raw);
        in_turn(step.rows, [&](int64_t row) { keep_heads(row, layer, cache); });
        in_turn(step.rows * step.key_heads,
                [&](int64_t i) { attend(i / step.key_heads, i % step.key_heads, layer, cache); });
        if (layer.out.scale) in_turn(step.rows, [&](int64_t row) { in_eight_bits(work.mixed, layer.out, row); });
        multiply(work.mixed, layer.out, work.half);
        in_turn(step.rows, [&](int64_t row) {
            add_half(row, layer.after_attention);
            make_ready(row, layer.before_mlp, layer.gate_up);
        });
        multiply(work.input, layer.gate_up, work.both);
        const int64_t width = layer.down.inputs;
        in_turn(step.rows, [&](int64_t row) {
            const bf16 *both = work.both + 2 * row * width;
            gate_row(both, both + width, work.product.plain + row * work.product.step, width);
            in_eight_bits(work.product, layer.down, row);
        });
        multiply(work.product, layer.down, work.half);
    }

public:
    Worker(const Step &step, const Work &work, Crew &crew, float *scores)
        : step(step), work(work), crew(crew), me(omp_get_thread_num()), threads(omp_get_num_threads()), scores(scores),
          query_width(step.heads * step.width), key_width(step.key_heads * step.width) {}

    void pass() {
        const Layer *layer = step.layers;
        in_turn(step.rows, [&](int64_t row) { make_ready(row, layer->before_attention, layer->qkv); });
        for (int64_t i = 0; i < step.count; i++, layer++) {
            pass_layer(*layer, {step.keys[i], step.values[i], step.key_heads, step.width});
            in_turn(step.rows, [&](int64_t row) {
                add_half(row, layer->after_mlp);
                if (i + 1 < step.count) make_ready(row, layer[1].before_attention, layer[1].qkv);
            });
        }
    }
};

// Widest of what the layers hand on: projections of attention, of the gate, and low ranks.
struct Widths {
    int64_t raw = 0, product = 0, low = 0;

    explicit Widths(const Step &step) {
        for (const Layer *layer = step.layers; layer < step.layers + step.count; layer++) {
            raw = most(raw, layer->qkv.outputs);
            product = most(product, layer->down.inputs);
            for (const Matrix *each : {&layer->qkv, &layer->out, &layer->gate_up, &layer->down})
                low = most(low, up(each->ranks, 32));
        }
    }
};

}  // namespace

extern "C" void decode_step(const Step *given, int threads) {
    static thread_local Memory memory;
    const Step &step = *given;
    const Widths widths(step);
    const int64_t rows = up(step.rows, 8), mixed = step.heads * step.width;
    memory.clear(Memory::of_rows(rows, step.hidden) + Memory::of_rows(rows, mixed) +
                 Memory::of_rows(rows, widths.product) +
                 2 * rows * (widths.raw + 2 * widths.product + step.hidden + widths.low) + 256);
    const Work work{memory.rows(rows, step.hidden),
                    memory.rows(rows, mixed),
                    memory.rows(rows, widths.product),
                    memory.take<bf16>(rows * widths.raw),
                    memory.take<bf16>(rows * 2 * widths.product),
                    memory.take<bf16>(rows * step.hidden),
                    memory.take<bf16>(rows * widths.low)};
    Crew crew;
#pragma omp parallel num_threads(threads)
    {
        static thread_local Buffer<float> scores;
        Worker(step, work, crew, scores.of(4 * step.most_pages * PLACES)).pass();
    }
}
#endif
