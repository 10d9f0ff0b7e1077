// Sums of harmonics with products of the edges at atoms, with the first two derivatives; see product_sum.py.
//
// All are derivatives of Q = sum_e sum_r sum_(m of r) y[e, m] sum_c x[e, c] f[e, r, c] a[index[e], m, c], where
// f[e, r, c] = sum_s b[e, r, s] w[s, c]: of the products x f, edge by edge, nothing is kept.
//
// Channels lie next to each other in memory and are handled by vectors, several at a time, and what is left
// over one by one.

#include "kernels.h"
#include "vectors.h"

#include <algorithm>
#include <type_traits>
#include <vector>

namespace kernels {

// Calls work.run<V, WIDE>(atom, edge, channel, sums of the thread's own) for all edges and channels, those of an atom
// together, after what is summed there, if anything, is cleared; threads divide the atoms.
template <typename T, typename Work>
static void each_edge(const Harmonics &size, int64_t sums, T *total, const Work &work) {
    constexpr int64_t LANES = REGISTER / sizeof(T);
    const Sorted sorted(size.index, size.edges, size.nodes);
    const int64_t threads = std::max(std::min(size.threads, size.nodes), int64_t(1));
    std::vector<std::vector<T>> sum(threads, std::vector<T>(sums));
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (int64_t thread = 0; thread < threads; ++thread) {
        T *own = sum[thread].data();
        for (int64_t atom = thread * size.nodes / threads; atom < (thread + 1) * size.nodes / threads; ++atom) {
            const int64_t row = size.components * size.channels;
            if (T *cleared = work.of_atoms()) std::fill_n(cleared + atom * row, row, T(0));
            const auto edges = [&](auto vector, auto wide, int64_t c) {
                for (int64_t n = sorted.first[atom]; n < sorted.first[atom + 1]; ++n)
                    work.template run<decltype(vector), decltype(wide)::value>(atom, sorted.order[n], c, own);
            };
            int64_t c = 0;
            for (; c + SEVERAL * LANES <= size.channels; c += SEVERAL * LANES)
                edges(Vector<T>(), std::integral_constant<int, SEVERAL>(), c);
            for (; c + LANES <= size.channels; c += LANES) edges(Vector<T>(), std::integral_constant<int, 1>(), c);
            for (; c < size.channels; ++c) edges(T(), std::integral_constant<int, 1>(), c);
        }
    }
    if (!total) return;
    std::fill(total, total + sums, T(0));
    for (const auto &own : sum)
        for (int64_t n = 0; n < sums; ++n) total[n] += own[n];
}

// Of the channels from c on.
template <typename T> static void sum_up(int64_t c, T part, T &sum) { sum = c ? sum + part : part; }

// sum_s b[s] w[s, :]
template <typename Row, typename T> static INLINE Row mixed(int64_t rank, int64_t channels, const T *b, const T *w) {
    Row sum;
    for (int64_t s = 0; s < rank; ++s) sum = sum + Row::at(w + s * channels) * b[s];
    return sum;
}

// out[index[e], m] += y[e, m] x[e] f[e, r]
template <typename T> struct ProductToAtoms {
    const Harmonics &size;
    const int64_t rank;
    const T *y, *b, *w, *x;
    T *out;

    T *of_atoms() const { return out; }
    template <typename V, int WIDE> void run(int64_t atom, int64_t e, int64_t c, T *) const {
        using Row = Block<T, V, WIDE>;
        const Row value = Row::at(x + e * size.channels + c);
        T *to = out + atom * size.components * size.channels + c;
        for (int64_t r = 0; r < size.rows; ++r) {
            const Row product = value * mixed<Row>(rank, size.channels, b + (e * size.rows + r) * rank, w + c);
            for (int64_t m = size.first[r]; m < size.first[r + 1]; ++m)
                (product * y[e * size.components + m]).add_to(to + m * size.channels);
        }
    }
};

template <typename T>
int64_t product_to_atoms(const Harmonics &size, int64_t rank, const T *y, const T *b, const T *w, const T *x, T *out) {
    if (const int64_t edge = stray(size); edge >= 0) return edge;
    each_edge<T>(size, 0, nullptr, ProductToAtoms<T>{size, rank, y, b, w, x, out});
    return -1;
}

// The derivatives of Q by y, b, w and x.
template <typename T> struct ProductBackward {
    const Harmonics &size;
    const int64_t rank;
    const T *y, *b, *w, *x, *g;
    T *y_out, *b_out, *x_out;

    T *of_atoms() const { return nullptr; }
    template <typename V, int WIDE> void run(int64_t atom, int64_t e, int64_t c, T *w_sum) const {
        using Row = Block<T, V, WIDE>;
        const int64_t C = size.channels;
        const Row value = Row::at(x + e * C + c);
        const T *from = g + atom * size.components * C + c, *harmonics = y + e * size.components;
        T *of_y = y_out + e * size.components;
        Row of_x;
        for (int64_t r = 0; r < size.rows; ++r) {
            const T *factors = b + (e * size.rows + r) * rank;
            T *of_b = b_out + (e * size.rows + r) * rank;
            const Row f = mixed<Row>(rank, C, factors, w + c), product = value * f;
            Row t;
            for (int64_t m = size.first[r]; m < size.first[r + 1]; ++m) {
                const Row tensor = Row::at(from + m * C);
                t = t + tensor * harmonics[m];
                sum_up(c, product.dot(tensor), of_y[m]);
            }
            of_x = of_x + f * t;
            const Row by_f = value * t;
            for (int64_t s = 0; s < rank; ++s) {
                sum_up(c, by_f.dot(Row::at(w + s * C + c)), of_b[s]);
                (by_f * factors[s]).add_to(w_sum + s * C + c);
            }
        }
        of_x.put(x_out + e * C + c);
    }
};

template <typename T>
int64_t product_backward(const Harmonics &size, int64_t rank, const T *y, const T *b, const T *w, const T *x, const T *g,
                         T *y_out, T *b_out, T *w_out, T *x_out) {
    if (const int64_t edge = stray(size); edge >= 0) return edge;
    each_edge<T>(size, rank * size.channels, w_out, ProductBackward<T>{size, rank, y, b, w, x, g, y_out, b_out, x_out});
    return -1;
}

// The derivatives by y, b, w, x and g of  dQ/dy hy + dQ/db hb + dQ/dw hw + dQ/dx hx.
template <typename T> struct ProductSecond {
    const Harmonics &size;
    const int64_t rank;
    const T *y, *b, *w, *x, *g, *hy, *hb, *hw, *hx;
    T *y_out, *b_out, *x_out, *g_out;

    T *of_atoms() const { return g_out; }
    template <typename V, int WIDE> void run(int64_t atom, int64_t e, int64_t c, T *w_sum) const {
        using Row = Block<T, V, WIDE>;
        const int64_t C = size.channels;
        const Row value = Row::at(x + e * C + c), change = Row::at(hx + e * C + c);
        const T *from = g + atom * size.components * C + c;
        T *to = g_out + atom * size.components * C + c;
        Row of_x;
        for (int64_t r = 0; r < size.rows; ++r) {
            const int64_t at = (e * size.rows + r) * rank;
            const Row f = mixed<Row>(rank, C, b + at, w + c);
            const Row df = mixed<Row>(rank, C, hb + at, w + c) + mixed<Row>(rank, C, b + at, hw + c);
            const Row product = value * f, by_t = change * f + value * df;
            Row t, dt;
            for (int64_t m = size.first[r]; m < size.first[r + 1]; ++m) {
                const int64_t n = e * size.components + m;
                const Row tensor = Row::at(from + m * C);
                t = t + tensor * y[n];
                dt = dt + tensor * hy[n];
                sum_up(c, by_t.dot(tensor), y_out[n]);
                (by_t * y[n] + product * hy[n]).add_to(to + m * C);
            }
            of_x = of_x + df * t + f * dt;
            const Row by_f = change * t + value * dt, by_df = value * t;
            for (int64_t s = 0; s < rank; ++s) {
                sum_up(c, by_f.dot(Row::at(w + s * C + c)) + by_df.dot(Row::at(hw + s * C + c)), b_out[at + s]);
                (by_f * b[at + s] + by_df * hb[at + s]).add_to(w_sum + s * C + c);
            }
        }
        of_x.put(x_out + e * C + c);
    }
};

template <typename T>
int64_t product_second(const Harmonics &size, int64_t rank, const T *y, const T *b, const T *w, const T *x, const T *g,
                       const T *hy, const T *hb, const T *hw, const T *hx, T *y_out, T *b_out, T *w_out, T *x_out, T *g_out) {
    if (const int64_t edge = stray(size); edge >= 0) return edge;
    each_edge<T>(size, rank * size.channels, w_out,
                 ProductSecond<T>{size, rank, y, b, w, x, g, hy, hb, hw, hx, y_out, b_out, x_out, g_out});
    return -1;
}

#define EXPORT(T)                                                                                                        \
    template int64_t product_to_atoms<T>(const Harmonics &, int64_t, const T *, const T *, const T *, const T *, T *);   \
    template int64_t product_backward<T>(const Harmonics &, int64_t, const T *, const T *, const T *, const T *,         \
                                         const T *, T *, T *, T *, T *);                                                 \
    template int64_t product_second<T>(const Harmonics &, int64_t, const T *, const T *, const T *, const T *,           \
                                       const T *, const T *, const T *, const T *, const T *, T *, T *, T *, T *, T *);
EXPORT(float)
EXPORT(double)

}  // namespace kernels
