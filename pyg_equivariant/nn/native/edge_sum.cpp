// The sum over edges of products of features, geometry and filters, with its first two derivatives; see edge_sum.py.
//
// For every edge e from s to t, with its row p of the filters, and every channel c:
//
//     Q = sum_e sum_terms  k_e,term  sum_c  x[s, a, c]  w[p, f, c]  g[t, o, c],     k_e,term = sum v * y[e, b]
//
// Terms with the same (a, f) form groups of at most four, for which the product x * w is computed once. Channels lie
// next to each other in memory and are handled by vectors, what is left over one by one. (k - V{} are equal
// numbers: no operation, unlike V{} + k.)
//
// The filters may lie between the nodes of a table, w[p] = sum_m c[p, m] table[start[p] + m]: then they are computed
// where an edge needs them, and so are their derivatives, which go to c and table at once.

#include "between.h"
#include "kernels.h"
#include "vectors.h"
#include "workspace.h"

#include <algorithm>
#include <array>
#include <deque>
#include <memory>
#include <mutex>
#include <type_traits>
#include <utility>
#include <vector>

namespace kernels {

template <typename V, typename T> static void add(T *to, V value) {
    *reinterpret_cast<V *>(to) = *reinterpret_cast<const V *>(to) + value;
}
template <int SIZE, typename Work> static auto array(const Work &work) {
    return [&]<int... M>(std::integer_sequence<int, M...>) {
        return std::array{work(M)...};
    }(std::make_integer_sequence<int, SIZE>());
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
    // A vector of each term.
    T *take_vectors() const { return workspace.take<T>(width * LANES<T>); }

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

// The edges one after the other, in batches. Where there is a table a batch's filters lie between the same nodes, and the
// edges of a row follow each other, among those to as many atoms as the processor's cache may hold.
class Order {
    static constexpr int64_t CACHE = 1 << 20;  // bytes
    static constexpr size_t KEPT = 2;          // a first layer's and that of the others
    const int64_t edges;
    std::vector<int64_t> order;                      // as they are if there is none
    const std::vector<int64_t> target, row, starts;  // what it was made of

    bool fits(const Graph &graph, int64_t most) const {
        const auto same = [](const std::vector<int64_t> &known, const int64_t *numbers, int64_t size) {
            return int64_t(known.size()) == size && std::equal(known.begin(), known.end(), numbers);
        };
        return most == this->most && same(target, graph.target, graph.edges) && same(row, graph.row, graph.edges) &&
               same(starts, graph.start, graph.rows);
    }

public:
    static constexpr int64_t ROWS = 16;  // of a batch at most
    struct Batch {
        int64_t first_edge, last_edge, first_row, last_row;
    };
    std::vector<Batch> batches;
    std::vector<int64_t> rows, place;        // of each batch, one after the other; and of each edge among them
    const int64_t most;                      // atoms of a block
    std::vector<int64_t> first_batch = {0};  // of each block

    // That of a graph: a model asks in every layer, so that the last ones are kept.
    static std::shared_ptr<const Order> of(const Table &table, const Graph &graph, int64_t bytes) {
        if (!graph.start) return std::make_shared<const Order>(graph);
        static std::mutex mutex;
        static std::deque<std::shared_ptr<const Order>> known;
        const int64_t size = std::max<int64_t>(1, (table.x_rows + table.out_rows) * graph.channels * bytes);
        const int64_t most = std::max<int64_t>(1, std::min(CACHE / size, (graph.nodes - 1) / graph.threads + 1));
        const std::lock_guard<std::mutex> lock(mutex);
        for (const auto &each : known)
            if (each->fits(graph, most)) return each;
        const auto made = known.emplace_front(std::make_shared<const Order>(graph, most));
        if (known.size() > KEPT) known.pop_back();
        return made;
    }

    explicit Order(const Graph &graph) : edges(graph.edges), most(graph.nodes) { batches.push_back({0, edges, 0, 0}); }
    Order(const Graph &graph, int64_t most)
        : edges(graph.edges), target(graph.target, graph.target + edges), row(graph.row, graph.row + edges),
          starts(graph.start, graph.start + graph.rows), most(most) {
        std::vector<int64_t> block(edges), known(graph.rows);
        for (int64_t e = 0; e < edges; ++e) block[e] = graph.target[e] / most;
        const Sorted blocks(block.data(), edges, (graph.nodes + most - 1) / most);
        for (size_t b = 0; b + 2 < blocks.first.size(); ++b) {
            const int64_t *const first = blocks.order.data() + blocks.first[b], count = blocks.first[b + 1] - blocks.first[b];
            std::vector<int64_t> own, start, of(count);  // rows of the block and where they begin, and which an edge has
            for (int64_t n = 0; n < count; ++n) {
                const int64_t row = graph.row[first[n]];
                if (known[row] >= int64_t(own.size()) || own[known[row]] != row) {
                    known[row] = own.size();
                    own.push_back(row), start.push_back(graph.start[row]);
                }
                of[n] = known[row];
            }
            const Sorted by_node(start.data(), own.size(), graph.nodes_of_table), by_row(of.data(), count, own.size());
            for (size_t n = 0; n < own.size(); ++n) {
                const int64_t row = by_node.order[n], edge = order.size(), size = rows.size();
                if (n == 0 || start[row] != start[by_node.order[n - 1]] || size - batches.back().first_row == ROWS)
                    batches.push_back({edge, edge, size, size});
                rows.push_back(own[row]);
                for (int64_t m = by_row.first[row]; m < by_row.first[row + 1]; ++m) {
                    order.push_back(first[by_row.order[m]]);
                    place.push_back(size - batches.back().first_row);
                }
                batches.back().last_edge = order.size(), batches.back().last_row = rows.size();
            }
            first_batch.push_back(batches.size());
        }
    }
    // An edge, or the last one if there are fewer.
    int64_t operator[](int64_t n) const {
        n = std::min(n, edges - 1);
        return order.empty() ? n : order[n];
    }
};

// How far it is to the rows of the next edge, which are fetched while this one's are worked on: where there is no table,
// for the order is one that keeps them at hand otherwise.
template <bool TABLE> struct Next {
    int64_t x, w;

    Next(const Table &table, const Graph &graph, const Order &order, int64_t n) {
        const int64_t e = order[n], next = order[n + 1];
        x = (graph.source[next] - graph.source[e]) * table.x_rows * graph.channels;
        w = (graph.row[next] - graph.row[e]) * table.w_rows * graph.channels;
    }
    template <typename... T> static void fetch(const T *...from) { (__builtin_prefetch(from), ...); }
    template <typename... T> static void fetch_to_write(T *...to) { (__builtin_prefetch(to, 1), ...); }
};
template <> struct Next<true> {
    static constexpr int64_t x = 0, w = 0;

    Next(const Table &, const Graph &, const Order &, int64_t) {}
    template <typename... T> static void fetch(T...) {}
    template <typename... T> static void fetch_to_write(T...) {}
};

// A sum over channels: first a vector, then what the channels add that are left over.
template <typename T, typename V> static void put_sum(V sum, T *to) {
    if constexpr (std::is_same_v<V, T>) *to += sum;
    else store(to, sum);
}

// What a thread does: some of the channels of all batches, or all of those of some batches, whose targets are its own.
struct Share {
    int64_t channel, channels, first_batch, last_batch, first_target, last_target;
};

// Runs work(share, its own sums) on every thread and adds these up.
template <typename T, typename Work>
static void split(const Table &table, const Graph &graph, const Order &order, Outputs<T> of, const Work &work) {
    const int64_t blocks = graph.start ? order.first_batch.size() - 1 : (graph.channels + LANES<T> - 1) / LANES<T>;
    const int64_t threads = std::min(graph.threads, blocks), C = graph.channels;
    // what several threads add to: if channels are divided what is summed over them, else what edges to several atoms share
    const bool of_batches = graph.start;
    const std::pair<T *Outputs<T>::*, int64_t> shared[] = {
        {&Outputs<T>::x, of.x && of_batches ? graph.nodes * table.x_rows * C : 0},
        {&Outputs<T>::y, of.y && !of_batches ? graph.edges * table.y_size : 0},
        {&Outputs<T>::w, of.w && of_batches ? graph.nodes_of_table * table.w_rows * C : 0},
        {&Outputs<T>::c, of.c && of_batches ? graph.rows * POINTS : 0},
    };
    int64_t size = 0;
    for (const auto &[_, numbers] : shared) size += numbers;
    std::vector<T> extra(std::max<int64_t>(0, threads - 1) * size);
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (int64_t n = 0; n < threads; ++n) {
        const int64_t from = n * blocks / threads, to = (n + 1) * blocks / threads;
        Outputs<T> own = of;
        T *next = extra.data() + (n - 1) * size;
        for (const auto &[place, numbers] : shared)
            if (n && numbers) own.*place = next, next += numbers;
        if (of_batches)
            work(Share{0, C, order.first_batch[from], order.first_batch[to], from * order.most, std::min(to * order.most, graph.nodes)},
                 own);
        else
            work(Share{from * LANES<T>, std::min(to * LANES<T>, C) - from * LANES<T>, 0, 1, 0, graph.nodes}, own);
    }
    const T *next = extra.data();
    for (int64_t n = 1; n < threads; ++n)
        for (const auto &[place, numbers] : shared)
            for (int64_t i = 0; i < numbers; ++i) (of.*place)[i] += *next++;
}

// Calls work.run<V, TERMS>(group, first term, from, to) for each group: V is a vector, then a number for the rest.
template <typename T, typename Work> static void each_group(const Table &table, int64_t n, const Work &work) {
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

// The filters of a batch of edges, and what their derivatives add up to.
template <typename T> class Filters {
    const Graph &graph;
    const Order &order;
    const Inputs<T> in, h;
    const Outputs<T> of;
    const int64_t size;  // of a row
    const Workspace workspace;
    T *const w, *const hw, *const w_out, *const first;  // of the batch, if there is a table
    Rows<T> rows;                                       // if there is none

    T *take(bool needed) const { return needed && graph.start ? Workspace::take<T>(Order::ROWS * size) : nullptr; }
    static constexpr auto AS_THEY_ARE = [](int64_t n) { return n; };

public:
    // Of an edge; first is for the derivative by w of Q, which second needs where there is a table.
    struct At {
        const T *w, *hw;
        T *w_out, *first;
    };

    Filters(const Table &table, const Graph &graph, const Order &order, const Share &share, Inputs<T> in, Outputs<T> of = {},
            Inputs<T> h = {})
        : graph(graph), order(order), in(in.from(share.channel)), h(h.from(share.channel)), of(of.from(share.channel)),
          size(table.w_rows * graph.channels), w(take(true)), hw(take(h.x)), w_out(take(of.x)), first(take(h.x)),
          rows(this->of.w, 0, graph.start ? 0 : graph.rows, table.w_rows, graph.channels, share.channels) {}

    void open(const Order::Batch &batch) const {
        if (!graph.start) return;
        const int64_t *const row = order.rows.data() + batch.first_row, count = batch.last_row - batch.first_row;
        const int64_t at = graph.start[*row] * size;
        read_between<false>(in.w + at, size, size, row, count, in.c, w, AS_THEY_ARE);
        for (T *clear : {w_out, first, h.w || h.c ? nullptr : hw})
            if (clear) std::fill_n(clear, count * size, T(0));
        if (!hw) return;
        if (h.c) read_between<false>(in.w + at, size, size, row, count, h.c, hw, AS_THEY_ARE);
        if (h.w && h.c) read_between<true>(h.w + at, size, size, row, count, in.c, hw, AS_THEY_ARE);
        if (h.w && !h.c) read_between<false>(h.w + at, size, size, row, count, in.c, hw, AS_THEY_ARE);
    }
    At at(int64_t n) {
        if (graph.start) {
            const int64_t at = order.place[n] * size;
            return {w + at, hw + at, w_out + at, first + at};
        }
        const int64_t row = graph.row[order[n]], at = row * size;
        return {in.w + at, h.w ? h.w + at : nullptr, of.w ? rows.clear(row) : nullptr, nullptr};
    }
    void close(const Order::Batch &batch) const {
        if (!graph.start) return;
        const int64_t *const row = order.rows.data() + batch.first_row, count = batch.last_row - batch.first_row;
        const int64_t at = graph.start[*row] * size;
        if (of.c) dot_between(w_out, in.w + at, size, size, row, count, of.c, AS_THEY_ARE);
        if (of.w) put_between(w_out, size, size, row, count, in.c, of.w + at, AS_THEY_ARE);
        if (of.c && h.w) dot_between(first, h.w + at, size, size, row, count, of.c, AS_THEY_ARE);
        if (of.w && h.c) put_between(first, size, size, row, count, h.c, of.w + at, AS_THEY_ARE);
    }
    void finish() {
        if (!graph.start && of.w) rows.finish();
    }
};

// Calls work(number of edges, place of the first) for a thread's share: two at a time if they share a row between nodes.
template <bool TABLE, typename T, typename Work>
static void each_edge(const Order &order, const Share &share, Filters<T> &filters, const Work &work) {
    for (int64_t b = share.first_batch; b < share.last_batch; ++b) {
        const Order::Batch &batch = order.batches[b];
        filters.open(batch);
        for (int64_t n = batch.first_edge; n < batch.last_edge;) {
            if constexpr (TABLE)
                if (n + 1 < batch.last_edge && order.place[n] == order.place[n + 1]) {
                    work(std::integral_constant<int, 2>(), n);
                    n += 2;
                    continue;
                }
            work(std::integral_constant<int, 1>(), n++);
        }
        filters.close(batch);
    }
    filters.finish();
}

// out[t, o] += k x[s, a] w[p, f]
template <typename T, bool TABLE, int EDGES> struct Forward {
    struct Edge {
        Next<TABLE> next;
        const T *x, *k;
        T *out;
    };
    const Table &table;
    const int64_t C;
    const T *w;
    const std::array<Edge, EDGES> edges;

    template <typename V, int TERMS> void run(int64_t i, int64_t j, int64_t from, int64_t to) const {
        const int64_t xr = table.a[i] * C, wr = table.f[i] * C;
        int64_t row[TERMS];
        V kj[EDGES][TERMS];
        for (int m = 0; m < TERMS; ++m) {
            row[m] = table.o[j + m] * C;
            for (int e = 0; e < EDGES; ++e) kj[e][m] = edges[e].k[j + m] - V{};
        }
#pragma GCC unroll 2
        for (int64_t c = from; c < to; c += sizeof(V) / sizeof(T)) {
            const V wf = load<V>(w + wr + c);
            edges[0].next.fetch(w + wr + c + edges[0].next.w);
            for (int e = 0; e < EDGES; ++e) {
                const auto &[next, x, k, out] = edges[e];
                next.fetch(x + xr + c + next.x);
                const V xw = load<V>(x + xr + c) * wf;
                for (int m = 0; m < TERMS; ++m) add<V>(out + row[m] + c, kj[e][m] * xw);
            }
        }
    }
};

template <typename T, bool TABLE>
static void forward(const Table &table, const Graph &graph, Inputs<T> in, T *out) {
    const int64_t C = graph.channels;
    const auto kept = Order::of(table, graph, sizeof(T));
    const Order &order = *kept;
    split<T>(table, graph, order, {}, [&](const Share &share, Outputs<T>) {
        const int64_t c = share.channel, count = share.channels;
        const Geometry<T> geometry(table);
        T *const k[] = {geometry.take(), geometry.take()};
        Rows<T> atoms{out + c, share.first_target, share.last_target, table.out_rows, C, count};
        Filters<T> filters(table, graph, order, share, in);
        each_edge<TABLE>(order, share, filters, [&](auto edges, int64_t n) {
            constexpr int EDGES = decltype(edges)::value;
            using Work = Forward<T, TABLE, EDGES>;
            each_group<T>(table, count, Work{table, C, filters.at(n).w, array<EDGES>([&](int m) -> Work::Edge {
                const int64_t e = order[n + m];
                geometry.read(in.y + e * table.y_size, true, k[m]);
                return {Next<TABLE>(table, graph, order, n + m), in.x + graph.source[e] * table.x_rows * C + c, k[m],
                        atoms.clear(graph.target[e])};
            })});
        });
        atoms.finish();
    });
}

// The derivatives of Q by x, y and w.
template <typename T, bool TABLE, int EDGES> struct Backward {
    struct Edge {
        Next<TABLE> next;
        const T *x, *g, *k;
        T *x_out, *of_k;  // the latter a vector of each term
    };
    const Table &table;
    const int64_t C;
    const T *w;
    T *w_out;
    const std::array<Edge, EDGES> edges;

    template <typename V, int TERMS> void run(int64_t i, int64_t j, int64_t from, int64_t to) const {
        const int64_t xr = table.a[i] * C, wr = table.f[i] * C;
        int64_t row[TERMS];
        V kj[EDGES][TERMS], d[EDGES][TERMS];
        for (int m = 0; m < TERMS; ++m) {
            row[m] = table.o[j + m] * C;
            for (int e = 0; e < EDGES; ++e) kj[e][m] = edges[e].k[j + m] - V{}, d[e][m] = V{};
        }
#pragma GCC unroll 2
        for (int64_t c = from; c < to; c += sizeof(V) / sizeof(T)) {
            const V wf = load<V>(w + wr + c);
            V of_w = load<V>(w_out + wr + c);
            edges[0].next.fetch(w + wr + c + edges[0].next.w);
            edges[0].next.fetch_to_write(w_out + wr + c + edges[0].next.w);
            for (int e = 0; e < EDGES; ++e) {
                const auto &[next, x, g, k, x_out, of_k] = edges[e];
                next.fetch(x + xr + c + next.x), next.fetch_to_write(x_out + xr + c + next.x);
                const V xa = load<V>(x + xr + c), xw = xa * wf;
                V kg{};
                for (int m = 0; m < TERMS; ++m) {
                    const V gm = load<V>(g + row[m] + c);
                    kg += kj[e][m] * gm;
                    d[e][m] += xw * gm;
                }
                add<V>(x_out + xr + c, kg * wf);
                of_w += kg * xa;
            }
            store(w_out + wr + c, of_w);
        }
        for (int e = 0; e < EDGES; ++e)
            for (int m = 0; m < TERMS; ++m) put_sum(d[e][m], edges[e].of_k + (j + m) * LANES<T>);
    }
};

template <typename T, bool TABLE>
static void backward(const Table &table, const Graph &graph, Inputs<T> in, const T *g, Outputs<T> of) {
    const int64_t C = graph.channels;
    const auto kept = Order::of(table, graph, sizeof(T));
    const Order &order = *kept;
    split<T>(table, graph, order, of, [&](const Share &share, Outputs<T> own) {
        const int64_t c = share.channel, count = share.channels;
        const Geometry<T> geometry(table);
        T *const k[] = {geometry.take(), geometry.take()}, *const of_k[] = {geometry.take_vectors(), geometry.take_vectors()};
        Rows<T> atoms{own.x + c, 0, graph.nodes, table.x_rows, C, count};
        Filters<T> filters(table, graph, order, share, in, own);
        each_edge<TABLE>(order, share, filters, [&](auto edges, int64_t n) {
            constexpr int EDGES = decltype(edges)::value;
            using Work = Backward<T, TABLE, EDGES>;
            const auto at = filters.at(n);
            each_group<T>(table, count, Work{table, C, at.w, at.w_out, array<EDGES>([&](int m) -> Work::Edge {
                const int64_t e = order[n + m];
                geometry.read(in.y + e * table.y_size, true, k[m]);
                return {Next<TABLE>(table, graph, order, n + m), in.x + graph.source[e] * table.x_rows * C + c,
                        g + graph.target[e] * table.out_rows * C + c, k[m], atoms.clear(graph.source[e]), of_k[m]};
            })});
            for (int m = 0; own.y && m < EDGES; ++m) geometry.write(of_k[m], own.y + order[n + m] * table.y_size);
        });
        atoms.finish();
    });
}

// The derivatives by x, y, w and g of  dQ/dx hx + dQ/dy hy + dQ/dw hw,  and that by w of Q where there is a table.
template <typename T, bool TABLE, int EDGES> struct Second {
    struct Edge {
        Next<TABLE> next;
        const T *x, *g, *hx, *k, *h;
        T *x_out, *g_out, *of_k;
    };
    const Table &table;
    const int64_t C;
    const T *w, *hw;
    T *w_out, *first;
    const std::array<Edge, EDGES> edges;

    template <typename V, int TERMS> void run(int64_t i, int64_t j, int64_t from, int64_t to) const {
        const int64_t xr = table.a[i] * C, wr = table.f[i] * C;
        int64_t row[TERMS];
        V kj[EDGES][TERMS], hj[EDGES][TERMS], d[EDGES][TERMS];
        for (int m = 0; m < TERMS; ++m) {
            row[m] = table.o[j + m] * C;
            for (int e = 0; e < EDGES; ++e)
                kj[e][m] = edges[e].k[j + m] - V{}, hj[e][m] = edges[e].h[j + m] - V{}, d[e][m] = V{};
        }
#pragma GCC unroll 2
        for (int64_t c = from; c < to; c += sizeof(V) / sizeof(T)) {
            const V wf = load<V>(w + wr + c), hwf = load<V>(hw + wr + c);
            V of_w = load<V>(w_out + wr + c), by_w{};
            if constexpr (TABLE) by_w = load<V>(first + wr + c);
            const int64_t ahead = wr + c + edges[0].next.w;
            edges[0].next.fetch(w + ahead, hw + ahead), edges[0].next.fetch_to_write(w_out + ahead);
            for (int e = 0; e < EDGES; ++e) {
                const auto &[next, x, g, hx, k, h, x_out, g_out, of_k] = edges[e];
                next.fetch(x + xr + c + next.x, hx + xr + c + next.x), next.fetch_to_write(x_out + xr + c + next.x);
                const V xa = load<V>(x + xr + c), xw = xa * wf;
                const V hxa = load<V>(hx + xr + c), q = hxa * wf + xa * hwf;
                V kg{}, hg{};
                for (int m = 0; m < TERMS; ++m) {
                    const V gm = load<V>(g + row[m] + c);
                    add<V>(g_out + row[m] + c, hj[e][m] * xw + kj[e][m] * q);
                    kg += kj[e][m] * gm;
                    hg += hj[e][m] * gm;
                    d[e][m] += q * gm;
                }
                add<V>(x_out + xr + c, hg * wf + kg * hwf);
                of_w += hg * xa + kg * hxa;
                by_w += kg * xa;
            }
            store(w_out + wr + c, of_w);
            if constexpr (TABLE) store(first + wr + c, by_w);
        }
        for (int e = 0; e < EDGES; ++e)
            for (int m = 0; m < TERMS; ++m) put_sum(d[e][m], edges[e].of_k + (j + m) * LANES<T>);
    }
};

template <typename T, bool TABLE>
static void second(const Table &table, const Graph &graph, Inputs<T> in, const T *g, Inputs<T> h, Outputs<T> of, T *g_out) {
    const int64_t C = graph.channels;
    const auto kept = Order::of(table, graph, sizeof(T));
    const Order &order = *kept;
    split<T>(table, graph, order, of, [&](const Share &share, Outputs<T> own) {
        const int64_t c = share.channel, count = share.channels;
        const Geometry<T> geometry(table);
        T *const k[] = {geometry.take(), geometry.take()}, *const hk[] = {geometry.take(), geometry.take()};
        T *const of_k[] = {geometry.take_vectors(), geometry.take_vectors()};
        Rows<T> sources{own.x + c, 0, graph.nodes, table.x_rows, C, count};
        Rows<T> targets{g_out + c, share.first_target, share.last_target, table.out_rows, C, count};
        Filters<T> filters(table, graph, order, share, in, own, h);
        each_edge<TABLE>(order, share, filters, [&](auto edges, int64_t n) {
            constexpr int EDGES = decltype(edges)::value;
            using Work = Second<T, TABLE, EDGES>;
            const auto at = filters.at(n);
            each_group<T>(table, count, Work{table, C, at.w, at.hw, at.w_out, at.first, array<EDGES>([&](int m) -> Work::Edge {
                const int64_t e = order[n + m], xi = graph.source[e] * table.x_rows * C + c;
                geometry.read(in.y + e * table.y_size, true, k[m]);
                geometry.read(h.y + e * table.y_size, false, hk[m]);
                return {Next<TABLE>(table, graph, order, n + m), in.x + xi, g + graph.target[e] * table.out_rows * C + c,
                        h.x + xi, k[m], hk[m], sources.clear(graph.source[e]), targets.clear(graph.target[e]), of_k[m]};
            })});
            for (int m = 0; own.y && m < EDGES; ++m) geometry.write(of_k[m], own.y + order[n + m] * table.y_size);
        });
        sources.finish(), targets.finish();
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

template <typename T> int64_t edge_sum_forward(const Table &table, const Graph &graph, Inputs<T> in, T *out) {
    const int64_t edge = stray(graph);
    if (edge < 0) (graph.start ? forward<T, true> : forward<T, false>)(table, graph, in, out);
    return edge;
}

template <typename T>
int64_t edge_sum_backward(const Table &table, const Graph &graph, Inputs<T> in, const T *g, Outputs<T> of) {
    const int64_t edge = stray(graph);
    if (edge < 0) (graph.start ? backward<T, true> : backward<T, false>)(table, graph, in, g, of);
    return edge;
}

template <typename T>
int64_t edge_sum_second(const Table &table, const Graph &graph, Inputs<T> in, const T *g, Inputs<T> h, Outputs<T> of, T *g_out) {
    const int64_t edge = stray(graph);
    if (edge < 0) (graph.start ? second<T, true> : second<T, false>)(table, graph, in, g, h, of, g_out);
    return edge;
}

#define EXPORT(T)                                                                                                         \
    template int64_t edge_sum_forward<T>(const Table &, const Graph &, Inputs<T>, T *);                                   \
    template int64_t edge_sum_backward<T>(const Table &, const Graph &, Inputs<T>, const T *, Outputs<T>);                \
    template int64_t edge_sum_second<T>(const Table &, const Graph &, Inputs<T>, const T *, Inputs<T>, Outputs<T>, T *);
EXPORT(float)
EXPORT(double)

}  // namespace kernels
