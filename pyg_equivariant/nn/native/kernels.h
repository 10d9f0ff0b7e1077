// What operations.cpp, which knows PyTorch, calls of the kernels, which do not.
//
// Functions return the first row that leads out of an array, or -1.

#pragma once

#include <cstdint>

namespace kernels {

// The terms of a sum over edges: groups with the same features a and filters f, their terms with the same outcome o, and
// of these the entries, columns b of the geometry with a number v.
struct Table {
    int64_t groups, terms, x_rows, w_rows, out_rows, y_size;
    const int64_t *a, *f, *first_term;  // of each group
    const int64_t *o, *first_entry;     // of each term
    const int64_t *b;                   // of each entry; -1 stands for a constant
    const double *v;
};

// Edges, and the rows of their filters. Where there is a table these lie between its nodes: row p between POINTS of them
// from start[p] on.
constexpr int64_t POINTS = 8;

struct Graph {
    int64_t edges, nodes, rows, channels, threads;
    const int64_t *source, *target, *row;
    int64_t nodes_of_table;
    const int64_t *start;  // null if there is no table
};

// Features x, geometry y, filters or a table of them w, and the coefficients c of the latter.
template <typename T> struct Inputs {
    const T *x, *y, *w, *c;
    // The same from this channel on.
    Inputs from(int64_t channel) const { return {x ? x + channel : x, y, w ? w + channel : w, c}; }
};
template <typename T> struct Outputs {
    T *x, *y, *w, *c;  // null if nobody asks
    Outputs from(int64_t channel) const { return {x ? x + channel : x, y, w ? w + channel : w, c}; }
};

struct Sizes {
    int64_t rows, nodes, width, threads;
    const int64_t *start;
};

struct Rows2d {
    int64_t rows, channels, threads;
};

// Edges and components of harmonics, which belong to rows: those of row r are first[r] to first[r + 1] - 1.
struct Harmonics {
    int64_t edges, nodes, rows, components, channels, threads;
    const int64_t *index, *first;
};

// Rows of which each edge reads one.
template <typename T> struct Factor {
    const T *data;
    int64_t stride, rows;
    const int64_t *index;
    const T *of(int64_t edge) const { return data + index[edge] * stride; }
};

struct Series {
    int64_t rows, terms, columns, threads;
};

struct Heads {
    int64_t edges, channels, heads, threads;
};

// Three factors of an edge's channels and one of its heads; what is null is not there.
template <typename T> struct Product {
    Factor<T> a, b, c;
    const T *s;
};

// Memory for derivatives by them; what is null is not wanted.
template <typename T> struct Sums {
    T *a, *b, *c, *s;
};

struct Exchange {
    int64_t rows, components, channels, threads;
};

// Atoms have tensors of so many components for their part as targets and as many for that as sources.
struct Rejection {
    int64_t edges, nodes, components, channels, threads;
    const int64_t *source, *target;
};

// Polynomials of an atom's components: two values that are the factors of each product, and of each row the outcome, the
// weight and a value.
struct Polynomials {
    int64_t atoms, channels, components, weights, outcomes, products, rows, threads;
    const int64_t *factors, *outcome, *weight, *value;
    int64_t values() const { return 1 + components + products; }
};

// The first edge that leads out of the atoms, or -1.
inline int64_t stray(const Harmonics &size) {
    for (int64_t e = 0; e < size.edges; ++e)
        if (size.index[e] < 0 || size.index[e] >= size.nodes) return e;
    return -1;
}

// Layers, their widths from that of the input on, and whether each skips: whether it adds its input's input.
struct DenseChain {
    int64_t rows, layers, threads;
    const int64_t *widths, *skips;
    const void *packed = nullptr;  // what dense_chain_pack made of the weights, if it did
};

// see edge_sum.cpp
template <typename T> int64_t edge_sum_forward(const Table &, const Graph &, Inputs<T>, T *out);
template <typename T> int64_t edge_sum_backward(const Table &, const Graph &, Inputs<T>, const T *g, Outputs<T>);
template <typename T>
int64_t edge_sum_second(const Table &, const Graph &, Inputs<T>, const T *g, Inputs<T> h, Outputs<T>, T *g_out);

// see interpolation.cpp
template <typename T> int64_t interpolation_read(const Sizes &, const T *table, const T *c, T *out);
template <typename T> int64_t interpolation_put(const Sizes &, const T *c, const T *g, T *out);
template <typename T> int64_t interpolation_dot(const Sizes &, const T *g, const T *table, T *out);
template <typename T> void interpolation_polynomials(int64_t rows, int64_t order, const T *t, T *out);

// see chebyshev.cpp
template <typename T> void chebyshev_series(const Series &, int64_t order, const T *u, const T *series, T *out);

// see harmonic_sum.cpp
template <typename T> int64_t harmonic_to_atoms(const Harmonics &, const T *y, const T *v, T *out);
template <typename T> int64_t harmonic_to_edges(const Harmonics &, const T *y, const T *a, T *out);
template <typename T> int64_t harmonic_dot(const Harmonics &, const T *v, const T *a, T *out);

// see harmonics.cpp; of edges, with their highest degree for channels
template <typename T> void harmonics_forward(const Rows2d &, const T *v, T *out);
template <typename T> void harmonics_backward(const Rows2d &, const T *v, const T *g, T *out);
template <typename T> void harmonics_second(const Rows2d &, const T *v, const T *g, const T *h, T *v_out, T *g_out);

// see head_sum.cpp
template <typename T> int64_t head_value(const Heads &, const Product<T> &, Sums<T>);
template <typename T> int64_t head_first(const Heads &, const Product<T> &, Sums<T>);
template <typename T> int64_t head_second(const Heads &, const Product<T> &, const Product<T> &h, Sums<T>);

// see rejection.cpp
template <typename T> int64_t rejection_forward(const Rejection &, const T *x, const T *y, T *out);
template <typename T>
int64_t rejection_backward(const Rejection &, const T *x, const T *y, const T *g, T *x_out, T *y_out);
template <typename T>
int64_t rejection_second(const Rejection &, const T *x, const T *y, const T *g, const T *hx, const T *hy, T *x_out, T *y_out,
                         T *g_out);

// see polynomials.cpp; t has a row of factors of all values for each row, and what is null is not given or not wanted
template <typename T> void polynomials_forward(const Polynomials &, const T *x, const T *w, const T *t, T *y);
template <typename T>
void polynomials_backward(const Polynomials &, const T *x, const T *w, const T *t, const T *g, T *x_out, T *w_out);
template <typename T>
void polynomials_second(const Polynomials &, const T *x, const T *w, const T *t, const T *g, const T *hx, const T *hw, T *x_out,
                        T *w_out, T *g_out);

// see product_sum.cpp; b has the width rank
template <typename T>
int64_t product_to_atoms(const Harmonics &, int64_t rank, const T *y, const T *b, const T *w, const T *x, T *out);
template <typename T>
int64_t product_backward(const Harmonics &, int64_t rank, const T *y, const T *b, const T *w, const T *x, const T *g, T *y_out,
                         T *b_out, T *w_out, T *x_out);
template <typename T>
int64_t product_second(const Harmonics &, int64_t rank, const T *y, const T *b, const T *w, const T *x, const T *g, const T *hy,
                       const T *hb, const T *hw, const T *hx, T *y_out, T *b_out, T *w_out, T *x_out, T *g_out);

// see dense_chain.cpp; returns how many numbers the packed weights have, and writes them unless out is null
template <typename T> int64_t dense_chain_pack(const DenseChain &, const T *p, T *out);
template <typename T> void dense_chain_forward(const DenseChain &, const T *x, const T *p, T *y, T *z);
template <typename T>
void dense_chain_backward(const DenseChain &, const T *x, const T *z, const T *p, const T *g, const T *h, T *x_out, T *a_out,
                          T *p_out);
template <typename T>
void dense_chain_second(const DenseChain &, const T *z, const T *p, const T *by_a, const T *k, T *g_out, T *z_out, T *p_out);

// see layer_norm.cpp; weights_out has the derivatives by w and by b, one after the other, and is null if nobody asks
template <typename T> void layer_norm_forward(const Rows2d &, T eps, const T *x, const T *w, const T *b, T *out);
template <typename T>
void layer_norm_backward(const Rows2d &, T eps, const T *x, const T *w, const T *g, T *x_out, T *weights_out);
template <typename T>
void layer_norm_second(const Rows2d &, T eps, const T *x, const T *w, const T *g, const T *h, T *x_out, T *w_out, T *g_out);

// see exchange.cpp
template <typename T> void exchange_forward(const Exchange &, const T *o, const T *x, T *s, T *w);
template <typename T>
void exchange_backward(const Exchange &, const T *o, const T *x, const T *g, const T *h, T *o_out, T *x_out);
template <typename T>
void exchange_second(const Exchange &, const T *o, const T *x, const T *g, const T *h, const T *p, const T *q, T *o_out,
                     T *x_out, T *g_out, T *h_out);

// see pairs.cpp; returns how many pairs there are
template <typename T>
int64_t find_pairs(int64_t edges, const int64_t *source, const int64_t *target, const T *vec, int64_t *first, int64_t *of);

// see pairs.cpp
template <typename T>
void find_returns(int64_t edges, int64_t nodes, const int64_t *source, const int64_t *target, const T *vec, T same,
                  int64_t *of);

}  // namespace kernels
