// Rows between the same nodes of a table: what interpolation.cpp and edge_sum.cpp do with some of them at a time.
//
// Row n has the coefficients c[row[n]] and its values at values + place(n) * width; only the first columns are looked at.

#pragma once

#include "kernels.h"
#include "vectors.h"

#include <algorithm>

namespace kernels {

// Vectors of each of POINTS nodes, or sums with each, that the processor's registers hold beside others.
constexpr int AT_ONCE = REGISTER / 32;

// Calls work(a block of vectors or a number, first column of it).
template <typename T, typename Work> static INLINE void each_block(int64_t columns, const Work &work) {
    constexpr int64_t LANES = REGISTER / sizeof(T);
    int64_t i = 0;
    for (; AT_ONCE > 1 && i + AT_ONCE * LANES <= columns; i += AT_ONCE * LANES) work(blocks<T, AT_ONCE>(Vector<T>()), i);
    for (; i + LANES <= columns; i += LANES) work(blocks<T, 1>(Vector<T>()), i);
    for (; i < columns; ++i) work(blocks<T, 1>(T()), i);
}

// values[n] (+)= sum_m c[n, m] table[m]
template <bool ADD, typename T, typename Place>
static INLINE void read_between(const T *table, int64_t width, int64_t columns, const int64_t *row, int64_t count, const T *c,
                                T *values, const Place &place) {
    each_block<T>(columns, [&](auto block, int64_t i) {
        decltype(block) nodes[POINTS];
        for (int m = 0; m < POINTS; ++m) nodes[m] = block.at(table + m * width + i);
        for (int64_t n = 0; n < count; ++n) {
            const T *k = c + row[n] * POINTS;
            T *to = values + place(n) * width + i;
            auto sum = ADD ? block.at(to) + nodes[0] * k[0] : nodes[0] * k[0];
            for (int m = 1; m < POINTS; ++m) sum = sum + nodes[m] * k[m];
            sum.put(to);
        }
    });
}

// table[m] += sum_n c[n, m] values[n]
template <typename T, typename Place>
static INLINE void put_between(const T *values, int64_t width, int64_t columns, const int64_t *row, int64_t count, const T *c,
                               T *table, const Place &place) {
    each_block<T>(columns, [&](auto block, int64_t i) {
        decltype(block) nodes[POINTS];
        for (int m = 0; m < POINTS; ++m) nodes[m] = block.at(table + m * width + i);
        for (int64_t n = 0; n < count; ++n) {
            const T *k = c + row[n] * POINTS;
            const auto known = block.at(values + place(n) * width + i);
            for (int m = 0; m < POINTS; ++m) nodes[m] = nodes[m] + known * k[m];
        }
        for (int m = 0; m < POINTS; ++m) nodes[m].put(table + m * width + i);
    });
}

// c[n, m] += values[n] . table[m]
template <typename T, typename Place>
static INLINE void dot_between(const T *values, const T *table, int64_t width, int64_t columns, const int64_t *row,
                               int64_t count, T *c, const Place &place) {
    constexpr int64_t LANES = REGISTER / sizeof(T);
    const int64_t whole = columns / LANES * LANES;
    const auto together = [&](auto rows, int64_t n) {
        constexpr int ROWS = decltype(rows)::value;
        const T *with[ROWS];
        Vector<T> sum[ROWS][POINTS] = {};
        for (int r = 0; r < ROWS; ++r) with[r] = values + place(n + r) * width;
        for (int64_t i = 0; i < whole; i += LANES) {
            Vector<T> known[ROWS];
            for (int r = 0; r < ROWS; ++r) known[r] = load<Vector<T>>(with[r] + i);
            for (int m = 0; m < POINTS; ++m) {
                const auto node = load<Vector<T>>(table + m * width + i);
                for (int r = 0; r < ROWS; ++r) sum[r][m] += known[r] * node;
            }
        }
        for (int r = 0; r < ROWS; ++r)
            for (int m = 0; m < POINTS; ++m) {
                T rest = sum_of_lanes(reinterpret_cast<const T *>(&sum[r][m]));
                for (int64_t i = whole; i < columns; ++i) rest += with[r][i] * table[m * width + i];
                c[row[n + r] * POINTS + m] += rest;
            }
    };
    int64_t n = 0;
    for (; n + AT_ONCE <= count; n += AT_ONCE) together(std::integral_constant<int, AT_ONCE>(), n);
    for (; n < count; ++n) together(std::integral_constant<int, 1>(), n);
}

}  // namespace kernels
