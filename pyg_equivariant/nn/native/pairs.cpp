// Edges with the same two atoms and opposite (or equal) vectors, see pairs.py: a hash table of what edges were seen.

#include "kernels.h"
#include "vectors.h"

#include <cstring>
#include <utility>
#include <vector>

namespace kernels {

template <typename T> static void key_of(const int64_t *source, const int64_t *target, const T *vec, uint64_t *key) {
    int64_t from = *source, to = *target;
    T v[3] = {vec[0], vec[1], vec[2]};
    int leading = 0;
    while (leading < 2 && v[leading] == 0) ++leading;
    if (from > to || (from == to && v[leading] < 0)) {
        std::swap(from, to);
        for (T &value : v) value = -value;
    }
    key[0] = from, key[1] = to;
    for (int n = 0; n < 3; ++n) {
        double value = double(v[n]) + 0.0;  // no negative zero
        std::memcpy(key + 2 + n, &value, sizeof value);
    }
}

// Fills the edge of each pair that comes first and the pair of each edge; returns how many pairs there are.
template <typename T>
int64_t find_pairs(int64_t edges, const int64_t *source, const int64_t *target, const T *vec, int64_t *first, int64_t *of) {
    size_t size = 16;
    while (size < size_t(2 * edges)) size *= 2;
    std::vector<int64_t> table(size, -1);
    std::vector<uint64_t> keys(5 * edges);
    int64_t count = 0;
    for (int64_t e = 0; e < edges; ++e) {
        uint64_t *key = keys.data() + 5 * count, digest = 0;
        key_of(source + e, target + e, vec + 3 * e, key);
        for (int n = 0; n < 5; ++n) {
            digest = (digest ^ key[n]) * 0x9E3779B97F4A7C15u;
            digest ^= digest >> 32;
        }
        size_t place = digest & (size - 1);
        while (table[place] >= 0 && std::memcmp(keys.data() + 5 * table[place], key, 5 * sizeof *key))
            place = (place + 1) & (size - 1);
        if (table[place] < 0) table[place] = count, first[count++] = e;
        of[e] = table[place];
    }
    return count;
}

template int64_t find_pairs<float>(int64_t, const int64_t *, const int64_t *, const float *, int64_t *, int64_t *);
template int64_t find_pairs<double>(int64_t, const int64_t *, const int64_t *, const double *, int64_t *, int64_t *);

// Fills the edge that leads each edge back, of those between its atoms whose vector is the opposite but for a length of
// less than the root of ``same``, or -1. Sources and targets must be nodes.
template <typename T>
void find_returns(int64_t edges, int64_t nodes, const int64_t *source, const int64_t *target, const T *vec, T same,
                  int64_t *of) {
    const Sorted arriving(target, edges, nodes);
    for (int64_t e = 0; e < edges; ++e) {
        of[e] = -1;
        for (int64_t n = arriving.first[source[e]]; n < arriving.first[source[e] + 1]; ++n) {
            const int64_t back = arriving.order[n];
            T square = 0;
            for (int k = 0; k < 3; ++k) {
                const T sum = vec[3 * e + k] + vec[3 * back + k];
                square += sum * sum;
            }
            if (source[back] == target[e] && square < same) of[e] = back;
        }
    }
}

template void find_returns<float>(int64_t, int64_t, const int64_t *, const int64_t *, const float *, float, int64_t *);
template void find_returns<double>(int64_t, int64_t, const int64_t *, const int64_t *, const double *, double, int64_t *);

}  // namespace kernels
