// The sum over edges of products of features, geometry and filters, with its first two derivatives; see edge_sum.py.
//
// For every edge e from s to t, with its row p of the filters, and every channel c:
//
//     Q = sum_e sum_terms  k_e,term  sum_c  x[s, a, c]  w[p, f, c]  g[t, o, c],     k_e,term = sum v * y[e, b]
//
// Terms with the same (a, f) form groups of at most four, for which the product x * w is computed once. Channels lie
// next to each other in memory and are handled by vectors of 64 bytes, what is left over one by one. (k - V{} are equal
// numbers: no operation, unlike V{} + k.) Threads divide the channels, so that no two write to the same place.

#include "kernels.h"
#include "vectors.h"
#include "workspace.h"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

namespace kernels {

template <typename V, typename T> static void add(T *to, V value) {
    *reinterpret_cast<V *>(to) = *reinterpret_cast<const V *>(to) + value;
}
template <typename T> constexpr int64_t LANES = sizeof(Vector<T>) / sizeof(T);

// What the geometry of an edge has to do with its terms.
template <typename T> class Geometry {
    struct Entry {
        int64_t place;  // of the term's vector
        T v;
    };
    const int64_t size, width;         // of y, and of all terms in whole vectors
    std::vector<Entry> entries;        // in the order of y
    std::vector<int64_t> first_entry;  // of each y
    const Workspace workspace;
    T *const columns;                  // v of all terms, [1 + size, width]: the constant one and those of each y

public:
    explicit Geometry(const Table &table)
        : size(table.y_size), width((table.terms + LANES<T> - 1) / LANES<T> * LANES<T>), first_entry(1),
          columns(std::fill_n(workspace.take<T>((1 + size) * width), (1 + size) * width, T(0)) - (1 + size) * width) {
        for (int64_t term = 0; term < table.terms; ++term)
            for (int64_t i = table.first_entry[term]; i < table.first_entry[term + 1]; ++i)
                columns[(1 + table.b[i]) * width + term] += T(table.v[i]);
        for (int64_t b = 0; b < size; ++b) {
            for (int64_t term = 0; term < table.terms; ++term)
                if (const T v = columns[(1 + b) * width + term]; v != 0) entries.push_back({term * LANES<T>, v});
            first_entry.push_back(entries.size());
        }
    }
    // Numbers of all terms.
    T *take() const { return workspace.take<T>(width); }

    // The terms' k of an edge's y.
    void read(const T *y, bool constant, T *k) const {
        for (int64_t term = 0; term < width; term += LANES<T>) {
            Vector<T> sum{};
            if (constant) sum = load<Vector<T>>(columns + term);
            for (int64_t b = 0; b < size; ++b) sum += load<Vector<T>>(columns + (1 + b) * width + term) * y[b];
            store(k + term, sum);
        }
    }
    // Adds the derivatives by y, with those by the terms' k given as a vector each, whose lanes are to be summed.
    void write(const T *of_k, T *y) const {
        for (int64_t b = 0; b < size; ++b) {
            Vector<T> sum{};
            for (int64_t i = first_entry[b]; i < first_entry[b + 1]; ++i)
                sum += load<Vector<T>>(of_k + entries[i].place) * entries[i].v;
            y[b] += sum_of_lanes(reinterpret_cast<const T *>(&sum));
        }
    }
};

// How far it is to the rows of the next edge, which are fetched while this one's are worked on.
struct Next {
    int64_t x, w;

    Next(const Table &table, const Graph &graph, int64_t e) {
        const int64_t next = std::min(e + 1, graph.edges - 1);
        x = (graph.source[next] - graph.source[e]) * table.x_rows * graph.channels;
        w = (graph.row[next] - graph.row[e]) * table.w_rows * graph.channels;
    }
};

// A sum over channels: first a vector, then what the channels add that are left over.
template <typename T, typename V> static void put_sum(V sum, T *to) {
    if constexpr (std::is_same_v<V, T>) *to += sum;
    else store(to, sum);
}

// Runs work(first channel, number of channels, its own sums of y) on every thread and adds those sums up.
template <typename T, typename Work> static void split(const Table &table, const Graph &graph, T *y_out, Work work) {
    const int64_t block = LANES<T>, blocks = (graph.channels + block - 1) / block;
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
    const int64_t whole = n / LANES<T> * LANES<T>;
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

// Rows that are summed up: cleared when they are first written, while they are at hand, and those left over.
template <typename T> class Rows {
    T *const out;
    const int64_t rows, size, channels, count;
    std::vector<char> seen = std::vector<char>(rows);

public:
    Rows(T *out, int64_t rows, int64_t size, int64_t channels, int64_t count)
        : out(out), rows(rows), size(size), channels(channels), count(count) {}
    T *clear(int64_t row) {
        T *to = out + row * size * channels;
        if (!seen[row])
            for (int64_t f = 0; f < size; ++f) std::memset(to + f * channels, 0, count * sizeof(T));
        seen[row] = 1;
        return to;
    }
    void finish() {
        for (int64_t row = 0; row < rows; ++row) clear(row);
    }
};

// out[t, o] += k x[s, a] w[p, f]
template <typename T> struct Forward {
    const Table &table;
    const int64_t C;
    const Next next;
    const T *x, *w, *k;
    T *out;

    template <typename V, int TERMS> void run(int64_t i, int64_t j, int64_t from, int64_t to) {
        const T *xa = x + table.a[i] * C, *wf = w + table.f[i] * C;
        T *o[TERMS];
        V kj[TERMS];
        for (int m = 0; m < TERMS; ++m) o[m] = out + table.o[j + m] * C, kj[m] = k[j + m] - V{};
        for (int64_t c = from; c < to; c += sizeof(V) / sizeof(T)) {
            __builtin_prefetch(xa + c + next.x), __builtin_prefetch(wf + c + next.w);
            const V xw = load<V>(xa + c) * load<V>(wf + c);
            for (int m = 0; m < TERMS; ++m) add<V>(o[m] + c, kj[m] * xw);
        }
    }
};

template <typename T>
static void forward(const Table &table, const Graph &graph, const T *x, const T *y, const T *w, T *out) {
    const int64_t C = graph.channels;
    split<T>(table, graph, nullptr, [&](int64_t c, int64_t n, T *) {
        const Geometry<T> geometry(table);
        T *const k = geometry.take();
        Rows<T> atoms{out + c, graph.nodes, table.out_rows, C, n};
        for (int64_t e = 0; e < graph.edges; ++e) {
            geometry.read(y + e * table.y_size, true, k);
            Forward<T> work{table, C, Next(table, graph, e), x + graph.source[e] * table.x_rows * C + c,
                            w + graph.row[e] * table.w_rows * C + c, k, atoms.clear(graph.target[e])};
            each_group<T>(table, n, work);
        }
        atoms.finish();
    });
}

// The derivatives of Q by x, y and w.
template <typename T> struct Backward {
    const Table &table;
    const int64_t C;
    const Next next;
    const T *x, *w, *g, *k;
    T *x_out, *w_out, *of_k;  // the latter a vector of each term

    template <typename V, int TERMS> void run(int64_t i, int64_t j, int64_t from, int64_t to) {
        const int64_t xr = table.a[i] * C, wr = table.f[i] * C;
        const T *go[TERMS];
        V kj[TERMS], d[TERMS];
        for (int m = 0; m < TERMS; ++m) go[m] = g + table.o[j + m] * C, kj[m] = k[j + m] - V{}, d[m] = V{};
        for (int64_t c = from; c < to; c += sizeof(V) / sizeof(T)) {
            const int64_t at_x = xr + c, at_w = wr + c;
            __builtin_prefetch(x + at_x + next.x), __builtin_prefetch(x_out + at_x + next.x, 1);
            __builtin_prefetch(w + at_w + next.w), __builtin_prefetch(w_out + at_w + next.w, 1);
            const V xa = load<V>(x + at_x), wf = load<V>(w + at_w), xw = xa * wf;
            V kg{};
            for (int m = 0; m < TERMS; ++m) {
                const V gm = load<V>(go[m] + c);
                kg += kj[m] * gm;
                d[m] += xw * gm;
            }
            add<V>(x_out + at_x, kg * wf);
            add<V>(w_out + at_w, kg * xa);
        }
        for (int m = 0; m < TERMS; ++m) put_sum(d[m], of_k + (j + m) * LANES<T>);
    }
};

template <typename T>
static void backward(const Table &table, const Graph &graph, const T *x, const T *y, const T *w, const T *g, T *x_out,
                     T *y_out, T *w_out) {
    const int64_t C = graph.channels;
    split<T>(table, graph, y_out, [&](int64_t c, int64_t n, T *y_own) {
        const Geometry<T> geometry(table);
        T *const k = geometry.take(), *const of_k = Workspace::take<T>(table.terms * LANES<T>);
        Rows<T> atoms{x_out + c, graph.nodes, table.x_rows, C, n}, filters{w_out + c, graph.rows, table.w_rows, C, n};
        for (int64_t e = 0; e < graph.edges; ++e) {
            geometry.read(y + e * table.y_size, true, k);
            const int64_t xi = graph.source[e] * table.x_rows * C + c, wi = graph.row[e] * table.w_rows * C + c;
            Backward<T> work{table, C, Next(table, graph, e), x + xi, w + wi, g + graph.target[e] * table.out_rows * C + c,
                             k, atoms.clear(graph.source[e]), filters.clear(graph.row[e]), of_k};
            each_group<T>(table, n, work);
            geometry.write(of_k, y_own + e * table.y_size);
        }
        atoms.finish(), filters.finish();
    });
}

// The derivatives by x, y, w and g of  dQ/dx hx + dQ/dy hy + dQ/dw hw.
template <typename T> struct Second {
    const Table &table;
    const int64_t C;
    const Next next;
    const T *x, *w, *g, *hx, *hw, *k, *h;
    T *x_out, *w_out, *g_out, *of_k;

    template <typename V, int TERMS> void run(int64_t i, int64_t j, int64_t from, int64_t to) {
        const int64_t xr = table.a[i] * C, wr = table.f[i] * C;
        int64_t row[TERMS];
        V kj[TERMS], hj[TERMS], d[TERMS];
        for (int m = 0; m < TERMS; ++m)
            row[m] = table.o[j + m] * C, kj[m] = k[j + m] - V{}, hj[m] = h[j + m] - V{}, d[m] = V{};
        for (int64_t c = from; c < to; c += sizeof(V) / sizeof(T)) {
            const int64_t at_x = xr + c, at_w = wr + c;
            __builtin_prefetch(x + at_x + next.x), __builtin_prefetch(hx + at_x + next.x);
            __builtin_prefetch(w + at_w + next.w), __builtin_prefetch(hw + at_w + next.w);
            __builtin_prefetch(x_out + at_x + next.x, 1), __builtin_prefetch(w_out + at_w + next.w, 1);
            const V xa = load<V>(x + at_x), wf = load<V>(w + at_w), xw = xa * wf;
            const V hxa = load<V>(hx + at_x), hwf = load<V>(hw + at_w), q = hxa * wf + xa * hwf;
            V kg{}, hg{};
            for (int m = 0; m < TERMS; ++m) {
                const V gm = load<V>(g + row[m] + c);
                add<V>(g_out + row[m] + c, hj[m] * xw + kj[m] * q);
                kg += kj[m] * gm;
                hg += hj[m] * gm;
                d[m] += q * gm;
            }
            add<V>(x_out + at_x, hg * wf + kg * hwf);
            add<V>(w_out + at_w, hg * xa + kg * hxa);
        }
        for (int m = 0; m < TERMS; ++m) put_sum(d[m], of_k + (j + m) * LANES<T>);
    }
};

template <typename T>
static void second(const Table &table, const Graph &graph, const T *x, const T *y, const T *w, const T *g, const T *hx,
                   const T *hy, const T *hw, T *x_out, T *y_out, T *w_out, T *g_out) {
    const int64_t C = graph.channels;
    split<T>(table, graph, y_out, [&](int64_t c, int64_t n, T *y_own) {
        const Geometry<T> geometry(table);
        T *const k = geometry.take(), *const h = geometry.take();
        T *const of_k = Workspace::take<T>(table.terms * LANES<T>);
        Rows<T> sources{x_out + c, graph.nodes, table.x_rows, C, n}, filters{w_out + c, graph.rows, table.w_rows, C, n};
        Rows<T> targets{g_out + c, graph.nodes, table.out_rows, C, n};
        for (int64_t e = 0; e < graph.edges; ++e) {
            geometry.read(y + e * table.y_size, true, k);
            geometry.read(hy + e * table.y_size, false, h);
            const int64_t xi = graph.source[e] * table.x_rows * C + c, wi = graph.row[e] * table.w_rows * C + c;
            Second<T> work{table, C, Next(table, graph, e), x + xi, w + wi, g + graph.target[e] * table.out_rows * C + c,
                           hx + xi, hw + wi, k, h, sources.clear(graph.source[e]), filters.clear(graph.row[e]),
                           targets.clear(graph.target[e]), of_k};
            each_group<T>(table, n, work);
            geometry.write(of_k, y_own + e * table.y_size);
        }
        sources.finish(), filters.finish(), targets.finish();
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
