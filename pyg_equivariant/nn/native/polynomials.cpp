// Weighted polynomials of an atom's components, channel by channel, with two derivatives; see polynomials.py.
//
// Values are v_0 = 1, the components of x, and then products of two values before them. With rows r of an outcome o, a
// weight f and a value l
//
//     y_o = sum_r w_f v_l s_r,     s_r = sum_k t_rk v_k,
//
// of which all that follows is what a pass back through these lines gives, again along a direction in the second derivative.
//
// Channels are handled in blocks, of which each has all its values at hand; threads divide the atoms.

#include "kernels.h"
#include "vectors.h"
#include "workspace.h"

#include <vector>

namespace kernels {

// A matrix that is nearly empty, by its rows or, turned, by its columns.
template <typename T> class Sparse {
    struct Entry {
        int32_t place;
        T factor;
    };
    std::vector<int64_t> first{0};
    std::vector<Entry> entries;

public:
    Sparse(const T *from, int64_t rows, int64_t columns, bool turned) {
        for (int64_t i = 0; i < (turned ? columns : rows); ++i) {
            for (int64_t j = 0; j < (turned ? rows : columns); ++j)
                if (const T factor = turned ? from[j * columns + i] : from[i * columns + j]; factor != 0)
                    entries.push_back({int32_t(j), factor});
            first.push_back(entries.size());
        }
    }
    template <typename V> INLINE V times(int64_t row, const V *vectors) const {
        V sum{};
        for (const Entry *entry = entries.data() + first[row], *end = entries.data() + first[row + 1]; entry < end; ++entry)
            sum += vectors[entry->place] * entry->factor;
        return sum;
    }
};

// Of each value the products that have it for a factor, and their other factor.
class Readers {
    const int64_t *const factors, products;
    const Sorted sorted;

public:
    explicit Readers(const Polynomials &size)
        : factors(size.factors), products(1 + size.components), sorted(size.factors, 2 * size.products, size.values()) {}
    // Calls work(product, other factor).
    template <typename Work> INLINE void each(int64_t value, const Work &work) const {
        for (int64_t n = sorted.first[value]; n < sorted.first[value + 1]; ++n)
            work(products + sorted.order[n] / 2, factors[sorted.order[n] ^ 1]);
    }
};

// Calls work(a block, atom, channel) for all channels, of each line of the processor's cache at a time.
template <typename T, typename Work> static void each_block(const Polynomials &size, const Work &work) {
    constexpr int64_t LANES = REGISTER / sizeof(T), LINE = 64 / REGISTER;
#pragma omp parallel for num_threads(size.threads) schedule(static) if (size.threads > 1)
    for (int64_t atom = 0; atom < size.atoms; ++atom) {
        int64_t c = 0;
        for (; c + LINE * LANES <= size.channels; c += LINE * LANES) work(blocks<T, LINE>(Vector<T>()), atom, c);
        for (; c < size.channels; ++c) work(blocks<T, 1>(T()), atom, c);
    }
}

// Memory for so many blocks, and these of an atom's rows.
template <typename T, typename V> static INLINE V *take(int64_t count) {
    return reinterpret_cast<V *>(Workspace::take<T>(count * (sizeof(V) / sizeof(T))));
}
template <typename T, typename V> static INLINE V *cleared(int64_t count) {
    V *to = take<T, V>(count);
    for (int64_t i = 0; i < count; ++i) to[i] = V{};
    return to;
}
template <typename T> static INLINE T *at(const Polynomials &size, T *x, int64_t rows, int64_t atom, int64_t c) {
    return x + atom * rows * size.channels + c;
}
template <typename T, typename V> static INLINE void put(const Polynomials &size, const V *from, int64_t rows, T *to) {
    for (int64_t i = 0; i < rows; ++i) from[i].put(to + i * size.channels);
}

template <typename T, typename V> static INLINE const V *values(const Polynomials &size, const T *x) {
    V *v = take<T, V>(size.values());
    v[0] = V{} + T(1);
    for (int64_t m = 0; m < size.components; ++m) v[1 + m] = V::at(x + m * size.channels);
    V *product = v + 1 + size.components;
    for (const int64_t *f = size.factors, *last = f + 2 * size.products; f < last; f += 2) *product++ = v[f[0]] * v[f[1]];
    return v;
}

// Of the rows of an outcome.
template <typename V> static INLINE V sum_of(const Sorted &rows, int64_t outcome, const V *vectors) {
    V sum{};
    for (int64_t n = rows.first[outcome]; n < rows.first[outcome + 1]; ++n) sum += vectors[rows.order[n]];
    return sum;
}

template <typename T> void polynomials_forward(const Polynomials &size, const T *x, const T *w, const T *t, T *y) {
    const Sparse<T> rows(t, size.rows, size.values(), false);
    const Sorted of_outcome(size.outcome, size.rows, size.outcomes);
    each_block<T>(size, [&](auto block, int64_t atom, int64_t c) {
        using V = decltype(block);
        const Workspace workspace;
        const V *v = values<T, V>(size, at(size, x, size.components, atom, c));
        const T *weight = at(size, w, size.weights, atom, c);
        T *to = at(size, y, size.outcomes, atom, c);
        V *part = take<T, V>(size.rows);
        for (int64_t r = 0; r < size.rows; ++r)
            part[r] = rows.times(r, v) * v[size.value[r]] * V::at(weight + size.weight[r] * size.channels);
        for (int64_t o = 0; o < size.outcomes; ++o) sum_of(of_outcome, o, part).put(to + o * size.channels);
    });
}

template <typename T>
void polynomials_backward(const Polynomials &size, const T *x, const T *w, const T *t, const T *g, T *x_out, T *w_out) {
    const Sparse<T> rows(t, size.rows, size.values(), false), columns(t, size.rows, size.values(), true);
    const Readers readers(size);
    each_block<T>(size, [&](auto block, int64_t atom, int64_t c) {
        using V = decltype(block);
        const Workspace workspace;
        const V *v = values<T, V>(size, at(size, x, size.components, atom, c));
        const T *weight = at(size, w, size.weights, atom, c), *gradient = at(size, g, size.outcomes, atom, c);
        V *by_v = cleared<T, V>(size.values()), *by_s = take<T, V>(size.rows);
        V *by_w = w_out ? cleared<T, V>(size.weights) : nullptr;
        for (int64_t r = 0; r < size.rows; ++r) {
            const V s = rows.times(r, v), value = v[size.value[r]], grad = V::at(gradient + size.outcome[r] * size.channels);
            const V weighted = grad * V::at(weight + size.weight[r] * size.channels);
            if (by_w) by_w[size.weight[r]] += grad * value * s;
            by_v[size.value[r]] += weighted * s;
            by_s[r] = weighted * value;
        }
        for (int64_t i = size.values(); --i > 0;) {
            V sum = by_v[i] + columns.times(i, by_s);
            readers.each(i, [&](int64_t product, int64_t other) { sum += by_v[product] * v[other]; });
            by_v[i] = sum;
        }
        put(size, by_v + 1, size.components, at(size, x_out, size.components, atom, c));
        if (by_w) put(size, by_w, size.weights, at(size, w_out, size.weights, atom, c));
    });
}

// The derivatives of  hx . x_out + hw . w_out  of the above. Along h values change by v' and sums by s', so that this is
//
//     sum_r g_o (hw_f v_l s_r + w_f (v'_l s_r + v_l s'_r)).
template <typename T>
void polynomials_second(const Polynomials &size, const T *x, const T *w, const T *t, const T *g, const T *hx, const T *hw,
                        T *x_out, T *w_out, T *g_out) {
    const Sparse<T> rows(t, size.rows, size.values(), false), columns(t, size.rows, size.values(), true);
    const Readers readers(size);
    const Sorted of_outcome(size.outcome, size.rows, size.outcomes);
    each_block<T>(size, [&](auto block, int64_t atom, int64_t c) {
        using V = decltype(block);
        const Workspace workspace;
        const V *v = values<T, V>(size, at(size, x, size.components, atom, c));
        const T *weight = at(size, w, size.weights, atom, c), *gradient = at(size, g, size.outcomes, atom, c);
        const T *along_x = hx ? at(size, hx, size.components, atom, c) : nullptr;
        const T *along_w = hw ? at(size, hw, size.weights, atom, c) : nullptr;
        T *to_g = at(size, g_out, size.outcomes, atom, c);
        const int64_t products = 1 + size.components;
        V *along = cleared<T, V>(size.values());
        if (along_x)
            for (int64_t m = 0; m < size.components; ++m) along[1 + m] = V::at(along_x + m * size.channels);
        for (int64_t j = 0; j < size.products; ++j) {
            const int64_t a = size.factors[2 * j], b = size.factors[2 * j + 1];
            along[products + j] = along[a] * v[b] + v[a] * along[b];
        }
        V *by_v = cleared<T, V>(size.values()), *by_along = cleared<T, V>(size.values());
        V *by_s = take<T, V>(size.rows), *by_change = take<T, V>(size.rows), *part = take<T, V>(size.rows);
        V *by_w = w_out ? cleared<T, V>(size.weights) : nullptr;
        for (int64_t r = 0; r < size.rows; ++r) {
            const int64_t l = size.value[r], f = size.weight[r];
            const V s = rows.times(r, v), change = rows.times(r, along), turned = along[l] * s + v[l] * change;
            const V grad = V::at(gradient + size.outcome[r] * size.channels), factor = V::at(weight + f * size.channels);
            const V weighted = grad * factor;
            part[r] = factor * turned;
            by_s[r] = weighted * along[l];
            by_change[r] = weighted * v[l];
            by_v[l] += weighted * change;
            by_along[l] += weighted * s;
            if (by_w) by_w[f] += grad * turned;
            if (!along_w) continue;
            const V h = V::at(along_w + f * size.channels);
            part[r] += h * v[l] * s;
            by_s[r] += grad * h * v[l];
            by_v[l] += grad * h * s;
        }
        for (int64_t i = size.values(); --i > 0;) {
            V sum = by_v[i] + columns.times(i, by_s), change = by_along[i] + columns.times(i, by_change);
            readers.each(i, [&](int64_t product, int64_t other) {
                sum += by_v[product] * v[other] + by_along[product] * along[other];
                change += by_along[product] * v[other];
            });
            by_v[i] = sum, by_along[i] = change;
        }
        put(size, by_v + 1, size.components, at(size, x_out, size.components, atom, c));
        if (by_w) put(size, by_w, size.weights, at(size, w_out, size.weights, atom, c));
        for (int64_t o = 0; o < size.outcomes; ++o) sum_of(of_outcome, o, part).put(to_g + o * size.channels);
    });
}

#define EXPORT(T)                                                                                                        \
    template void polynomials_forward<T>(const Polynomials &, const T *, const T *, const T *, T *);                     \
    template void polynomials_backward<T>(const Polynomials &, const T *, const T *, const T *, const T *, T *, T *);    \
    template void polynomials_second<T>(const Polynomials &, const T *, const T *, const T *, const T *, const T *,      \
                                        const T *, T *, T *, T *);
EXPORT(float)
EXPORT(double)

}  // namespace kernels
