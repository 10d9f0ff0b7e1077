// Values between the nodes of a table, and what goes back to coefficients and nodes; see interpolation.py.
//
// All three are derivatives of Q = sum_p sum_m  c[p, m]  sum_w  table[start[p] + m, w]  g[p, w].

#include "kernels.h"
#include "vectors.h"

#include <algorithm>

namespace kernels {

constexpr int64_t POINTS = 8;

// The first row that does not find its nodes in the table, or -1.
static int64_t stray(const Sizes &size) {
    for (int64_t p = 0; p < size.rows; ++p)
        if (size.start[p] < 0 || size.start[p] + POINTS > size.nodes) return p;
    return -1;
}

// Calls work.run<V, WIDE>(node, first column, rows that start there) node by node, for blocks of WIDE vectors V and then
// for what is left over; threads divide the columns, so that no two write to the same place.
template <typename T, typename Work> static void each_node(const Sizes &size, const Work &work) {
    constexpr int64_t LANES = 64 / sizeof(T), WIDE = 2;
    const Sorted sorted(size.start, size.rows, size.nodes);
    const int64_t blocks = size.width / (WIDE * LANES), threads = std::max<int64_t>(1, std::min(size.threads, blocks));
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (int64_t thread = 0; thread < threads; ++thread) {
        const int64_t from = thread * blocks / threads, to = (thread + 1) * blocks / threads;
        for (int64_t node = 0; node + POINTS <= size.nodes; ++node) {
            const int64_t *first = sorted.order.data() + sorted.first[node], *last = sorted.order.data() + sorted.first[node + 1];
            if (first == last) continue;
            for (int64_t n = from; n < to; ++n) work.template run<Vector<T>, WIDE>(node, n * WIDE * LANES, first, last);
            for (int64_t w = to * WIDE * LANES; to == blocks && w < size.width; ++w) work.template run<T, 1>(node, w, first, last);
        }
    }
}

// out[p] = sum_m c[p, m] table[start[p] + m]
template <typename T> struct Read {
    const Sizes &size;
    const T *table, *c;
    T *out;

    template <typename V, int WIDE> void run(int64_t node, int64_t w, const int64_t *first, const int64_t *last) const {
        constexpr int64_t LANES = sizeof(V) / sizeof(T);
        V rows[POINTS][WIDE];
        for (int m = 0; m < POINTS; ++m)
            for (int i = 0; i < WIDE; ++i) rows[m][i] = load<V>(table + (node + m) * size.width + w + i * LANES);
        for (const int64_t *p = first; p < last; ++p) {
            const T *k = c + *p * POINTS;
            V sum[WIDE] = {};
            for (int m = 0; m < POINTS; ++m)
                for (int i = 0; i < WIDE; ++i) sum[i] += k[m] * rows[m][i];
            for (int i = 0; i < WIDE; ++i) store<V>(out + *p * size.width + w + i * LANES, sum[i]);
        }
    }
};

template <typename T> int64_t interpolation_read(const Sizes &size, const T *table, const T *c, T *out) {
    if (const int64_t row = stray(size); row >= 0) return row;
    each_node<T>(size, Read<T>{size, table, c, out});
    return -1;
}

// out[start[p] + m] += c[p, m] g[p]
template <typename T> struct Put {
    const Sizes &size;
    const T *c, *g;
    T *out;

    template <typename V, int WIDE> void run(int64_t node, int64_t w, const int64_t *first, const int64_t *last) const {
        constexpr int64_t LANES = sizeof(V) / sizeof(T);
        V rows[POINTS][WIDE] = {};
        for (const int64_t *p = first; p < last; ++p) {
            const T *k = c + *p * POINTS;
            V from[WIDE];
            for (int i = 0; i < WIDE; ++i) from[i] = load<V>(g + *p * size.width + w + i * LANES);
            for (int m = 0; m < POINTS; ++m)
                for (int i = 0; i < WIDE; ++i) rows[m][i] += k[m] * from[i];
        }
        for (int m = 0; m < POINTS; ++m)
            for (int i = 0; i < WIDE; ++i) {
                T *to = out + (node + m) * size.width + w + i * LANES;
                store<V>(to, load<V>(to) + rows[m][i]);
            }
    }
};

template <typename T> int64_t interpolation_put(const Sizes &size, const T *c, const T *g, T *out) {
    if (const int64_t row = stray(size); row >= 0) return row;
    each_node<T>(size, Put<T>{size, c, g, out});
    return -1;
}

// out[p, m] = sum_w g[p, w] table[start[p] + m, w], for rows that come after each other and so share what they read.
template <typename T> int64_t interpolation_dot(const Sizes &size, const T *g, const T *table, T *out) {
    if (const int64_t row = stray(size); row >= 0) return row;
    using V = Vector<T>;
    constexpr int64_t LANES = 64 / sizeof(T);
    const Sorted sorted(size.start, size.rows, size.nodes);
    const int64_t whole = size.width / LANES * LANES;
#pragma omp parallel for num_threads(size.threads) schedule(static) if (size.threads > 1)
    for (int64_t n = 0; n < size.rows; ++n) {
        const int64_t p = sorted.order[n];
        const T *from = table + size.start[p] * size.width, *with = g + p * size.width;
        V sum[POINTS] = {};
        for (int64_t w = 0; w < whole; w += LANES) {
            const V known = load<V>(with + w);
            for (int64_t m = 0; m < POINTS; ++m) sum[m] += known * load<V>(from + m * size.width + w);
        }
        for (int64_t m = 0; m < POINTS; ++m) {
            T rest = 0;
            for (int64_t w = whole; w < size.width; ++w) rest += with[w] * from[m * size.width + w];
            out[p * POINTS + m] = rest + sum_of_lanes<T>(reinterpret_cast<const T *>(&sum[m]));
        }
    }
    return -1;
}

// The derivatives of this order of the Lagrange polynomials of the nodes 0 to 7, as powers of t - 3.5, in double throughout.
template <typename T> void interpolation_polynomials(int64_t rows, int64_t order, const T *t, T *out) {
    constexpr double MIDDLE = 0.5 * (POINTS - 1);
    double power[POINTS][POINTS] = {};  // [exponent][polynomial]
    for (int64_t m = 0; m < POINTS; ++m) {
        double of[POINTS + 1] = {1.0};
        for (int64_t k = 0, degree = 0; k < POINTS; ++k) {
            if (k == m) continue;
            for (int64_t n = ++degree; n >= 0; --n) of[n] = ((n ? of[n - 1] : 0.0) + (MIDDLE - k) * of[n]) / (m - k);
        }
        for (int64_t n = 0; n < POINTS; ++n) {
            double factor = 1.0;
            for (int64_t k = 0; k < order; ++k) factor *= n + order - k;
            power[n][m] = n + order < POINTS ? factor * of[n + order] : 0.0;
        }
    }
    for (int64_t p = 0; p < rows; ++p) {
        double sum[POINTS] = {};
        for (int64_t n = POINTS - 1; n >= 0; --n)
            for (int64_t m = 0; m < POINTS; ++m) sum[m] = sum[m] * (t[p] - MIDDLE) + power[n][m];
        for (int64_t m = 0; m < POINTS; ++m) out[p * POINTS + m] = T(sum[m]);
    }
}

#define EXPORT(T)                                                                        \
    template int64_t interpolation_read<T>(const Sizes &, const T *, const T *, T *);    \
    template int64_t interpolation_put<T>(const Sizes &, const T *, const T *, T *);     \
    template int64_t interpolation_dot<T>(const Sizes &, const T *, const T *, T *);     \
    template void interpolation_polynomials<T>(int64_t, int64_t, const T *, T *);
EXPORT(float)
EXPORT(double)

}  // namespace kernels
