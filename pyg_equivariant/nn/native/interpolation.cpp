// Values between the nodes of a table, and what goes back to coefficients and nodes; see interpolation.py.
//
// All three are derivatives of Q = sum_p sum_m  c[p, m]  sum_w  table[start[p] + m, w]  g[p, w].

#include <algorithm>
#include <cstdint>

constexpr int64_t POINTS = 8;

struct Sizes {
    int64_t rows, nodes, width, threads;
    const int64_t *start;
};

// Whether every row finds its nodes in the table.
static bool fits(const Sizes &size) {
    for (int64_t p = 0; p < size.rows; ++p)
        if (size.start[p] < 0 || size.start[p] + POINTS > size.nodes) return false;
    return true;
}

// out[p] = sum_m c[p, m] table[start[p] + m]
template <typename T> static bool read(const Sizes &size, const T *table, const T *c, T *out) {
    if (!fits(size)) return false;
#pragma omp parallel for num_threads(size.threads) schedule(static) if (size.threads > 1)
    for (int64_t p = 0; p < size.rows; ++p) {
        const T *from = table + size.start[p] * size.width, *k = c + p * POINTS;
        T *to = out + p * size.width;
        for (int64_t w = 0; w < size.width; ++w) {
            T sum = 0;
            for (int64_t m = 0; m < POINTS; ++m) sum += k[m] * from[m * size.width + w];
            to[w] = sum;
        }
    }
    return true;
}

// out[start[p] + m] += c[p, m] g[p]; threads divide the columns, so that no two write to the same place.
template <typename T> static bool put(const Sizes &size, const T *c, const T *g, T *out) {
    if (!fits(size)) return false;
    const int64_t block = 64 / sizeof(T), blocks = (size.width + block - 1) / block;
    const int64_t threads = std::max<int64_t>(1, std::min(size.threads, blocks));
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (int64_t n = 0; n < threads; ++n) {
        const int64_t first = n * blocks / threads * block, last = std::min((n + 1) * blocks / threads * block, size.width);
        for (int64_t p = 0; p < size.rows; ++p) {
            T *to = out + size.start[p] * size.width;
            const T *from = g + p * size.width, *k = c + p * POINTS;
            for (int64_t m = 0; m < POINTS; ++m)
                for (int64_t w = first; w < last; ++w) to[m * size.width + w] += k[m] * from[w];
        }
    }
    return true;
}

// out[p, m] = sum_w g[p, w] table[start[p] + m, w]
template <typename T> static bool dot(const Sizes &size, const T *g, const T *table, T *out) {
    if (!fits(size)) return false;
    constexpr int64_t LANES = 64 / sizeof(T);
#pragma omp parallel for num_threads(size.threads) schedule(static) if (size.threads > 1)
    for (int64_t p = 0; p < size.rows; ++p) {
        const T *from = table + size.start[p] * size.width, *with = g + p * size.width;
        for (int64_t m = 0; m < POINTS; ++m) {
            const T *row = from + m * size.width;
            T lanes[LANES] = {}, sum = 0;
            int64_t w = 0;
            for (; w + LANES <= size.width; w += LANES)
                for (int64_t i = 0; i < LANES; ++i) lanes[i] += with[w + i] * row[w + i];
            for (; w < size.width; ++w) sum += with[w] * row[w];
            for (int64_t i = 0; i < LANES; ++i) sum += lanes[i];
            out[p * POINTS + m] = sum;
        }
    }
    return true;
}

#define EXPORT(NAME, TYPE, KIND)                                                                                          \
    extern "C" int64_t interpolation_##NAME##_##KIND(const Sizes *size, const TYPE *a, const TYPE *b, TYPE *out) {        \
        return NAME(*size, a, b, out);                                                                                    \
    }
EXPORT(read, float, float)
EXPORT(read, double, double)
EXPORT(put, float, float)
EXPORT(put, double, double)
EXPORT(dot, float, float)
EXPORT(dot, double, double)
