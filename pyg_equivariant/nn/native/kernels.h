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

struct Graph {
    int64_t edges, nodes, rows, channels, threads;
    const int64_t *source, *target, *row;
};

struct Sizes {
    int64_t rows, nodes, width, threads;
    const int64_t *start;
};

// see edge_sum.cpp
template <typename T> int64_t edge_sum_forward(const Table &, const Graph &, const T *x, const T *y, const T *w, T *out);
template <typename T>
int64_t edge_sum_backward(const Table &, const Graph &, const T *x, const T *y, const T *w, const T *g, T *x_out, T *y_out,
                          T *w_out);
template <typename T>
int64_t edge_sum_second(const Table &, const Graph &, const T *x, const T *y, const T *w, const T *g, const T *hx,
                        const T *hy, const T *hw, T *x_out, T *y_out, T *w_out, T *g_out);

// see interpolation.cpp
template <typename T> int64_t interpolation_read(const Sizes &, const T *table, const T *c, T *out);
template <typename T> int64_t interpolation_put(const Sizes &, const T *c, const T *g, T *out);
template <typename T> int64_t interpolation_dot(const Sizes &, const T *g, const T *table, T *out);
template <typename T> void interpolation_polynomials(int64_t rows, int64_t order, const T *t, T *out);

// see pairs.cpp; returns how many pairs there are
template <typename T>
int64_t find_pairs(int64_t edges, const int64_t *source, const int64_t *target, const T *vec, int64_t *first, int64_t *of);

}  // namespace kernels
