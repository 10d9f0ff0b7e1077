// Values between the nodes of a table, and what goes back to coefficients and nodes; see interpolation.py.
//
// All three are derivatives of Q = sum_p sum_m  c[p, m]  sum_w  table[start[p] + m, w]  g[p, w].

#include "between.h"

namespace kernels {

// The first row that does not find its nodes in the table, or -1.
static int64_t stray(const Sizes &size) {
    for (int64_t p = 0; p < size.rows; ++p)
        if (size.start[p] < 0 || size.start[p] + POINTS > size.nodes) return p;
    return -1;
}

// Calls work(node, first column, number of columns, rows that start there, their number) node by node; threads divide the
// columns, so that no two write to the same place.
template <typename T, typename Work> static void each_node(const Sizes &size, const Work &work) {
    constexpr int64_t LANES = REGISTER / sizeof(T);
    const Sorted sorted(size.start, size.rows, size.nodes);
    const int64_t blocks = (size.width + LANES - 1) / LANES, threads = std::max<int64_t>(1, std::min(size.threads, blocks));
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (int64_t thread = 0; thread < threads; ++thread) {
        const int64_t from = thread * blocks / threads * LANES, to = std::min((thread + 1) * blocks / threads * LANES, size.width);
        for (int64_t node = 0; node + POINTS <= size.nodes; ++node) {
            const int64_t first = sorted.first[node], count = sorted.first[node + 1] - first;
            if (count) work(node, from, to - from, sorted.order.data() + first, count);
        }
    }
}

// out[p] = sum_m c[p, m] table[start[p] + m]
template <typename T> int64_t interpolation_read(const Sizes &size, const T *table, const T *c, T *out) {
    if (const int64_t row = stray(size); row >= 0) return row;
    each_node<T>(size, [&](int64_t node, int64_t from, int64_t columns, const int64_t *rows, int64_t count) {
        read_between<false>(table + node * size.width + from, size.width, columns, rows, count, c, out + from,
                            [=](int64_t n) { return rows[n]; });
    });
    return -1;
}

// out[start[p] + m] += c[p, m] g[p]
template <typename T> int64_t interpolation_put(const Sizes &size, const T *c, const T *g, T *out) {
    if (const int64_t row = stray(size); row >= 0) return row;
    each_node<T>(size, [&](int64_t node, int64_t from, int64_t columns, const int64_t *rows, int64_t count) {
        put_between(g + from, size.width, columns, rows, count, c, out + node * size.width + from,
                    [=](int64_t n) { return rows[n]; });
    });
    return -1;
}

// out[p, m] += sum_w g[p, w] table[start[p] + m, w]; threads divide the nodes
template <typename T> int64_t interpolation_dot(const Sizes &size, const T *g, const T *table, T *out) {
    if (const int64_t row = stray(size); row >= 0) return row;
    const Sorted sorted(size.start, size.rows, size.nodes);
#pragma omp parallel for num_threads(size.threads) schedule(dynamic) if (size.threads > 1)
    for (int64_t node = 0; node <= size.nodes - POINTS; ++node) {
        const int64_t *rows = sorted.order.data() + sorted.first[node];
        dot_between(g, table + node * size.width, size.width, size.width, rows, sorted.first[node + 1] - sorted.first[node], out,
                    [=](int64_t n) { return rows[n]; });
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
