// Weighted polynomials of an atom's components, channel by channel, with two derivatives; see polynomials.py.
//
// Values are v_0 = 1, the components of x, and then products of two values before them. With rows r of an outcome o, a
// weight f and a value l
//
//     y_o = sum_r w_f v_l s_r,     s_r = sum_k t_rk v_k,
//
// of which all that follows is what a pass back through these lines gives, again along a direction in the second derivative.
//
// Channels are handled by vectors, of which each has all its values at hand; threads divide the atoms.

#include "kernels.h"
#include "vectors.h"
#include "workspace.h"

#include <vector>

namespace kernels {

// What a row multiplies, and the values that it sums, with their factors.
template <typename T> struct Row {
    struct Entry {
        int64_t value;
        T factor;
    };
    int64_t outcome, weight, value;
    std::vector<Entry> entries;
};

template <typename T> static std::vector<Row<T>> rows_of(const Polynomials &size, const T *t) {
    std::vector<Row<T>> rows(size.rows);
    for (int64_t r = 0; r < size.rows; ++r, t += size.values()) {
        rows[r] = {size.row[3 * r], size.row[3 * r + 1], size.row[3 * r + 2], {}};
        for (int64_t i = 0; i < size.values(); ++i)
            if (t[i] != 0) rows[r].entries.push_back({i, t[i]});
    }
    return rows;
}

// Calls work(a vector, atom, channel) for all of them.
template <typename T, typename Work> static void each_vector(const Polynomials &size, const Work &work) {
    constexpr int64_t LANES = REGISTER / sizeof(T);
#pragma omp parallel for num_threads(size.threads) schedule(static) if (size.threads > 1)
    for (int64_t atom = 0; atom < size.atoms; ++atom) {
        int64_t c = 0;
        for (; c + LANES <= size.channels; c += LANES) work(Vector<T>(), atom, c);
        for (; c < size.channels; ++c) work(T(), atom, c);
    }
}

// Memory for so many vectors, and these of an atom's rows.
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
    for (int64_t i = 0; i < rows; ++i) store<V>(to + i * size.channels, from[i]);
}

template <typename T, typename V> static INLINE const V *values(const Polynomials &size, const T *x) {
    V *v = take<T, V>(size.values());
    v[0] = V{} + T(1);
    for (int64_t m = 0; m < size.components; ++m) v[1 + m] = load<V>(x + m * size.channels);
    V *product = v + 1 + size.components;
    for (const int64_t *f = size.factors, *last = f + 2 * size.products; f < last; f += 2) *product++ = v[f[0]] * v[f[1]];
    return v;
}

template <typename T, typename V> static INLINE V sum_of(const Row<T> &row, const V *v) {
    V sum{};
    for (const auto &[value, factor] : row.entries) sum += factor * v[value];
    return sum;
}

template <typename T> void polynomials_forward(const Polynomials &size, const T *x, const T *w, const T *t, T *y) {
    const std::vector<Row<T>> rows = rows_of(size, t);
    each_vector<T>(size, [&](auto vector, int64_t atom, int64_t c) {
        using V = decltype(vector);
        const Workspace workspace;
        const V *v = values<T, V>(size, at(size, x, size.components, atom, c));
        const T *weight = at(size, w, size.weights, atom, c);
        V *sum = cleared<T, V>(size.outcomes);
        for (const Row<T> &row : rows) {
            const V s = sum_of(row, v);
            sum[row.outcome] += s * v[row.value] * load<V>(weight + row.weight * size.channels);
        }
        put(size, sum, size.outcomes, at(size, y, size.outcomes, atom, c));
    });
}

template <typename T>
void polynomials_backward(const Polynomials &size, const T *x, const T *w, const T *t, const T *g, T *x_out, T *w_out) {
    const std::vector<Row<T>> rows = rows_of(size, t);
    each_vector<T>(size, [&](auto vector, int64_t atom, int64_t c) {
        using V = decltype(vector);
        const Workspace workspace;
        const V *v = values<T, V>(size, at(size, x, size.components, atom, c));
        const T *weight = at(size, w, size.weights, atom, c), *gradient = at(size, g, size.outcomes, atom, c);
        V *by_v = cleared<T, V>(size.values()), *by_w = w_out ? cleared<T, V>(size.weights) : nullptr;
        for (const Row<T> &row : rows) {
            const V s = sum_of(row, v), grad = load<V>(gradient + row.outcome * size.channels);
            const V weighted = grad * load<V>(weight + row.weight * size.channels), by_s = weighted * v[row.value];
            if (by_w) by_w[row.weight] += grad * v[row.value] * s;
            by_v[row.value] += weighted * s;
            for (const auto &[place, factor] : row.entries) by_v[place] += factor * by_s;
        }
        for (int64_t j = size.products; j--;) {
            const int64_t a = size.factors[2 * j], b = size.factors[2 * j + 1];
            const V by_product = by_v[1 + size.components + j];
            by_v[a] += by_product * v[b];
            by_v[b] += by_product * v[a];
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
    const std::vector<Row<T>> rows = rows_of(size, t);
    each_vector<T>(size, [&](auto vector, int64_t atom, int64_t c) {
        using V = decltype(vector);
        const Workspace workspace;
        const V *v = values<T, V>(size, at(size, x, size.components, atom, c));
        const T *weight = at(size, w, size.weights, atom, c), *gradient = at(size, g, size.outcomes, atom, c);
        const T *along_x = hx ? at(size, hx, size.components, atom, c) : nullptr;
        const T *along_w = hw ? at(size, hw, size.weights, atom, c) : nullptr;
        const int64_t products = 1 + size.components;
        V *along = cleared<T, V>(size.values());
        if (along_x)
            for (int64_t m = 0; m < size.components; ++m) along[1 + m] = load<V>(along_x + m * size.channels);
        for (int64_t j = 0; j < size.products; ++j) {
            const int64_t a = size.factors[2 * j], b = size.factors[2 * j + 1];
            along[products + j] = along[a] * v[b] + v[a] * along[b];
        }
        V *by_v = cleared<T, V>(size.values()), *by_along = cleared<T, V>(size.values());
        V *by_w = w_out ? cleared<T, V>(size.weights) : nullptr, *by_g = cleared<T, V>(size.outcomes);
        for (const Row<T> &row : rows) {
            const V s = sum_of(row, v), change = sum_of(row, along);
            const V value = v[row.value], value_change = along[row.value], turned = value_change * s + value * change;
            const V grad = load<V>(gradient + row.outcome * size.channels);
            const V factor_w = load<V>(weight + row.weight * size.channels), weighted = grad * factor_w;
            V total = factor_w * turned, by_value = weighted * change, by_s = weighted * value_change;
            if (along_w) {
                const V h = load<V>(along_w + row.weight * size.channels);
                total += h * value * s, by_value += grad * h * s, by_s += grad * h * value;
            }
            if (by_w) by_w[row.weight] += grad * turned;
            by_g[row.outcome] += total;
            by_v[row.value] += by_value;
            by_along[row.value] += weighted * s;
            const V by_change = weighted * value;
            for (const auto &[place, factor] : row.entries) {
                by_v[place] += factor * by_s;
                by_along[place] += factor * by_change;
            }
        }
        for (int64_t j = size.products; j--;) {
            const int64_t a = size.factors[2 * j], b = size.factors[2 * j + 1];
            const V by_product = by_v[products + j], by_its_change = by_along[products + j];
            by_v[a] += by_product * v[b] + by_its_change * along[b];
            by_v[b] += by_product * v[a] + by_its_change * along[a];
            by_along[a] += by_its_change * v[b];
            by_along[b] += by_its_change * v[a];
        }
        put(size, by_v + 1, size.components, at(size, x_out, size.components, atom, c));
        if (by_w) put(size, by_w, size.weights, at(size, w_out, size.weights, atom, c));
        put(size, by_g, size.outcomes, at(size, g_out, size.outcomes, atom, c));
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
