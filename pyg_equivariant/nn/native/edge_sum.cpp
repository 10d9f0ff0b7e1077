// The sum over edges of products of features, geometry and filters, with its first two derivatives; see edge_sum.py.
//
// For every edge e from s to t, with its row p of the filters, and every channel c:
//
//     Q = sum_e sum_terms  k_e,term  sum_c  x[s, a, c]  w[p, f, c]  g[t, o, c],     k_e,term = sum v * y[e, b]
//
// Terms with the same (a, f) form groups of at most four, for which the product x * w is computed once. Channels lie
// next to each other in memory and are handled by vectors of 64 bytes, what is left over one by one. Threads divide the
// channels, so that no two write to the same place.

#include "kernels.h"
#include "vectors.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

namespace kernels {

template <typename V, typename T> static void add(T *to, V value) {
    *reinterpret_cast<V *>(to) = *reinterpret_cast<const V *>(to) + value;
}
static float total(float value) { return value; }
static double total(double value) { return value; }
template <typename V> static auto total(V value) {
    auto sum = value[0];
    for (size_t i = 1; i < sizeof(V) / sizeof(sum); ++i) sum += value[i];
    return sum;
}

template <typename T> static void coefficients(const Table &table, const T *y, bool constant, T *k) {
    for (int64_t term = 0; term < table.terms; ++term) {
        T sum = 0;
        for (int64_t i = table.first_entry[term]; i < table.first_entry[term + 1]; ++i)
            sum += table.b[i] < 0 ? (constant ? T(table.v[i]) : T(0)) : T(table.v[i]) * y[table.b[i]];
        k[term] = sum;
    }
}

template <typename T> static void scatter(const Table &table, const T *dot, T *y) {
    for (int64_t term = 0; term < table.terms; ++term)
        for (int64_t i = table.first_entry[term]; i < table.first_entry[term + 1]; ++i)
            if (table.b[i] >= 0) y[table.b[i]] += T(table.v[i]) * dot[term];
}

// Runs work(first channel, number of channels, its own sums of y) on every thread and adds those sums up.
template <typename T, typename Work> static void split(const Table &table, const Graph &graph, T *y_out, Work work) {
    const int64_t block = 64 / sizeof(T), blocks = (graph.channels + block - 1) / block;
    const int64_t threads = std::min(graph.threads, blocks), size = graph.edges * table.y_size;
    std::vector<T> extra(y_out && threads > 1 ? (threads - 1) * size : 0);
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (int64_t n = 0; n < threads; ++n) {
        const int64_t from = n * blocks / threads * block, to = (n + 1) * blocks / threads * block;
        T *y = !y_out || n == 0 ? y_out : extra.data() + (n - 1) * size;
        work(from, std::min(to, graph.channels) - from, y);
    }
    for (int64_t n = 1; y_out && n < threads; ++n)
        for (int64_t i = 0; i < size; ++i) y_out[i] += extra[(n - 1) * size + i];
}

// Calls work.run<V, TERMS>(group, first term, from, to) for each group: V is a vector, then a number for the rest.
template <typename T, typename Work> static void each_group(const Table &table, int64_t n, Work &work) {
    const int64_t whole = n / int64_t(64 / sizeof(T)) * int64_t(64 / sizeof(T));
    auto both = [&](auto terms, int64_t i, int64_t j) {
        constexpr int TERMS = decltype(terms)::value;
        work.template run<Vector<T>, TERMS>(i, j, 0, whole);
        if (whole < n) work.template run<T, TERMS>(i, j, whole, n);
    };
    for (int64_t i = 0; i < table.groups; ++i) {
        const int64_t j = table.first_term[i];
        switch (table.first_term[i + 1] - j) {
            case 1: both(std::integral_constant<int, 1>(), i, j); break;
            case 2: both(std::integral_constant<int, 2>(), i, j); break;
            case 3: both(std::integral_constant<int, 3>(), i, j); break;
            default: both(std::integral_constant<int, 4>(), i, j);
        }
    }
}

// out[t, o] += k x[s, a] w[p, f]
template <typename T> struct Forward {
    const Table &table;
    const int64_t C;
    const T *x, *w, *k;
    T *out;

    template <typename V, int TERMS> void run(int64_t i, int64_t j, int64_t from, int64_t to) {
        const T *xa = x + table.a[i] * C, *wf = w + table.f[i] * C;
        T *o[TERMS];
        V kj[TERMS];
        for (int m = 0; m < TERMS; ++m) o[m] = out + table.o[j + m] * C, kj[m] = V{} + k[j + m];
        for (int64_t c = from; c < to; c += sizeof(V) / sizeof(T)) {
            const V xw = load<V>(xa + c) * load<V>(wf + c);
            for (int m = 0; m < TERMS; ++m) add<V>(o[m] + c, kj[m] * xw);
        }
    }
};

template <typename T>
static void forward(const Table &table, const Graph &graph, const T *x, const T *y, const T *w, T *out) {
    const int64_t C = graph.channels;
    split<T>(table, graph, nullptr, [&](int64_t c, int64_t n, T *) {
        std::vector<T> k(table.terms);
        for (int64_t e = 0; e < graph.edges; ++e) {
            coefficients(table, y + e * table.y_size, true, k.data());
            Forward<T> work{table, C, x + graph.source[e] * table.x_rows * C + c, w + graph.row[e] * table.w_rows * C + c,
                            k.data(), out + graph.target[e] * table.out_rows * C + c};
            each_group<T>(table, n, work);
        }
    });
}

// The rows of the filters' derivative: cleared when they are first written, while they are at hand, and those left over.
template <typename T> struct Rows {
    T *out;
    int64_t rows, size, channels, count;
    std::vector<char> seen = std::vector<char>(rows);

    void clear(int64_t row) {
        if (seen[row]) return;
        seen[row] = 1;
        for (int64_t f = 0; f < size; ++f) std::memset(out + (row * size + f) * channels, 0, count * sizeof(T));
    }
    void finish() {
        for (int64_t row = 0; row < rows; ++row) clear(row);
    }
};

// The derivatives of Q by x, y and w.
template <typename T> struct Backward {
    const Table &table;
    const int64_t C;
    const T *x, *w, *g, *k;
    T *x_out, *w_out, *dot;

    template <typename V, int TERMS> void run(int64_t i, int64_t j, int64_t from, int64_t to) {
        const int64_t xr = table.a[i] * C, wr = table.f[i] * C;
        const T *go[TERMS];
        V kj[TERMS], d[TERMS];
        for (int m = 0; m < TERMS; ++m) go[m] = g + table.o[j + m] * C, kj[m] = V{} + k[j + m], d[m] = V{};
        for (int64_t c = from; c < to; c += sizeof(V) / sizeof(T)) {
            const V xa = load<V>(x + xr + c), wf = load<V>(w + wr + c), xw = xa * wf;
            V kg{};
            for (int m = 0; m < TERMS; ++m) {
                const V gm = load<V>(go[m] + c);
                kg += kj[m] * gm;
                d[m] += xw * gm;
            }
            add<V>(x_out + xr + c, kg * wf);
            add<V>(w_out + wr + c, kg * xa);
        }
        for (int m = 0; m < TERMS; ++m) dot[j + m] += total(d[m]);
    }
};

template <typename T>
static void backward(const Table &table, const Graph &graph, const T *x, const T *y, const T *w, const T *g, T *x_out,
                     T *y_out, T *w_out) {
    const int64_t C = graph.channels;
    split<T>(table, graph, y_out, [&](int64_t c, int64_t n, T *y_own) {
        std::vector<T> k(table.terms), dot(table.terms);
        Rows<T> rows{w_out + c, graph.rows, table.w_rows, C, n};
        for (int64_t e = 0; e < graph.edges; ++e) {
            rows.clear(graph.row[e]);
            coefficients(table, y + e * table.y_size, true, k.data());
            std::fill(dot.begin(), dot.end(), T(0));
            const int64_t xi = graph.source[e] * table.x_rows * C + c, wi = graph.row[e] * table.w_rows * C + c;
            Backward<T> work{table, C, x + xi, w + wi, g + graph.target[e] * table.out_rows * C + c, k.data(),
                             x_out + xi, w_out + wi, dot.data()};
            each_group<T>(table, n, work);
            if (table.y_size) scatter(table, dot.data(), y_own + e * table.y_size);
        }
        rows.finish();
    });
}

// The derivatives by x, y, w and g of  dQ/dx hx + dQ/dy hy + dQ/dw hw.
template <typename T> struct Second {
    const Table &table;
    const int64_t C;
    const T *x, *w, *g, *hx, *hw, *k, *h;
    T *x_out, *w_out, *g_out, *dot;

    template <typename V, int TERMS> void run(int64_t i, int64_t j, int64_t from, int64_t to) {
        const int64_t xr = table.a[i] * C, wr = table.f[i] * C;
        int64_t row[TERMS];
        V kj[TERMS], hj[TERMS], d[TERMS];
        for (int m = 0; m < TERMS; ++m)
            row[m] = table.o[j + m] * C, kj[m] = V{} + k[j + m], hj[m] = V{} + h[j + m], d[m] = V{};
        for (int64_t c = from; c < to; c += sizeof(V) / sizeof(T)) {
            const V xa = load<V>(x + xr + c), wf = load<V>(w + wr + c), xw = xa * wf;
            const V hxa = load<V>(hx + xr + c), hwf = load<V>(hw + wr + c), q = hxa * wf + xa * hwf;
            V kg{}, hg{};
            for (int m = 0; m < TERMS; ++m) {
                const V gm = load<V>(g + row[m] + c);
                add<V>(g_out + row[m] + c, hj[m] * xw + kj[m] * q);
                kg += kj[m] * gm;
                hg += hj[m] * gm;
                d[m] += q * gm;
            }
            add<V>(x_out + xr + c, hg * wf + kg * hwf);
            add<V>(w_out + wr + c, hg * xa + kg * hxa);
        }
        for (int m = 0; m < TERMS; ++m) dot[j + m] += total(d[m]);
    }
};

template <typename T>
static void second(const Table &table, const Graph &graph, const T *x, const T *y, const T *w, const T *g, const T *hx,
                   const T *hy, const T *hw, T *x_out, T *y_out, T *w_out, T *g_out) {
    const int64_t C = graph.channels;
    split<T>(table, graph, y_out, [&](int64_t c, int64_t n, T *y_own) {
        std::vector<T> k(table.terms), h(table.terms), dot(table.terms);
        Rows<T> rows{w_out + c, graph.rows, table.w_rows, C, n};
        for (int64_t e = 0; e < graph.edges; ++e) {
            rows.clear(graph.row[e]);
            coefficients(table, y + e * table.y_size, true, k.data());
            coefficients(table, hy + e * table.y_size, false, h.data());
            std::fill(dot.begin(), dot.end(), T(0));
            const int64_t xi = graph.source[e] * table.x_rows * C + c, wi = graph.row[e] * table.w_rows * C + c;
            const int64_t gi = graph.target[e] * table.out_rows * C + c;
            Second<T> work{table,     C,          x + xi,     w + wi,     g + gi,     hx + xi, hw + wi,
                           k.data(), h.data(), x_out + xi, w_out + wi, g_out + gi, dot.data()};
            each_group<T>(table, n, work);
            if (table.y_size) scatter(table, dot.data(), y_own + e * table.y_size);
        }
        rows.finish();
    });
}

// The first edge that leads out of the arrays, or -1.
static int64_t stray(const Graph &graph) {
    auto outside = [](int64_t index, int64_t size) { return index < 0 || index >= size; };
    for (int64_t e = 0; e < graph.edges; ++e)
        if (outside(graph.source[e], graph.nodes) || outside(graph.target[e], graph.nodes) ||
            outside(graph.row[e], graph.rows))
            return e;
    return -1;
}

template <typename T>
int64_t edge_sum_forward(const Table &table, const Graph &graph, const T *x, const T *y, const T *w, T *out) {
    const int64_t edge = stray(graph);
    if (edge < 0) forward<T>(table, graph, x, y, w, out);
    return edge;
}

template <typename T>
int64_t edge_sum_backward(const Table &table, const Graph &graph, const T *x, const T *y, const T *w, const T *g, T *x_out,
                          T *y_out, T *w_out) {
    const int64_t edge = stray(graph);
    if (edge < 0) backward<T>(table, graph, x, y, w, g, x_out, y_out, w_out);
    return edge;
}

template <typename T>
int64_t edge_sum_second(const Table &table, const Graph &graph, const T *x, const T *y, const T *w, const T *g, const T *hx,
                        const T *hy, const T *hw, T *x_out, T *y_out, T *w_out, T *g_out) {
    const int64_t edge = stray(graph);
    if (edge < 0) second<T>(table, graph, x, y, w, g, hx, hy, hw, x_out, y_out, w_out, g_out);
    return edge;
}

#define EXPORT(T)                                                                                                      \
    template int64_t edge_sum_forward<T>(const Table &, const Graph &, const T *, const T *, const T *, T *);          \
    template int64_t edge_sum_backward<T>(const Table &, const Graph &, const T *, const T *, const T *, const T *,    \
                                          T *, T *, T *);                                                              \
    template int64_t edge_sum_second<T>(const Table &, const Graph &, const T *, const T *, const T *, const T *,      \
                                        const T *, const T *, const T *, T *, T *, T *, T *);
EXPORT(float)
EXPORT(double)

}  // namespace kernels
