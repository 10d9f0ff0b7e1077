// Dense layers that follow each other, with their first two derivatives; see dense_chain.py.
//
// For every row, with a_0 = x and s the SiLU:
//
//     z_l = W_l a_{l-1} + b_l,     a_l = s(z_l) + (a_{l-2} if the layer skips),     y = a_n
//
// Some rows are led through all layers before the next ones, so that nothing but what is kept leaves the processor's
// cache. The z of all rows of a layer are followed by those of the next layer, and so are the derivatives by them. Threads
// divide the rows.

#include "kernels.h"
#include "products.h"
#include "vectors.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

namespace kernels {

constexpr int64_t TILE = 128;              // rows at once
constexpr int64_t CACHED = 4 * 1024 * 1024;  // bytes of all layers that may still be at hand when they are read again

// Numbers that begin where vectors do.
template <typename T> class Memory {
    struct alignas(64) Line {
        T values[64 / sizeof(T)];
    };
    std::unique_ptr<Line[]> lines;

public:
    explicit Memory(int64_t size = 0) : lines(new Line[(size * sizeof(T) + 63) / 64]) {}
    T *data() const { return lines[0].values; }
};

template <typename T> static void add_row(int64_t size, const T *from, T *to) {
    each<T>(size, [=](auto block, int64_t c) { block.at(from + c).add_to(to + c); });
}

// 2^n, of a whole n.
template <typename T, typename V> static V power_of_two(V n) {
    constexpr int BITS = std::numeric_limits<T>::digits - 1, BIAS = std::numeric_limits<T>::max_exponent - 1;
    if constexpr (std::is_same_v<V, T>) {
        using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
        return std::bit_cast<T>((Integer(n) + BIAS) << BITS);
    } else {
        using Integer = decltype(n > n);
        return (V)((__builtin_convertvector(n, Integer) + BIAS) << BITS);
    }
}

// e^x to the last digit or two.
template <typename T, typename V, int WIDE> static INLINE Block<T, V, WIDE> exponential(Block<T, V, WIDE> x) {
    using Row = Block<T, V, WIDE>;
    constexpr bool SINGLE = sizeof(T) == 4;
    constexpr T LOG2_E = 1.4426950408889634, SHIFT = SINGLE ? 12582912.0 : 6755399441055744.0;
    constexpr T LN_2 = SINGLE ? 0.693359375 : 6.93145751953125e-1;  // in two parts, the first one exact times any n
    constexpr T LN_2_REST = SINGLE ? -2.12194440e-4 : 1.42860682030941723212e-6;
    const V low = V{} + (SINGLE ? T(-87) : T(-708)), high = V{} + (SINGLE ? T(88) : T(709));
    x = Row::of([&](int i) { return x.part[i] < low ? low : x.part[i]; });
    x = Row::of([&](int i) { return x.part[i] > high ? high : x.part[i]; });
    const Row n = Row::of([&](int i) { return (x.part[i] * LOG2_E + SHIFT) - SHIFT; });
    const Row r = x + n * -LN_2 + n * -LN_2_REST;
    constexpr int TERMS = SINGLE ? 7 : 13;
    T factor = 1, inverse[TERMS + 1];
    for (int k = 0; k <= TERMS; factor *= ++k) inverse[k] = 1 / factor;
    Row sum = Row() + inverse[TERMS];
    for (int k = TERMS - 1; k >= 0; --k) sum = sum * r + inverse[k];
    return sum * Row::of([&](int i) { return power_of_two<T>(n.part[i]); });
}

#ifdef __AVX512F__
// 1 / (1 + e^-z) to a digit or two, with e^-z = 2^n e^r, n a sixteenth of a whole number: the roots of two from a table, the
// processor's own power of two, and its estimate of an inverse, which one step corrects.
static INLINE __m512 logistic(__m512 z) {
    const auto number = [](float value) { return _mm512_set1_ps(value); };
    const __m512 roots = _mm512_setr_ps(1, 1.0442737824f, 1.0905077327f, 1.1387886348f, 1.1892071150f, 1.2418578121f,
                                        1.2968395547f, 1.3542555469f, 1.4142135624f, 1.4768261459f, 1.5422108254f,
                                        1.6104903319f, 1.6817928305f, 1.7562521604f, 1.8340080864f, 1.9152065614f);
    const __m512 shift = number(786432);  // its last digit is a sixteenth
    z = _mm512_min_ps(_mm512_max_ps(z, number(-88)), number(87));
    const __m512 shifted = _mm512_fnmadd_ps(z, number(1.44269504f), shift), n = _mm512_sub_ps(shifted, shift);
    const __m512 r = _mm512_fnmadd_ps(n, number(-2.12194440e-4f), _mm512_fnmsub_ps(n, number(0.693359375f), z));
    const __m512 linear = _mm512_add_ps(r, number(1)), rest = _mm512_fmadd_ps(r, number(1 / 6.0f), number(0.5f));
    const __m512 power = _mm512_mul_ps(_mm512_fmadd_ps(rest, _mm512_mul_ps(r, r), linear),
                                       _mm512_permutexvar_ps(_mm512_castps_si512(shifted), roots));
    const __m512 whole = _mm512_add_ps(_mm512_scalef_ps(power, n), number(1)), inverse = _mm512_rcp14_ps(whole);
    return _mm512_fmadd_ps(inverse, _mm512_fnmadd_ps(whole, inverse, number(1)), inverse);
}
#endif

// The logistic function s of z, and the SiLU's derivatives of both.
template <typename T, typename V, int WIDE> static INLINE Block<T, V, WIDE> logistic(Block<T, V, WIDE> z) {
#ifdef __AVX512F__
    if constexpr (sizeof(T) == 4 && sizeof(V) == 64)
        return z.of([&](int i) { return (V)logistic((__m512)z.part[i]); });
#endif
    const auto sum = exponential(z * T(-1)) + T(1);
    return z.of([&](int i) { return T(1) / sum.part[i]; });
}
template <typename Row> static INLINE Row first(Row z, Row s) { return s * (z * (s * -1 + 1) + 1); }
template <typename Row> static INLINE Row second(Row z, Row s) { return s * (s * -1 + 1) * (z * (s * -2 + 1) + 2); }

// What the products of a tile need beside its rows, which are no wider than this.
template <typename T> struct Space {
    Memory<T> factor, other;
    explicit Space(int64_t widest) : factor(packed<T>(TILE, widest)), other(space_of<T>(TILE, widest)) {}
};

// The layers and their weights, packed for one of the two products.
template <typename T> struct Layers {
    const DenseChain &chain;
    std::vector<int64_t> column, weight, place_of_factor;  // where each begins, in z a row, in the weights and in factors
    Memory<T> factors;

    enum Side { FORWARD, BACKWARD };

    Layers(const DenseChain &chain, const T *p, Side side) : chain(chain) {
        int64_t columns = 0, size = 0, length = 0;
        for (int64_t l = 0; l < chain.layers; ++l) {
            const auto [in, out] = shape(l);
            column.push_back(columns), weight.push_back(size), place_of_factor.push_back(length);
            columns += out, size += (in + 1) * out;
            length += side == FORWARD ? packed<T>(in, out) : packed<T>(out, in);
        }
        factors = Memory<T>(length);
        for (int64_t l = 0; l < chain.layers; ++l) {
            const auto [in, out] = shape(l);
            if (side == FORWARD) pack(p + weight[l], in, out, 1, in, factors.data() + place_of_factor[l]);
            else pack(p + weight[l], out, in, in, 1, factors.data() + place_of_factor[l]);
        }
    }
    struct Shape {
        int64_t in, out;
    };
    Shape shape(int64_t l) const { return {chain.widths[l], chain.widths[l + 1]}; }
    const T *factor(int64_t l) const { return factors.data() + place_of_factor[l]; }
    int64_t place(int64_t l, int64_t row) const { return column[l] * chain.rows + row * chain.widths[l + 1]; }  // in z
    bool skips(int64_t l) const { return chain.skips[l]; }
    bool is_far() const { return chain.rows * (column.back() + chain.widths[chain.layers]) * int64_t(sizeof(T)) > CACHED; }
    int64_t widest() const { return padded<T>(*std::max_element(chain.widths, chain.widths + chain.layers + 1)); }

    // Calls work(first row, rows, buffers, space, sums) for all tiles: so many buffers for numbers of a tile, and sums by the
    // weights, which are added up.
    template <typename Work> void tiles(int64_t buffers, int64_t sums, T *total, const Work &work) const {
        const int64_t count = (chain.rows + TILE - 1) / TILE, threads = std::min(chain.threads, std::max(count, int64_t(1)));
        std::vector<Memory<T>> sum(threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
        for (int64_t thread = 0; thread < threads; ++thread) {
            const Tiles tiles;
            const Space<T> space(widest());
            Memory<T> memory(buffers * TILE * widest());
            sum[thread] = Memory<T>(sums);
            std::fill_n(sum[thread].data(), sums, T(0));
            for (int64_t tile = thread * count / threads; tile < (thread + 1) * count / threads; ++tile)
                work(tile * TILE, std::min(TILE, chain.rows - tile * TILE), memory.data(), space, sum[thread].data());
            std::atomic_thread_fence(std::memory_order_seq_cst);
        }
        for (int64_t l = 0, from = 0; total && l < chain.layers; ++l) {
            const auto [in, out] = shape(l);
            const int64_t width = padded<T>(in);
            std::fill(total + weight[l], total + weight[l] + (in + 1) * out, T(0));
            for (const auto &own : sum) {
                for (int64_t n = 0; n < out; ++n)
                    for (int64_t k = 0; k < in; ++k) total[weight[l] + n * in + k] += own.data()[from + n * width + k];
                for (int64_t n = 0; n < out; ++n) total[weight[l] + in * out + n] += own.data()[from + place_of_bias(l) + n];
            }
            from += size_of_sum(l);
        }
    }
    // Of a layer's weights and bias, while they are summed.
    int64_t place_of_bias(int64_t l) const { return rows_of<T>(shape(l).out) * padded<T>(shape(l).in); }
    int64_t size_of_sum(int64_t l) const { return place_of_bias(l) + padded<T>(shape(l).out); }
    int64_t sums() const {
        int64_t count = 0;
        for (int64_t l = 0; l < chain.layers; ++l) count += size_of_sum(l);
        return count;
    }
};

// Where a tile's rows are worked on: where they belong, if they fill it as they do a buffer, or else in the buffer.
template <typename T> static T *whole(int64_t rows, int64_t width, T *place, T *buffer) {
    return rows == TILE && width == padded<T>(width) ? place : buffer;
}

// Rows from where they were worked on to where they belong.
template <typename T> static void deliver(int64_t rows, int64_t width, const T *from, T *to) {
    for (int64_t e = 0; from != to && e < rows; ++e) copy_row(width, from + e * padded<T>(width), to + e * width);
}

template <typename T> void dense_chain_forward(const DenseChain &chain, const T *x, const T *p, T *y, T *z) {
    using L = Layers<T>;
    const L layers(chain, p, L::FORWARD);
    const bool far = layers.is_far();
    const int64_t n = chain.layers, step = TILE * layers.widest();
    layers.tiles(n, 0, nullptr, [&](int64_t row, int64_t rows, T *memory, const Space<T> &space, T *) {
        for (int64_t l = 0; l < n; ++l) {
            const auto [in, out] = layers.shape(l);
            const int64_t width = padded<T>(out), in_width = l ? padded<T>(in) : in;
            const T *from = l ? memory + (l - 1) * step : x + row * in, *b = p + layers.weight[l] + in * out;
            T *a = memory + l * step;
            if (l == n - 1) a = whole(rows, out, y + row * out, a);
            multiply<T>(rows, out, in, from, in_width, 1, layers.factor(l), a, false, space.other.data());
            for (int64_t e = 0; e < rows; ++e) {
                T *own = a + e * width, *kept = z + layers.place(l, row + e);
                each<T>(out, [=](auto block, int64_t c) {
                    const auto value = block.at(own + c) + block.at(b + c);
                    value.put_away(kept + c, far);
                    (value * logistic(value)).put(own + c);
                });
                if (layers.skips(l)) add_row(out, l > 1 ? memory + (l - 2) * step + e * width : x + (row + e) * out, own);
            }
            if (l == n - 1) deliver(rows, out, a, y + row * out);
        }
    });
}

// Adds the sums over rows of u[e, n] v[e, k].
template <typename T>
static void outer(int64_t rows, int64_t in, int64_t out, const T *u, const T *v, int64_t v_width, const Space<T> &space,
                  T *sum) {
    pack(v, rows, in, v_width, 1, space.factor.data());
    multiply<T>(out, in, rows, u, 1, padded<T>(out), space.factor.data(), sum, true, space.other.data());
}

// With the derivatives g by y and h by z, if any: those by x, and by the activations or by the weights.
template <typename T>
void dense_chain_backward(const DenseChain &chain, const T *x, const T *z, const T *p, const T *g, const T *h, T *x_out,
                          T *a_out, T *p_out) {
    using L = Layers<T>;
    const L layers(chain, p, L::BACKWARD);
    const bool far = layers.is_far();
    const int64_t n = chain.layers, step = TILE * layers.widest(), sums = p_out ? layers.sums() : 0;
    layers.tiles((p_out ? 2 * n : 1) + n + 1, sums, p_out, [&](int64_t row, int64_t rows, T *memory, const Space<T> &space, T *sum) {
        T *by_as = memory, *by_zs = by_as + (n + 1) * step, *as = by_zs + n * step;
        for (int64_t l = 0; p_out && l < n; ++l) {  // the activations, and at by_zs the slopes
            const int64_t out = layers.shape(l).out, width = padded<T>(out);
            for (int64_t e = 0; e < rows; ++e) {
                T *own = as + l * step + e * width, *slope = by_zs + l * step + e * width;
                const T *values = z + layers.place(l, row + e);
                each<T>(out, [=](auto block, int64_t c) {
                    const auto value = block.at(values + c), s = logistic(value);
                    (value * s).put(own + c);
                    first(value, s).put(slope + c);
                });
                if (layers.skips(l)) add_row(out, l > 1 ? as + (l - 2) * step + e * width : x + (row + e) * out, own);
            }
        }
        const int64_t first_width = chain.widths[0], last = chain.widths[n];
        T *of_x = whole(rows, first_width, x_out + row * first_width, by_as);
        const T *top = g ? whole(rows, last, g + row * last, (const T *)by_as + n * step) : by_as + n * step;
        for (int64_t e = 0; top == by_as + n * step && e < rows; ++e) {
            T *to = by_as + n * step + e * padded<T>(last);
            if (g) copy_row(last, g + (row + e) * last, to);
            else std::fill_n(to, last, T(0));
        }
        for (int64_t l = n - 1; l >= 0; --l) {
            const auto [in, out] = layers.shape(l);
            const int64_t width = padded<T>(out), in_width = l ? padded<T>(in) : in;
            const T *by_a = l == n - 1 ? top : by_as + (l + 1) * step;
            T *by_in = l ? by_as + l * step : of_x, *by_z = by_zs + (p_out ? l * step : 0), *weights = sum;
            for (int64_t before = 0; p_out && before < l; ++before) weights += layers.size_of_sum(before);
            for (int64_t e = 0; e < rows; ++e) {
                const int64_t at = layers.place(l, row + e);
                const T *by = by_a + e * width;
                T *to = by_z + e * width, *bias = weights + layers.place_of_bias(l);
                each<T>(out, [=](auto block, int64_t c) {
                    const auto by_y = block.at(by + c);
                    if (a_out) by_y.put_away(a_out + at + c, far);
                    auto value = block.at((p_out ? to : z + at) + c);
                    value = by_y * (p_out ? value : first(value, logistic(value)));
                    if (h) value = value + block.at(h + at + c);
                    value.put(to + c);
                    if (p_out) value.add_to(bias + c);
                });
            }
            multiply<T>(rows, in, out, by_z, width, 1, layers.factor(l), by_in, l + 1 < n && layers.skips(l + 1),
                        space.other.data());
            if (p_out) outer<T>(rows, in, out, by_z, l ? as + (l - 1) * step : x + row * in, in_width, space, weights);
            if (layers.skips(l)) copy_row(rows * width, by_a, l > 1 ? by_as + (l - 1) * step : of_x);
        }
        deliver(rows, first_width, of_x, x_out + row * first_width);
    });
}

// With the derivative k by what dense_chain_backward gives for x, without h: those by its g, z and weights.
template <typename T>
void dense_chain_second(const DenseChain &chain, const T *z, const T *p, const T *by_a, const T *k, T *g_out, T *z_out,
                        T *p_out) {
    using L = Layers<T>;
    const L layers(chain, p, L::FORWARD);
    const bool far = layers.is_far();
    const int64_t n = chain.layers, step = TILE * layers.widest();
    layers.tiles(n + 1, layers.sums(), p_out, [&](int64_t row, int64_t rows, T *memory, const Space<T> &space, T *sum) {
        T *by_z = memory + n * step;
        for (int64_t l = 0; l < n; ++l) {
            const auto [in, out] = layers.shape(l);
            const int64_t width = padded<T>(out), in_width = l ? padded<T>(in) : in;
            const T *from = l ? memory + (l - 1) * step : k + row * in;
            T *own = memory + l * step;
            if (l == n - 1) own = whole(rows, out, g_out + row * out, own);
            multiply<T>(rows, out, in, from, in_width, 1, layers.factor(l), own, false, space.other.data());
            for (int64_t e = 0; e < rows; ++e) {
                const int64_t at = layers.place(l, row + e);
                T *along = own + e * width, *to = by_z + e * width;
                each<T>(out, [=](auto block, int64_t c) {
                    const auto value = block.at(z + at + c), s = logistic(value), slope = first(value, s);
                    const auto by = block.at(by_a + at + c), before = block.at(along + c);
                    (second(value, s) * by * before).put_away(z_out + at + c, far);
                    (slope * before).put(along + c);
                    (slope * by).put(to + c);
                });
                if (layers.skips(l)) add_row(out, l > 1 ? memory + (l - 2) * step + e * width : k + (row + e) * out, along);
            }
            if (l == n - 1) deliver(rows, out, own, g_out + row * out);
            outer<T>(rows, in, out, by_z, from, in_width, space, sum);
            sum += layers.size_of_sum(l);
        }
    });
}

#define EXPORT(T)                                                                                                           \
    template void dense_chain_forward<T>(const DenseChain &, const T *, const T *, T *, T *);                               \
    template void dense_chain_backward<T>(const DenseChain &, const T *, const T *, const T *, const T *, const T *, T *,   \
                                          T *, T *);                                                                        \
    template void dense_chain_second<T>(const DenseChain &, const T *, const T *, const T *, const T *, T *, T *, T *);
EXPORT(float)
EXPORT(double)

}  // namespace kernels
