// Products of what is left of two atoms' tensors across an edge, with two derivatives; see rejection.py.
//
// With t and s what an edge reads of the tensors of its target and source, M components of C channels, and y its own:
//
//     r = t . s + k p q,     p = t . y,  q = s . y,  k = y . y - 2
//
// Channels are handled by vectors, threads divide them; edges come in the order of their targets.

#include "kernels.h"
#include "vectors.h"

#include <algorithm>
#include <vector>

namespace kernels {

// Rows of the atoms: first what targets are read of, then what sources are.
template <typename T> struct Read {
    T *t, *s;
    int64_t stride;

    Read(const Rejection &size, T *x, int64_t e)
        : t(x + size.target[e] * 2 * size.components * size.channels),
          s(x + size.source[e] * 2 * size.components * size.channels + size.channels), stride(2 * size.channels) {}
};

// Where derivatives by y are summed over the channels, a vector for each component.
template <typename T> struct Along {
    static constexpr int64_t LANES = REGISTER / sizeof(T);
    std::vector<T> numbers;

    explicit Along(int64_t components) : numbers(components * LANES) {}
    void clear() { std::fill(numbers.begin(), numbers.end(), T(0)); }
    template <typename V> static INLINE void add(T *numbers, int64_t m, V value) {
        T *const to = numbers + m * LANES;
        store<V>(to, load<V>(to) + value);
    }
    void put(T *to, int64_t components) const {
        for (int64_t m = 0; m < components; ++m)
            to[m] += sum_of_lanes<T, REGISTER>(numbers.data() + m * LANES);
    }
};

// Calls work(an edge, memory for its derivatives by y, what calls its argument for all vectors of a row), and sums these.
template <typename T, typename Work> static void each_edge(const Rejection &size, T *y_out, const Work &work) {
    constexpr int64_t LANES = REGISTER / sizeof(T);
    const Sorted sorted(size.target, size.edges, size.nodes);
    const int64_t M = size.components, whole = size.channels / LANES;
    const int64_t threads = std::max<int64_t>(1, std::min(size.threads, whole)), numbers = y_out ? size.edges * M : 0;
    std::vector<T> others((threads - 1) * numbers);
    if (y_out) std::fill_n(y_out, numbers, T(0));
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (int64_t n = 0; n < threads; ++n) {
        const int64_t first = n * whole / threads * LANES;
        const int64_t last = n + 1 == threads ? size.channels : (n + 1) * whole / threads * LANES;
        T *const to = n ? others.data() + (n - 1) * numbers : y_out;
        Along<T> along(M);
        for (const int64_t e : sorted.order) {
            if (y_out) along.clear();
            work(e, along.numbers.data(), [=](const auto &part) __attribute__((always_inline)) {
                int64_t c = first;
                for (; c + LANES <= last; c += LANES) part(Vector<T>(), c);
                for (; c < last; ++c) part(T(), c);
            });
            if (y_out) along.put(to + e * M, M);
        }
    }
    for (size_t i = 0; i < others.size(); ++i) y_out[i % numbers] += others[i];
}

template <typename T> static T minus_two(const T *y, int64_t M) {
    T k = -2;
    for (int64_t m = 0; m < M; ++m) k += y[m] * y[m];
    return k;
}

static int64_t stray(const Rejection &size) {
    for (int64_t e = 0; e < size.edges; ++e)
        for (const int64_t atom : {size.source[e], size.target[e]})
            if (atom < 0 || atom >= size.nodes) return e;
    return -1;
}

template <typename T> int64_t rejection_forward(const Rejection &size, const T *x, const T *y, T *out) {
    if (const int64_t edge = stray(size); edge >= 0) return edge;
    const int64_t M = size.components;
    each_edge<T>(size, nullptr, [&](int64_t e, T *, const auto &each) {
        const Read<const T> read(size, x, e);
        const T *const of_y = y + e * M, k = minus_two(of_y, M);
        T *const to = out + e * size.channels;
        each([=](auto vector, int64_t c) __attribute__((always_inline)) {
            using V = decltype(vector);
            V dot{}, p{}, q{};
            for (int64_t m = 0; m < M; ++m) {
                const V t = load<V>(read.t + m * read.stride + c), s = load<V>(read.s + m * read.stride + c);
                dot += t * s, p += of_y[m] * t, q += of_y[m] * s;
            }
            store<V>(to + c, dot + k * p * q);
        });
    });
    return -1;
}

// With g:  t_out = g (s + k q y),  s_out = g (t + k p y),  y_out = sum of g (k (q t + p s) + 2 p q y)
template <typename T>
int64_t rejection_backward(const Rejection &size, const T *x, const T *y, const T *g, T *x_out, T *y_out) {
    if (const int64_t edge = stray(size); edge >= 0) return edge;
    const int64_t M = size.components;
    std::fill_n(x_out, size.nodes * M * 2 * size.channels, T(0));
    each_edge<T>(size, y_out, [&](int64_t e, T *along, const auto &each) {
        const Read<const T> read(size, x, e);
        const Read<T> to(size, x_out, e);
        T *const t_out = to.t, *const s_out = to.s;
        const T *const of_y = y + e * M, *const of_g = g + e * size.channels, k = minus_two(of_y, M);
        each([=](auto vector, int64_t c) __attribute__((always_inline)) {
            using V = decltype(vector);
            V p{}, q{};
            for (int64_t m = 0; m < M; ++m) {
                p += of_y[m] * load<V>(read.t + m * read.stride + c);
                q += of_y[m] * load<V>(read.s + m * read.stride + c);
            }
            const V grad = load<V>(of_g + c), by_p = k * grad * p, by_q = k * grad * q, twice = T(2) * grad * p * q;
            for (int64_t m = 0; m < M; ++m) {
                const int64_t place = m * read.stride + c;
                const V t = load<V>(read.t + place), s = load<V>(read.s + place);
                store<V>(t_out + place, load<V>(t_out + place) + grad * s + by_q * of_y[m]);
                store<V>(s_out + place, load<V>(s_out + place) + grad * t + by_p * of_y[m]);
                Along<T>::add(along, m, by_q * t + by_p * s + twice * of_y[m]);
            }
        });
    });
    return -1;
}

// The derivatives of  hx . x_out + hy . y_out  of the above. With the derivatives along h
//     k' = 2 y . hy,  p' = t . hy + ht . y,  q' = s . hy + hs . y,
// g_out = ht . s + t . hs + k' p q + k (p' q + p q'),
// t_out = g (hs + (k' q + k q') y + k q hy),  s_out likewise,
// y_out = sum of g ((k' q + k q') t + (k' p + k p') s + k (q ht + p hs) + 2 p q hy + 2 (p' q + p q') y)
template <typename T>
int64_t rejection_second(const Rejection &size, const T *x, const T *y, const T *g, const T *hx, const T *hy, T *x_out,
                         T *y_out, T *g_out) {
    if (const int64_t edge = stray(size); edge >= 0) return edge;
    const int64_t M = size.components;
    std::fill_n(x_out, size.nodes * M * 2 * size.channels, T(0));
    each_edge<T>(size, y_out, [&](int64_t e, T *along, const auto &each) {
        const Read<const T> read(size, x, e), h(size, hx, e);
        const Read<T> to(size, x_out, e);
        T *const t_out = to.t, *const s_out = to.s, *const to_g = g_out + e * size.channels;
        const T *const of_y = y + e * M, *const of_h = hy + e * M, *const of_g = g + e * size.channels;
        const T k = minus_two(of_y, M);
        T by_k = 0;
        for (int64_t m = 0; m < M; ++m) by_k += 2 * of_y[m] * of_h[m];
        each([=](auto vector, int64_t c) __attribute__((always_inline)) {
            using V = decltype(vector);
            V p{}, q{}, along_p{}, along_q{}, dots{};
            for (int64_t m = 0; m < M; ++m) {
                const int64_t place = m * read.stride + c;
                const V t = load<V>(read.t + place), s = load<V>(read.s + place);
                const V ht = load<V>(h.t + place), hs = load<V>(h.s + place);
                p += of_y[m] * t, q += of_y[m] * s;
                along_p += of_h[m] * t + of_y[m] * ht, along_q += of_h[m] * s + of_y[m] * hs;
                dots += ht * s + t * hs;
            }
            const V turned = along_p * q + p * along_q, grad = load<V>(of_g + c);
            store<V>(to_g + c, dots + by_k * p * q + k * turned);
            const V by_p = k * grad * p, by_q = k * grad * q, twice = T(2) * grad * p * q, both = T(2) * grad * turned;
            const V to_t = grad * (by_k * q + k * along_q), to_s = grad * (by_k * p + k * along_p);
            for (int64_t m = 0; m < M; ++m) {
                const int64_t place = m * read.stride + c;
                const V t = load<V>(read.t + place), s = load<V>(read.s + place);
                const V ht = load<V>(h.t + place), hs = load<V>(h.s + place);
                store<V>(t_out + place, load<V>(t_out + place) + grad * hs + to_t * of_y[m] + by_q * of_h[m]);
                store<V>(s_out + place, load<V>(s_out + place) + grad * ht + to_s * of_y[m] + by_p * of_h[m]);
                Along<T>::add(along, m, to_t * t + to_s * s + by_q * ht + by_p * hs + twice * of_h[m] + both * of_y[m]);
            }
        });
    });
    return -1;
}

#define EXPORT(T)                                                                                                   \
    template int64_t rejection_forward<T>(const Rejection &, const T *, const T *, T *);                            \
    template int64_t rejection_backward<T>(const Rejection &, const T *, const T *, const T *, T *, T *);           \
    template int64_t rejection_second<T>(const Rejection &, const T *, const T *, const T *, const T *, const T *, \
                                         T *, T *, T *);
EXPORT(float)
EXPORT(double)

}  // namespace kernels
