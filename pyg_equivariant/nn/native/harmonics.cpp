// Spherical harmonics of edges with their first two derivatives; see harmonics.py, and o3/harmonics.py for the recursions.
//
// Edges are handled by vectors, one to a lane. Derivatives are those of the recursions: their numbers carry them along.

#include "kernels.h"
#include "vectors.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace kernels {

// A number of each edge.
template <typename T> struct Numbers {
    Vector<T> lanes = {};

    INLINE Numbers operator+(const Numbers &other) const { return {lanes + other.lanes}; }
    INLINE Numbers operator-(const Numbers &other) const { return {lanes - other.lanes}; }
    INLINE Numbers operator*(const Numbers &other) const { return {lanes * other.lanes}; }
    INLINE Numbers operator*(T factor) const { return {lanes * factor}; }
    INLINE Numbers operator+(T term) const { return {lanes + term}; }
    // 1 / sqrt(this), and 0 for the square of a vector that counts as zero.
    INLINE Numbers inverse_root() const {
        Numbers root;
        for (size_t lane = 0; lane < sizeof(lanes) / sizeof(T); ++lane)
            root.lanes[lane] = lanes[lane] > T(1e-18) ? T(1) / std::sqrt(lanes[lane]) : T(0);
        return root;
    }
};

// A number with its derivatives in some directions.
template <typename T, typename N, int DIRECTIONS> struct Jet {
    N value = {};
    N by[DIRECTIONS] = {};

    template <typename Work> static INLINE Jet of(N value, const Work &work) {
        Jet jet{value};
#pragma GCC unroll 3
        for (int i = 0; i < DIRECTIONS; ++i) jet.by[i] = work(i);
        return jet;
    }
    INLINE Jet operator+(const Jet &other) const {
        return of(value + other.value, [&](int i) { return by[i] + other.by[i]; });
    }
    INLINE Jet operator-(const Jet &other) const {
        return of(value - other.value, [&](int i) { return by[i] - other.by[i]; });
    }
    INLINE Jet operator*(const Jet &other) const {
        return of(value * other.value, [&](int i) { return value * other.by[i] + by[i] * other.value; });
    }
    INLINE Jet operator*(T factor) const {
        return of(value * factor, [&](int i) { return by[i] * factor; });
    }
    INLINE Jet operator+(T term) const {
        return of(value + term, [&](int i) { return by[i]; });
    }
    INLINE Jet inverse_root() const {
        const N root = value.inverse_root(), slope = root * root * root * T(-0.5);
        return of(root, [&](int i) { return slope * by[i]; });
    }
};

// The factors of the recursion of P_l^m, for each m those of all l from m on.
template <typename T> struct Legendre {
    struct Factors {
        T up, back;
    };
    int64_t lmax;
    std::vector<T> first;  // P_m^m
    std::vector<Factors> of;

    explicit Legendre(int64_t lmax) : lmax(lmax) {
        double sectoral = 1;
        for (int64_t m = 0; m <= lmax; ++m) {
            if (m) sectoral *= std::sqrt((2.0 * m + 1) / (2.0 * m) * (m == 1 ? 2 : 1));
            first.push_back(T(sectoral));
            for (int64_t l = m + 1; l <= lmax; ++l) {
                const double gap = l * l - m * m;
                const double back = l == m + 1 ? 0 : (2.0 * l + 1) * (l + m - 1) * (l - m - 1) / ((2.0 * l - 3) * gap);
                of.push_back({T(std::sqrt((4.0 * l * l - 1) / gap)), T(-std::sqrt(back))});
            }
        }
    }
    int64_t components() const { return (lmax + 1) * (lmax + 1); }

    // Calls emit(component, value) for all harmonics of the vector's direction.
    template <typename N, typename Emit> INLINE void harmonics(const N (&vec)[3], const Emit &emit) const {
        const N inverse = (vec[0] * vec[0] + vec[1] * vec[1] + vec[2] * vec[2]).inverse_root();
        const N x = vec[0] * inverse, y = vec[1] * inverse, z = vec[2] * inverse, square = x * x + y * y + z * z;
        N cosine = z, sine = x;  // of m = 1
        const Factors *factors = of.data();
        for (int64_t m = 0; m <= lmax; ++m) {
            const auto put = [&](int64_t l, const N &polynomial) {
                const int64_t middle = l * l + l;
                if (m == 0) return emit(middle, polynomial);
                emit(middle - m, polynomial * sine);
                emit(middle + m, polynomial * cosine);
            };
            N before{}, last = N{} + first[m];
            put(m, last);
            for (int64_t l = m + 1; l <= lmax; ++l, ++factors) {
                const N next = y * last * factors->up + square * before * factors->back;
                before = last;
                last = next;
                put(l, last);
            }
            if (m == 0) continue;
            const N next = z * cosine - x * sine;
            sine = z * sine + x * cosine;
            cosine = next;
        }
    }
};

// Edges that lie in the lanes of a vector: what they read and write are rows.
template <typename T> struct Lanes {
    int64_t first, count;

    INLINE Numbers<T> read(const T *rows, int64_t width, int64_t column) const {
        Numbers<T> result;
        for (int64_t lane = 0; lane < count; ++lane) result.lanes[lane] = rows[(first + lane) * width + column];
        return result;
    }
    INLINE void write(T *rows, int64_t width, int64_t column, const Numbers<T> &values) const {
        for (int64_t lane = 0; lane < count; ++lane) rows[(first + lane) * width + column] = values.lanes[lane];
    }
};

template <typename T, typename Work> static void each_block(const Rows2d &size, const Work &work) {
    constexpr int64_t LANES = REGISTER / sizeof(T);
    const int64_t blocks = (size.rows + LANES - 1) / LANES;
#pragma omp parallel for num_threads(size.threads) schedule(static) if (size.threads > 1)
    for (int64_t block = 0; block < blocks; ++block)
        work(Lanes<T>{block * LANES, std::min(LANES, size.rows - block * LANES)});
}

template <typename T> void harmonics_forward(const Rows2d &size, const T *v, T *out) {
    const Legendre<T> legendre(size.channels);
    const int64_t width = legendre.components();
    each_block<T>(size, [&](const Lanes<T> &edges) {
        const Numbers<T> vec[3] = {edges.read(v, 3, 0), edges.read(v, 3, 1), edges.read(v, 3, 2)};
        legendre.harmonics(vec, [&](int64_t m, const Numbers<T> &value) { edges.write(out, width, m, value); });
    });
}

// out = the sum over m of g_m dY_m/dv
template <typename T> void harmonics_backward(const Rows2d &size, const T *v, const T *g, T *out) {
    const Legendre<T> legendre(size.channels);
    const int64_t width = legendre.components();
    using Number = Jet<T, Numbers<T>, 3>;
    each_block<T>(size, [&](const Lanes<T> &edges) {
        Number vec[3];
        for (int i = 0; i < 3; ++i) vec[i].value = edges.read(v, 3, i), vec[i].by[i] = vec[i].by[i] + T(1);
        Numbers<T> sum[3];
        legendre.harmonics(vec, [&](int64_t m, const Number &value) {
            const Numbers<T> factor = edges.read(g, width, m);
            for (int i = 0; i < 3; ++i) sum[i] = sum[i] + factor * value.by[i];
        });
        for (int i = 0; i < 3; ++i) edges.write(out, 3, i, sum[i]);
    });
}

// With the derivative D along h:  g_out = D Y,  v_out = the sum over m of g_m d(D Y_m)/dv
template <typename T> void harmonics_second(const Rows2d &size, const T *v, const T *g, const T *h, T *v_out, T *g_out) {
    const Legendre<T> legendre(size.channels);
    const int64_t width = legendre.components();
    using Number = Jet<T, Jet<T, Numbers<T>, 1>, 3>;
    each_block<T>(size, [&](const Lanes<T> &edges) {
        Number vec[3];
        for (int i = 0; i < 3; ++i) {
            vec[i].value.value = edges.read(v, 3, i);
            vec[i].value.by[0] = edges.read(h, 3, i);
            vec[i].by[i] = vec[i].by[i] + T(1);
        }
        Numbers<T> sum[3];
        legendre.harmonics(vec, [&](int64_t m, const Number &value) {
            const Numbers<T> factor = edges.read(g, width, m);
            edges.write(g_out, width, m, value.value.by[0]);
            for (int i = 0; i < 3; ++i) sum[i] = sum[i] + factor * value.by[i].by[0];
        });
        for (int i = 0; i < 3; ++i) edges.write(v_out, 3, i, sum[i]);
    });
}

#define EXPORT(T)                                                                        \
    template void harmonics_forward<T>(const Rows2d &, const T *, T *);                  \
    template void harmonics_backward<T>(const Rows2d &, const T *, const T *, T *);      \
    template void harmonics_second<T>(const Rows2d &, const T *, const T *, const T *, T *, T *);
EXPORT(float)
EXPORT(double)

}  // namespace kernels
