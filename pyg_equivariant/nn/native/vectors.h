// Vectors of 64 bytes, and rows in the order of what they belong to: what the kernels share.

#pragma once

#include <cstdint>
#include <vector>

namespace kernels {

template <typename T> using Vector __attribute__((vector_size(64), aligned(sizeof(T)), may_alias)) = T;

template <typename V, typename T> static V load(const T *from) { return *reinterpret_cast<const V *>(from); }
template <typename V, typename T> static void store(T *to, V value) { *reinterpret_cast<V *>(to) = value; }

// The sum of a vector's lanes, in halves.
template <typename T, int BYTES = 64> static T sum_of_lanes(const T *lanes) {
    if constexpr (BYTES == sizeof(T)) {
        return *lanes;
    } else {
        using Half __attribute__((vector_size(BYTES / 2), aligned(sizeof(T)), may_alias)) = T;
        const Half sum = load<Half>(lanes) + load<Half>(lanes + BYTES / 2 / sizeof(T));
        return sum_of_lanes<T, BYTES / 2>(reinterpret_cast<const T *>(&sum));
    }
}

// Rows, those that belong to the same place after each other, so that what they share is at hand: those of place n are
// order[first[n]] to order[first[n + 1] - 1].
struct Sorted {
    std::vector<int64_t> first, order;

    Sorted(const int64_t *place, int64_t rows, int64_t places) : first(places + 2), order(rows) {
        for (int64_t row = 0; row < rows; ++row) ++first[place[row] + 2];
        for (int64_t n = 0; n < places; ++n) first[n + 2] += first[n + 1];
        for (int64_t row = 0; row < rows; ++row) order[first[place[row] + 1]++] = row;
    }
};

}  // namespace kernels
