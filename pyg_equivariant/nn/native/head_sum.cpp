// Products of rows that edges read, summed over the channels of a head or over edges, with two derivatives; see head_sum.py.
//
// All are derivatives of Q = sum_e sum_c  a[e, c] b[e, c] c[e, c] s[e, h(c)], where a[e] is the row of a that edge e reads.
//
// Threads divide the heads, so that no two of them add to the same numbers.

#include "kernels.h"
#include "vectors.h"

#include <algorithm>
#include <type_traits>
#include <vector>

namespace kernels {

// The first edge that reads a row that is not there, or -1.
template <typename T> static int64_t stray(int64_t edges, const Factor<T> &factor) {
    for (int64_t e = 0; e < edges; ++e)
        if (factor.index[e] < 0 || factor.index[e] >= factor.rows) return e;
    return -1;
}
template <typename T> static int64_t stray(int64_t edges, const Product<T> &of) {
    return std::max({stray(edges, of.a), stray(edges, of.b), stray(edges, of.c)});
}

// The sum of a vector's lanes.
template <typename T, typename V> static INLINE T total(const V &vector) {
#ifdef __AVX512F__
    if constexpr (sizeof(V) == 64 && sizeof(T) == 4) return _mm512_reduce_add_ps((__m512)vector);
#endif
    return sum_of_lanes<T, sizeof(V)>(reinterpret_cast<const T *>(&vector));
}

// Some vectors of a row from channel c on, and the head of each.
template <typename T, typename Vectors> struct Part {
    static constexpr int COUNT = std::extent_v<decltype(Vectors::part)>;
    int64_t c;
    const int64_t *head;

    INLINE Vectors of(const T *row) const { return Vectors::at(row + c); }
    // A number of each head times a vector of each.
    INLINE Vectors times(const T *numbers, const Vectors &vectors) const {
        return Vectors::of([&](int i) { return vectors.part[i] * numbers[head[i]]; });
    }
    INLINE void add(T *row, const Vectors &vectors) const { vectors.add_to(row + c); }
    INLINE void add_to_heads(T *numbers, const Vectors &vectors) const {
#pragma GCC unroll 4
        for (int i = 0; i < COUNT; ++i) numbers[head[i]] += total<T>(vectors.part[i]);
    }
};

// Edges in an order in which they read one row of the largest factor after the other.
template <typename T> static std::vector<int64_t> in_order(int64_t edges, const Product<T> &of) {
    const Factor<T> &largest = *std::max({&of.a, &of.b, &of.c}, [](auto *one, auto *other) { return one->rows < other->rows; });
    return Sorted(largest.index, edges, largest.rows).order;
}

// Rows of one outcome, the channels of some heads, in the order in which edges add to them.
template <typename T> class Sum {
    const int64_t *const index, first;
    Rows<T> rows;

public:
    Sum(const Heads &size, const Factor<T> &factor, T *out, int64_t first, int64_t last)
        : index(factor.index), first(first), rows(out + first, 0, out ? factor.rows : 0, 1, size.channels, last - first) {}
    T *of(int64_t edge) { return rows.clear(index[edge]) - first; }
    void finish() { rows.finish(); }
};

// The outcomes by the three factors; those that are there.
template <typename T> struct Outcomes {
    Sum<T> a, b, c;

    Outcomes(const Heads &size, const Product<T> &of, const Sums<T> &to, int64_t first, int64_t last)
        : a(size, of.a, to.a, first, last), b(size, of.b, to.b, first, last), c(size, of.c, to.c, first, last) {}
    void finish() { a.finish(), b.finish(), c.finish(); }
};

// Calls work(edge, outcomes, what calls its argument for all parts of a row). No vector reaches from one head into the next.
template <typename T, typename Work>
static void each_edge(const Heads &size, const Product<T> &of, const Sums<T> &to, const Work &work) {
    if (to.s) std::fill_n(to.s, size.edges * size.heads, T(0));
    const std::vector<int64_t> order = in_order(size.edges, of);
    const int64_t width = size.channels / size.heads, threads = std::min(size.threads, size.heads);
    const auto with = [&](auto vector) {
        constexpr int64_t LANES = sizeof(vector) / sizeof(T);
        std::vector<int64_t> heads(size.channels / LANES);
        for (size_t i = 0; i < heads.size(); ++i) heads[i] = i * LANES / width;
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
        for (int64_t n = 0; n < threads; ++n) {
            const int64_t first = n * size.heads / threads * width, last = (n + 1) * size.heads / threads * width;
            const int64_t *const head = heads.data();
            Outcomes<T> outcomes(size, of, to, first, last);
            for (const int64_t e : order)
                work(e, outcomes, [=](const auto &part) __attribute__((always_inline)) {
                    int64_t c = first;
                    for (; c + SEVERAL * LANES <= last; c += SEVERAL * LANES)
                        part(Part<T, decltype(blocks<T, SEVERAL>(vector))>{c, head + c / LANES});
                    for (; c + LANES <= last; c += LANES)
                        part(Part<T, decltype(blocks<T, 1>(vector))>{c, head + c / LANES});
                });
            outcomes.finish();
        }
    };
    using Half __attribute__((vector_size(REGISTER / 2), aligned(sizeof(T)), may_alias)) = T;
    using Quarter __attribute__((vector_size(REGISTER / 4), aligned(sizeof(T)), may_alias)) = T;
    const auto fits = [&](auto vector) { return width * sizeof(T) % sizeof(vector) == 0; };
    if (fits(Vector<T>())) return with(Vector<T>());
    if (fits(Half())) return with(Half());
    if (fits(Quarter())) return with(Quarter());
    with(T());
}

// out_s = the sum over the channels of a head of a b c, if s is null, else out_c = the sum over edges of a b s
template <typename T> int64_t head_value(const Heads &size, const Product<T> &of, Sums<T> to) {
    if (const int64_t edge = stray(size.edges, of); edge >= 0) return edge;
    each_edge<T>(size, of, to, [&](int64_t e, Outcomes<T> &sums, const auto &each) {
        const T *const a = of.a.of(e), *const b = of.b.of(e);
        if (const T *const s = of.s ? of.s + e * size.heads : nullptr) {
            T *const to_c = sums.c.of(e);
            each([=](const auto &part) __attribute__((always_inline)) { part.add(to_c, part.times(s, part.of(a) * part.of(b))); });
        } else {
            const T *const c = of.c.of(e);
            T *const to_s = to.s + e * size.heads;
            each([=](const auto &part) __attribute__((always_inline)) { part.add_to_heads(to_s, part.of(a) * part.of(b) * part.of(c)); });
        }
    });
    return -1;
}

// The derivatives of Q by a, by b, and by c or s: by the one of which there are no derivatives yet.
template <typename T> int64_t head_first(const Heads &size, const Product<T> &of, Sums<T> to) {
    if (const int64_t edge = stray(size.edges, of); edge >= 0) return edge;
    each_edge<T>(size, of, to, [&](int64_t e, Outcomes<T> &sums, const auto &each) {
        const T *const a = of.a.of(e), *const b = of.b.of(e), *const c = of.c.of(e), *const s = of.s + e * size.heads;
        T *const to_a = sums.a.of(e), *const to_b = sums.b.of(e);
        T *const to_c = to.c ? sums.c.of(e) : nullptr;
        T *const to_s = to.c ? nullptr : to.s + e * size.heads;
        each([=](const auto &part) __attribute__((always_inline)) {
            const auto x = part.of(a), y = part.of(b), z = part.of(c), both = part.times(s, z);
            part.add(to_a, y * both);
            part.add(to_b, x * both);
            if (to_c)
                part.add(to_c, part.times(s, x * y));
            else
                part.add_to_heads(to_s, x * y * z);
        });
    });
    return -1;
}

// The derivatives of  h . head_first  by all four.
template <typename T> int64_t head_second(const Heads &size, const Product<T> &of, const Product<T> &h, Sums<T> to) {
    if (const int64_t edge = stray(size.edges, of); edge >= 0) return edge;
    each_edge<T>(size, of, to, [&](int64_t e, Outcomes<T> &sums, const auto &each) {
        const T *const a = of.a.of(e), *const b = of.b.of(e), *const c = of.c.of(e), *const s = of.s + e * size.heads;
        const T *const ha = h.a.of(e), *const hb = h.b.of(e), *const hc = h.c.of(e);
        const T *const hs = h.s ? h.s + e * size.heads : nullptr;
        T *const to_a = sums.a.of(e), *const to_b = sums.b.of(e);
        T *const to_c = sums.c.of(e), *const to_s = to.s + e * size.heads;
        each([=](const auto &part) __attribute__((always_inline)) {
            const auto x = part.of(a), y = part.of(b), z = part.of(c), hx = part.of(ha), hy = part.of(hb);
            const auto turned = hx * y + x * hy;
            if (hs) {
                part.add(to_a, z * (part.times(s, hy) + part.times(hs, y)));
                part.add(to_b, z * (part.times(s, hx) + part.times(hs, x)));
                part.add(to_c, part.times(s, turned) + part.times(hs, x * y));
                part.add_to_heads(to_s, z * turned);
            } else {
                const auto hz = part.of(hc);
                part.add(to_a, part.times(s, hy * z + y * hz));
                part.add(to_b, part.times(s, hx * z + x * hz));
                part.add(to_c, part.times(s, turned));
                part.add_to_heads(to_s, turned * z + x * y * hz);
            }
        });
    });
    return -1;
}

#define EXPORT(T)                                                                                     \
    template int64_t head_value<T>(const Heads &, const Product<T> &, Sums<T>);                       \
    template int64_t head_first<T>(const Heads &, const Product<T> &, Sums<T>);                       \
    template int64_t head_second<T>(const Heads &, const Product<T> &, const Product<T> &, Sums<T>);
EXPORT(float)
EXPORT(double)

}  // namespace kernels
