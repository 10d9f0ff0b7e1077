// Sums of harmonics with values of the edges, at atoms, and their counterparts; see harmonic_sum.py.
//
// All three are derivatives of Q = sum_e sum_r sum_(m of r)  y[e, m]  sum_c  v[e, r, c]  a[index[e], m, c].
//
// Channels lie next to each other in memory and are handled by four vectors of 64 bytes at a time, then by one, and what
// is left over one by one.

#include "kernels.h"

#include <algorithm>

namespace kernels {

template <typename T> using Vector __attribute__((vector_size(64), aligned(sizeof(T)), may_alias)) = T;

template <typename V, typename T> static V load(const T *from) { return *reinterpret_cast<const V *>(from); }
template <typename V, typename T> static void store(T *to, V value) { *reinterpret_cast<V *>(to) = value; }

// The sum of a vector's lanes, in halves.
template <typename T, int BYTES = 64> static T total(const T *lanes) {
    if constexpr (BYTES == sizeof(T)) {
        return *lanes;
    } else {
        using Half __attribute__((vector_size(BYTES / 2), aligned(sizeof(T)), may_alias)) = T;
        const Half sum = load<Half>(lanes) + load<Half>(lanes + BYTES / 2 / sizeof(T));
        return total<T, BYTES / 2>(reinterpret_cast<const T *>(&sum));
    }
}

// Calls work.run<V, WIDE>(edge, channel) for all channels of [from, to).
template <typename T, typename Work> static void each_block(int64_t edge, int64_t from, int64_t to, const Work &work) {
    constexpr int64_t LANES = 64 / sizeof(T), WIDE = 4;
    int64_t c = from;
    for (; c + WIDE * LANES <= to; c += WIDE * LANES) work.template run<Vector<T>, WIDE>(edge, c);
    for (; c + LANES <= to; c += LANES) work.template run<Vector<T>, 1>(edge, c);
    for (; c < to; ++c) work.template run<T, 1>(edge, c);
}

// The first edge that leads out of the atoms, or -1.
static int64_t stray(const Harmonics &size) {
    for (int64_t e = 0; e < size.edges; ++e)
        if (size.index[e] < 0 || size.index[e] >= size.nodes) return e;
    return -1;
}

// out[index[e], m] += y[e, m] v[e, r]
template <typename T> struct ToAtoms {
    const Harmonics &size;
    const T *y, *v;
    T *out;

    template <typename V, int WIDE> void run(int64_t e, int64_t c) const {
        constexpr int64_t LANES = sizeof(V) / sizeof(T);
        T *to = out + size.index[e] * size.components * size.channels + c;
        for (int64_t r = 0; r < size.rows; ++r) {
            V value[WIDE];
            for (int i = 0; i < WIDE; ++i) value[i] = load<V>(v + (e * size.rows + r) * size.channels + c + i * LANES);
            for (int64_t m = size.first[r]; m < size.first[r + 1]; ++m) {
                const T factor = y[e * size.components + m];
                for (int i = 0; i < WIDE; ++i) {
                    T *place = to + m * size.channels + i * LANES;
                    store<V>(place, load<V>(place) + factor * value[i]);
                }
            }
        }
    }
};

template <typename T> int64_t harmonic_to_atoms(const Harmonics &size, const T *y, const T *v, T *out) {
    if (const int64_t edge = stray(size); edge >= 0) return edge;
    constexpr int64_t LANES = 64 / sizeof(T);
    const int64_t blocks = (size.channels + LANES - 1) / LANES, threads = std::max<int64_t>(1, std::min(size.threads, blocks));
    const ToAtoms<T> work{size, y, v, out};
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (int64_t n = 0; n < threads; ++n)  // which divide the channels, so that no two write to the same place
        for (int64_t e = 0; e < size.edges; ++e)
            each_block<T>(e, n * blocks / threads * LANES, std::min(size.channels, (n + 1) * blocks / threads * LANES), work);
    return -1;
}

// out[e, r] = sum_m y[e, m] a[index[e], m]
template <typename T> struct ToEdges {
    const Harmonics &size;
    const T *y, *a;
    T *out;

    template <typename V, int WIDE> void run(int64_t e, int64_t c) const {
        constexpr int64_t LANES = sizeof(V) / sizeof(T);
        const T *from = a + size.index[e] * size.components * size.channels + c;
        for (int64_t r = 0; r < size.rows; ++r) {
            V sum[WIDE] = {};
            for (int64_t m = size.first[r]; m < size.first[r + 1]; ++m) {
                const T factor = y[e * size.components + m];
                for (int i = 0; i < WIDE; ++i) sum[i] += factor * load<V>(from + m * size.channels + i * LANES);
            }
            for (int i = 0; i < WIDE; ++i) store<V>(out + (e * size.rows + r) * size.channels + c + i * LANES, sum[i]);
        }
    }
};

template <typename T> int64_t harmonic_to_edges(const Harmonics &size, const T *y, const T *a, T *out) {
    if (const int64_t edge = stray(size); edge >= 0) return edge;
    const ToEdges<T> work{size, y, a, out};
#pragma omp parallel for num_threads(size.threads) schedule(static) if (size.threads > 1)
    for (int64_t e = 0; e < size.edges; ++e) each_block<T>(e, 0, size.channels, work);
    return -1;
}

// out[e, m] = sum_c v[e, r, c] a[index[e], m, c]
template <typename T> int64_t harmonic_dot(const Harmonics &size, const T *v, const T *a, T *out) {
    if (const int64_t edge = stray(size); edge >= 0) return edge;
    using V = Vector<T>;
    constexpr int64_t LANES = 64 / sizeof(T);
    const int64_t whole = size.channels / LANES * LANES;
#pragma omp parallel for num_threads(size.threads) schedule(static) if (size.threads > 1)
    for (int64_t e = 0; e < size.edges; ++e)
        for (int64_t r = 0; r < size.rows; ++r) {
            const T *value = v + (e * size.rows + r) * size.channels;
            for (int64_t m = size.first[r]; m < size.first[r + 1]; ++m) {
                const T *from = a + (size.index[e] * size.components + m) * size.channels;
                V sum{};
                T rest = 0;
                for (int64_t c = 0; c < whole; c += LANES) sum += load<V>(value + c) * load<V>(from + c);
                for (int64_t c = whole; c < size.channels; ++c) rest += value[c] * from[c];
                out[e * size.components + m] = rest + total<T>(reinterpret_cast<const T *>(&sum));
            }
        }
    return -1;
}

#define EXPORT(T)                                                                          \
    template int64_t harmonic_to_atoms<T>(const Harmonics &, const T *, const T *, T *);   \
    template int64_t harmonic_to_edges<T>(const Harmonics &, const T *, const T *, T *);   \
    template int64_t harmonic_dot<T>(const Harmonics &, const T *, const T *, T *);
EXPORT(float)
EXPORT(double)

}  // namespace kernels
