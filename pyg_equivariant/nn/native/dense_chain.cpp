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
#include "vectors.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

namespace kernels {

constexpr int64_t TILE = 96;         // rows at once
constexpr int ROWS = 6;              // of a product, while it is in registers
constexpr int WIDE = REGISTER / 16;  // vectors of each of these
template <typename T> constexpr int64_t PANEL = WIDE * REGISTER / sizeof(T);

// How wide a row is that is filled up to whole panels.
template <typename T> static int64_t padded(int64_t size) { return (size + PANEL<T> - 1) / PANEL<T> * PANEL<T>; }

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

template <typename T> static void copy_row(int64_t size, const T *from, T *to) {
    each<T>(size, [=](auto block, int64_t c) { block.at(from + c).put(to + c); });
}
template <typename T> static void add_row(int64_t size, const T *from, T *to) {
    each<T>(size, [=](auto block, int64_t c) { block.at(from + c).add_to(to + c); });
}

// A matrix in panels, [N / PANEL, K, PANEL], filled up with zeros: element (k, n) is from[k * step_k + n * step_n].
template <typename T>
static void pack(const T *from, int64_t K, int64_t N, int64_t step_k, int64_t step_n, T *to) {
    for (int64_t n = 0; n < N; n += PANEL<T>) {
        const int64_t width = std::min(PANEL<T>, N - n);
        for (int64_t k = 0; k < K; ++k, to += PANEL<T>) {
            const T *row = from + k * step_k + n * step_n;
            if (step_n == 1)
                copy_row(width, row, to);
            else
                for (int64_t j = 0; j < width; ++j) to[j] = row[j * step_n];
            std::fill(to + width, to + PANEL<T>, T(0));
        }
    }
}

// c[i, :] (+)= sum_k a[i, k] b[k, :] for COUNT rows and a panel
template <typename T, int COUNT>
static void product(const T *a, int64_t step_i, int64_t step_k, const T *b, int64_t K, T *c, int64_t width, bool add) {
    using V = Register<T>;
    constexpr int64_t LANES = REGISTER / sizeof(T);
    V sum[COUNT][WIDE] = {};
    for (int64_t k = 0; k < K; ++k, b += PANEL<T>) {
        V row[WIDE];
        for (int j = 0; j < WIDE; ++j) row[j] = load<V>(b + j * LANES);
        for (int i = 0; i < COUNT; ++i) {
            const T factor = a[i * step_i + k * step_k];
            for (int j = 0; j < WIDE; ++j) sum[i][j] += factor * row[j];
        }
    }
    for (int i = 0; i < COUNT; ++i)
        for (int j = 0; j < WIDE; ++j) {
            T *to = c + i * width + j * LANES;
            store<V>(to, add ? load<V>(to) + sum[i][j] : sum[i][j]);
        }
}

// c (+)= a b: element (i, k) of a is a[i * step_i + k * step_k], b is in panels, and rows of c are filled up to whole ones.
template <typename T>
static void multiply(int64_t M, int64_t N, int64_t K, const T *a, int64_t step_i, int64_t step_k, const T *b, T *c,
                     bool add) {
    const int64_t width = padded<T>(N);
    for (int64_t n = 0; n < N; n += PANEL<T>, b += K * PANEL<T>) {
        int64_t i = 0;
        for (; i + ROWS <= M; i += ROWS)
            product<T, ROWS>(a + i * step_i, step_i, step_k, b, K, c + i * width + n, width, add);
        for (; i < M; ++i) product<T, 1>(a + i * step_i, step_i, step_k, b, K, c + i * width + n, width, add);
    }
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

// The logistic function s of z, and the SiLU's derivatives of both.
template <typename T, typename V, int WIDE> static INLINE Block<T, V, WIDE> logistic(Block<T, V, WIDE> z) {
    const auto sum = exponential(z * T(-1)) + T(1);
    return z.of([&](int i) { return T(1) / sum.part[i]; });
}
template <typename Row> static INLINE Row first(Row z, Row s) { return s * (z * (s * -1 + 1) + 1); }
template <typename Row> static INLINE Row second(Row z, Row s) { return s * (s * -1 + 1) * (z * (s * -2 + 1) + 2); }

// The layers and their weights, in panels for one of the two products.
template <typename T> struct Layers {
    const DenseChain &chain;
    std::vector<int64_t> column, weight, panel;  // where each begins, in z a row, in the weights and in the panels
    Memory<T> panels;

    enum Side { FORWARD, BACKWARD };

    Layers(const DenseChain &chain, const T *p, Side side) : chain(chain) {
        int64_t columns = 0, size = 0, length = 0;
        for (int64_t l = 0; l < chain.layers; ++l) {
            const auto [in, out] = shape(l);
            column.push_back(columns), weight.push_back(size), panel.push_back(length);
            columns += out, size += (in + 1) * out;
            length += side == FORWARD ? in * padded<T>(out) : out * padded<T>(in);
        }
        panels = Memory<T>(length);
        for (int64_t l = 0; l < chain.layers; ++l) {
            const auto [in, out] = shape(l);
            if (side == FORWARD) pack(p + weight[l], in, out, 1, in, panels.data() + panel[l]);
            else pack(p + weight[l], out, in, in, 1, panels.data() + panel[l]);
        }
    }
    struct Shape {
        int64_t in, out;
    };
    Shape shape(int64_t l) const { return {chain.widths[l], chain.widths[l + 1]}; }
    int64_t place(int64_t l, int64_t row) const { return column[l] * chain.rows + row * chain.widths[l + 1]; }  // in z
    bool skips(int64_t l) const { return chain.skips[l]; }
    int64_t widest() const { return padded<T>(*std::max_element(chain.widths, chain.widths + chain.layers + 1)); }

    // Calls work(first row, rows, buffers, sums) for all tiles: so many buffers for numbers of a tile, and sums by the
    // weights, which are added up.
    template <typename Work> void tiles(int64_t buffers, int64_t sums, T *total, const Work &work) const {
        const int64_t count = (chain.rows + TILE - 1) / TILE, threads = std::min(chain.threads, std::max(count, int64_t(1)));
        std::vector<Memory<T>> sum(threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
        for (int64_t thread = 0; thread < threads; ++thread) {
            Memory<T> memory(buffers * TILE * widest());
            sum[thread] = Memory<T>(sums);
            std::fill_n(sum[thread].data(), sums, T(0));
            for (int64_t tile = thread * count / threads; tile < (thread + 1) * count / threads; ++tile)
                work(tile * TILE, std::min(TILE, chain.rows - tile * TILE), memory.data(), sum[thread].data());
        }
        for (int64_t l = 0, from = 0; total && l < chain.layers; ++l) {
            const auto [in, out] = shape(l);
            const int64_t width = padded<T>(in);
            std::fill(total + weight[l], total + weight[l] + (in + 1) * out, T(0));
            for (const auto &own : sum) {
                for (int64_t n = 0; n < out; ++n)
                    for (int64_t k = 0; k < in; ++k) total[weight[l] + n * in + k] += own.data()[from + n * width + k];
                for (int64_t n = 0; n < out; ++n) total[weight[l] + in * out + n] += own.data()[from + out * width + n];
            }
            from += size_of_sum(l);
        }
    }
    // Of a layer's weights and bias, while they are summed.
    int64_t size_of_sum(int64_t l) const { return shape(l).out * padded<T>(shape(l).in) + padded<T>(shape(l).out); }
    int64_t sums() const {
        int64_t count = 0;
        for (int64_t l = 0; l < chain.layers; ++l) count += size_of_sum(l);
        return count;
    }
};

template <typename T> void dense_chain_forward(const DenseChain &chain, const T *x, const T *p, T *y, T *z) {
    using L = Layers<T>;
    const L layers(chain, p, L::FORWARD);
    const int64_t n = chain.layers, step = TILE * layers.widest();
    layers.tiles(n, 0, nullptr, [&](int64_t row, int64_t rows, T *memory, T *) {
        for (int64_t l = 0; l < n; ++l) {
            const auto [in, out] = layers.shape(l);
            const int64_t width = padded<T>(out), in_width = l ? padded<T>(in) : in;
            const T *from = l ? memory + (l - 1) * step : x + row * in, *b = p + layers.weight[l] + in * out;
            T *a = memory + l * step;
            multiply<T>(rows, out, in, from, in_width, 1, layers.panels.data() + layers.panel[l], a, false);
            for (int64_t e = 0; e < rows; ++e) {
                T *own = a + e * width, *kept = z + layers.place(l, row + e);
                each<T>(out, [=](auto block, int64_t c) {
                    const auto value = block.at(own + c) + block.at(b + c);
                    value.put(kept + c);
                    (value * logistic(value)).put(own + c);
                });
                if (layers.skips(l)) add_row(out, l > 1 ? memory + (l - 2) * step + e * width : x + (row + e) * out, own);
                if (l == n - 1) copy_row(out, own, y + (row + e) * out);
            }
        }
    });
}

// The sums over rows of u[e, n] v[e, k], in panels of v.
template <typename T>
static void outer(int64_t rows, int64_t in, int64_t out, const T *u, const T *v, int64_t v_width, T *panels, T *sum) {
    pack(v, rows, in, v_width, 1, panels);
    multiply<T>(out, in, rows, u, 1, padded<T>(out), panels, sum, true);
}

// With the derivatives g by y and h by z, if any: those by x, and by the activations or by the weights.
template <typename T>
void dense_chain_backward(const DenseChain &chain, const T *x, const T *z, const T *p, const T *g, const T *h, T *x_out,
                          T *a_out, T *p_out) {
    using L = Layers<T>;
    const L layers(chain, p, L::BACKWARD);
    const int64_t n = chain.layers, step = TILE * layers.widest(), sums = p_out ? layers.sums() : 0;
    layers.tiles((p_out ? 2 * n : 1) + n + 2, sums, p_out, [&](int64_t row, int64_t rows, T *memory, T *sum) {
        T *by_as = memory, *panels = by_as + (n + 1) * step, *by_zs = panels + step, *as = by_zs + n * step;
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
        for (int64_t e = 0, last = chain.widths[n]; e < rows; ++e) {
            T *to = by_as + n * step + e * padded<T>(last);
            if (g) copy_row(last, g + (row + e) * last, to);
            else std::fill_n(to, last, T(0));
        }
        for (int64_t l = n - 1; l >= 0; --l) {
            const auto [in, out] = layers.shape(l);
            const int64_t width = padded<T>(out), in_width = l ? padded<T>(in) : in;
            const T *by_a = by_as + (l + 1) * step;
            T *by_z = by_zs + (p_out ? l * step : 0), *weights = sum;
            for (int64_t before = 0; p_out && before < l; ++before) weights += layers.size_of_sum(before);
            for (int64_t e = 0; e < rows; ++e) {
                const int64_t at = layers.place(l, row + e);
                const T *by = by_a + e * width;
                T *to = by_z + e * width;
                if (a_out) copy_row(out, by, a_out + at);
                each<T>(out, [=](auto block, int64_t c) {
                    const auto value = block.at(z + at + c);
                    (block.at(by + c) * (p_out ? block.at(to + c) : first(value, logistic(value)))).put(to + c);
                });
                if (h) add_row(out, h + at, to);
                if (p_out) add_row(out, to, weights + out * padded<T>(in));
            }
            multiply<T>(rows, in, out, by_z, width, 1, layers.panels.data() + layers.panel[l], by_as + l * step,
                        l + 1 < n && layers.skips(l + 1));
            if (p_out) outer<T>(rows, in, out, by_z, l ? as + (l - 1) * step : x + row * in, in_width, panels, weights);
            if (layers.skips(l)) copy_row(rows * width, by_a, by_as + (l - 1) * step);
        }
        for (int64_t e = 0, width = chain.widths[0]; e < rows; ++e)
            copy_row(width, by_as + e * padded<T>(width), x_out + (row + e) * width);
    });
}

// With the derivative k by what dense_chain_backward gives for x, without h: those by its g, z and weights.
template <typename T>
void dense_chain_second(const DenseChain &chain, const T *z, const T *p, const T *by_a, const T *k, T *g_out, T *z_out,
                        T *p_out) {
    using L = Layers<T>;
    const L layers(chain, p, L::FORWARD);
    const int64_t n = chain.layers, step = TILE * layers.widest();
    layers.tiles(n + 2, layers.sums(), p_out, [&](int64_t row, int64_t rows, T *memory, T *sum) {
        T *by_z = memory + n * step, *panels = memory + (n + 1) * step;
        for (int64_t l = 0; l < n; ++l) {
            const auto [in, out] = layers.shape(l);
            const int64_t width = padded<T>(out), in_width = l ? padded<T>(in) : in;
            const T *from = l ? memory + (l - 1) * step : k + row * in;
            T *own = memory + l * step;
            multiply<T>(rows, out, in, from, in_width, 1, layers.panels.data() + layers.panel[l], own, false);
            for (int64_t e = 0; e < rows; ++e) {
                const int64_t at = layers.place(l, row + e);
                T *along = own + e * width, *to = by_z + e * width;
                each<T>(out, [=](auto block, int64_t c) {
                    const auto value = block.at(z + at + c), s = logistic(value), slope = first(value, s);
                    const auto by = block.at(by_a + at + c), before = block.at(along + c);
                    (second(value, s) * by * before).put(z_out + at + c);
                    (slope * before).put(along + c);
                    (slope * by).put(to + c);
                });
                if (layers.skips(l)) add_row(out, l > 1 ? memory + (l - 2) * step + e * width : k + (row + e) * out, along);
                if (l == n - 1) copy_row(out, along, g_out + (row + e) * out);
            }
            outer<T>(rows, in, out, by_z, from, in_width, panels, sum);
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
