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

// Edges and components of harmonics, which belong to rows: those of row r are first[r] to first[r + 1] - 1.
struct Harmonics {
    int64_t edges, nodes, rows, components, channels, threads;
    const int64_t *index, *first;
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

// see harmonic_sum.cpp
template <typename T> int64_t harmonic_to_atoms(const Harmonics &, const T *y, const T *v, T *out);
template <typename T> int64_t harmonic_to_edges(const Harmonics &, const T *y, const T *a, T *out);
template <typename T> int64_t harmonic_dot(const Harmonics &, const T *v, const T *a, T *out);

// see pairs.cpp; returns how many pairs there are
template <typename T>
int64_t find_pairs(int64_t edges, const int64_t *source, const int64_t *target, const T *vec, int64_t *first, int64_t *of);

// see pairs.cpp
template <typename T>
void find_returns(int64_t edges, int64_t nodes, const int64_t *source, const int64_t *target, const T *vec, T same,
                  int64_t *of);

}  // namespace kernels
