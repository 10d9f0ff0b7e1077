// Sums of harmonics with values of the edges, at atoms, and their counterparts; see harmonic_sum.py.
//
// All three are derivatives of Q = sum_e sum_r sum_(m of r)  y[e, m]  sum_c  v[e, r, c]  a[index[e], m, c].
//
// Channels lie next to each other in memory and are handled by vectors, several at a time, and what is left
// over one by one.

#include "kernels.h"
#include "vectors.h"

#include <algorithm>
#include <type_traits>

namespace kernels {

// Calls work.run<V, WIDE, COUNT>(atom, its edges, row, component, channel) for all channels and all components, COUNT of a
// row at a time; threads divide the atoms.
template <typename T, typename Work> static void each_block(const Harmonics &size, const Work &work) {
    constexpr int64_t LANES = REGISTER / sizeof(T);
    const Sorted sorted(size.index, size.edges, size.nodes);
    const auto components = [&](auto vector, auto wide, int64_t atom, int64_t c) {
        using V = decltype(vector);
        constexpr int WIDE = decltype(wide)::value;
        const int64_t *first = sorted.order.data() + sorted.first[atom], *last = sorted.order.data() + sorted.first[atom + 1];
        for (int64_t r = 0; r < size.rows; ++r) {
            int64_t m = size.first[r];
            for (; m + 4 <= size.first[r + 1]; m += 4) work.template run<V, WIDE, 4>(atom, first, last, r, m, c);
            if (m + 2 <= size.first[r + 1]) work.template run<V, WIDE, 2>(atom, first, last, r, m, c), m += 2;
            if (m < size.first[r + 1]) work.template run<V, WIDE, 1>(atom, first, last, r, m, c);
        }
    };
#pragma omp parallel for num_threads(size.threads) schedule(static) if (size.threads > 1)
    for (int64_t atom = 0; atom < size.nodes; ++atom) {
        int64_t c = 0;
        for (; c + SEVERAL * LANES <= size.channels; c += SEVERAL * LANES)
            components(Vector<T>(), std::integral_constant<int, SEVERAL>(), atom, c);
        for (; c + LANES <= size.channels; c += LANES) components(Vector<T>(), std::integral_constant<int, 1>(), atom, c);
        for (; c < size.channels; ++c) components(T(), std::integral_constant<int, 1>(), atom, c);
    }
}

// out[index[e], m] += y[e, m] v[e, r]
template <typename T> struct ToAtoms {
    const Harmonics &size;
    const T *y, *v;
    T *out;

    template <typename V, int WIDE, int COUNT>
    void run(int64_t atom, const int64_t *first, const int64_t *last, int64_t r, int64_t m, int64_t c) const {
        constexpr int64_t LANES = sizeof(V) / sizeof(T);
        V sum[COUNT][WIDE] = {};
        for (const int64_t *e = first; e < last; ++e) {
            const T *from = v + (*e * size.rows + r) * size.channels + c, *factor = y + *e * size.components + m;
            V value[WIDE];
            for (int i = 0; i < WIDE; ++i) value[i] = load<V>(from + i * LANES);
            for (int k = 0; k < COUNT; ++k)
                for (int i = 0; i < WIDE; ++i) sum[k][i] += factor[k] * value[i];
        }
        T *to = out + (atom * size.components + m) * size.channels + c;
        for (int k = 0; k < COUNT; ++k)
            for (int i = 0; i < WIDE; ++i) store<V>(to + k * size.channels + i * LANES, sum[k][i]);
    }
};

template <typename T> int64_t harmonic_to_atoms(const Harmonics &size, const T *y, const T *v, T *out) {
    if (const int64_t edge = stray(size); edge >= 0) return edge;
    each_block<T>(size, ToAtoms<T>{size, y, v, out});
    return -1;
}

// out[e, r] = sum_m y[e, m] a[index[e], m]
template <typename T> struct ToEdges {
    const Harmonics &size;
    const T *y, *a;
    T *out;

    template <typename V, int WIDE, int COUNT>
    void run(int64_t atom, const int64_t *first, const int64_t *last, int64_t r, int64_t m, int64_t c) const {
        constexpr int64_t LANES = sizeof(V) / sizeof(T);
        const T *from = a + (atom * size.components + m) * size.channels + c;
        V tensor[COUNT][WIDE];
        for (int k = 0; k < COUNT; ++k)
            for (int i = 0; i < WIDE; ++i) tensor[k][i] = load<V>(from + k * size.channels + i * LANES);
        for (const int64_t *e = first; e < last; ++e) {
            T *to = out + (*e * size.rows + r) * size.channels + c;
            const T *factor = y + *e * size.components + m;
            V sum[WIDE] = {};
            if (m > size.first[r])  // what came before of the row
                for (int i = 0; i < WIDE; ++i) sum[i] = load<V>(to + i * LANES);
            for (int k = 0; k < COUNT; ++k)
                for (int i = 0; i < WIDE; ++i) sum[i] += factor[k] * tensor[k][i];
            for (int i = 0; i < WIDE; ++i) store<V>(to + i * LANES, sum[i]);
        }
    }
};

template <typename T> int64_t harmonic_to_edges(const Harmonics &size, const T *y, const T *a, T *out) {
    if (const int64_t edge = stray(size); edge >= 0) return edge;
    each_block<T>(size, ToEdges<T>{size, y, a, out});
    return -1;
}

// out[e, m] = sum_c v[e, r, c] a[index[e], m, c]
template <typename T> struct Dot {
    const Harmonics &size;
    const T *v, *a;
    T *out;

    template <typename V, int WIDE, int COUNT>
    void run(int64_t atom, const int64_t *first, const int64_t *last, int64_t r, int64_t m, int64_t c) const {
        constexpr int64_t LANES = sizeof(V) / sizeof(T);
        const T *from = a + (atom * size.components + m) * size.channels + c;
        V tensor[COUNT][WIDE];
        for (int k = 0; k < COUNT; ++k)
            for (int i = 0; i < WIDE; ++i) tensor[k][i] = load<V>(from + k * size.channels + i * LANES);
        for (const int64_t *e = first; e < last; ++e) {
            const T *value = v + (*e * size.rows + r) * size.channels + c;
            V sum[COUNT] = {};
            for (int i = 0; i < WIDE; ++i) {
                const V known = load<V>(value + i * LANES);
                for (int k = 0; k < COUNT; ++k) sum[k] += known * tensor[k][i];
            }
            for (int k = 0; k < COUNT; ++k)
                out[*e * size.components + m + k] += sum_of_lanes<T, sizeof(V)>(reinterpret_cast<const T *>(&sum[k]));
        }
    }
};

template <typename T> int64_t harmonic_dot(const Harmonics &size, const T *v, const T *a, T *out) {
    if (const int64_t edge = stray(size); edge >= 0) return edge;
    std::fill(out, out + size.edges * size.components, T(0));
    each_block<T>(size, Dot<T>{size, v, a, out});
    return -1;
}

#define EXPORT(T)                                                                          \
    template int64_t harmonic_to_atoms<T>(const Harmonics &, const T *, const T *, T *);   \
    template int64_t harmonic_to_edges<T>(const Harmonics &, const T *, const T *, T *);   \
    template int64_t harmonic_dot<T>(const Harmonics &, const T *, const T *, T *);
EXPORT(float)
EXPORT(double)

}  // namespace kernels
