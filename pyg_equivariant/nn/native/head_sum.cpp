// Products of rows that edges read, summed over the channels of a head or over edges; see head_sum.py.
//
// Both are derivatives of Q = sum_e sum_c  a[e, c] b[e, c] c[e, c] s[e, h(c)], where a[e] is the row of a that edge e reads.

#include "kernels.h"
#include "vectors.h"

#include <algorithm>

namespace kernels {

// The first edge with a row that is not there, or -1.
static int64_t beyond(int64_t edges, int64_t rows, const int64_t *index) {
    for (int64_t e = 0; e < edges; ++e)
        if (index[e] < 0 || index[e] >= rows) return e;
    return -1;
}

// out[place[e]] += a[e] b[e] s[e]; threads divide the places.
template <typename T>
int64_t head_sum(const Heads &size, Factor<T> a, Factor<T> b, const T *s, int64_t places, const int64_t *place, T *out) {
    for (const auto &[rows, index] : {std::pair(a.rows, a.index), {b.rows, b.index}, {places, place}})
        if (const int64_t edge = beyond(size.edges, rows, index); edge >= 0) return edge;
    const int64_t width = size.channels / size.heads;
    const Sorted sorted(place, size.edges, places);
#pragma omp parallel for num_threads(size.threads) schedule(static) if (size.threads > 1)
    for (int64_t n = 0; n < places; ++n) {
        T *const to = out + n * size.channels;
        std::fill_n(to, size.channels, T(0));
        for (int64_t at = sorted.first[n]; at < sorted.first[n + 1]; ++at) {
            const int64_t e = sorted.order[at];
            const T *const left = a.of(e), *const right = b.of(e);
            for (int64_t h = 0; h < size.heads; ++h) {
                const T factor = s[e * size.heads + h];
                each<T>(width, [&](auto block, int64_t c) {
                    using Numbers = decltype(block);
                    c += h * width;
                    (Numbers::at(left + c) * Numbers::at(right + c) * factor).add_to(to + c);
                });
            }
        }
    }
    return -1;
}

// out[e, h] = the sum over the channels of h of a[e] b[e] c[e]
template <typename T> int64_t head_dot(const Heads &size, Factor<T> a, Factor<T> b, Factor<T> c, T *out) {
    for (const auto &factor : {a, b, c})
        if (const int64_t edge = beyond(size.edges, factor.rows, factor.index); edge >= 0) return edge;
    const int64_t width = size.channels / size.heads;
#pragma omp parallel for num_threads(size.threads) schedule(static) if (size.threads > 1)
    for (int64_t e = 0; e < size.edges; ++e)
        for (int64_t h = 0; h < size.heads; ++h) {
            T sum = 0;
            each<T>(width, [&](auto block, int64_t i) {
                using Numbers = decltype(block);
                i += h * width;
                sum += (Numbers::at(a.of(e) + i) * Numbers::at(b.of(e) + i)).dot(Numbers::at(c.of(e) + i));
            });
            out[e * size.heads + h] = sum;
        }
    return -1;
}

#define EXPORT(T)                                                                                                          \
    template int64_t head_sum<T>(const Heads &, Factor<T>, Factor<T>, const T *, int64_t, const int64_t *, T *);          \
    template int64_t head_dot<T>(const Heads &, Factor<T>, Factor<T>, Factor<T>, T *);
EXPORT(float)
EXPORT(double)

}  // namespace kernels
