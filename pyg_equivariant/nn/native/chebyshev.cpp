// Chebyshev series, many of the same number, and their derivatives; see bessel.py.
//
//     out[e, c] = d^order / du^order  sum_n  series[n, c] T_n(u[e])

#include "kernels.h"
#include "vectors.h"

#include <algorithm>
#include <vector>

namespace kernels {

// The series of the derivative: T_n' is the sum of 2 n T_m over all smaller m that are odd where n is even and even where it
// is odd, of T_0 half as much.
static void derive(int64_t terms, int64_t columns, double *series) {
    std::vector<double> of((terms + 1) * columns);
    for (int64_t n = terms - 1; n > 0; --n)
        for (int64_t c = 0; c < columns; ++c)
            of[(n - 1) * columns + c] = of[(n + 1) * columns + c] + 2.0 * n * series[n * columns + c];
    for (int64_t c = 0; c < columns; ++c) of[c] *= 0.5;
    std::copy_n(of.data(), terms * columns, series);
}

// A step of Clenshaw's recurrence b_n = c_n + 2 u b_{n+1} - b_{n+2}.
template <typename T, typename Row> static INLINE Row step(const T *coefficients, T factor, Row next, Row last) {
    const Row known = Row::at(coefficients);
    return Row::of([=](int i) { return (known.part[i] - last.part[i]) + next.part[i] * factor; });
}

// Some columns at a time.
template <typename T> void chebyshev_series(const Series &size, int64_t order, const T *u, const T *series, T *out) {
    using Row = decltype(blocks<T, 4>(Vector<T>()));
    constexpr int64_t WIDE = 4 * Row::LANES;
    const int64_t columns = size.columns, padded = (columns + WIDE - 1) / WIDE * WIDE;
    std::vector<double> exact(series, series + size.terms * columns);
    for (int64_t k = 0; k < order; ++k) derive(size.terms, columns, exact.data());
    std::vector<T> known(size.terms * padded);
    for (int64_t n = 0; n < size.terms; ++n)
        std::copy_n(exact.data() + n * columns, columns, known.data() + n * padded);
#pragma omp parallel for num_threads(size.threads) schedule(static) if (size.threads > 1)
    for (int64_t row = 0; row < size.rows; ++row) {
        const T once = u[row], twice = 2 * once;
        for (int64_t c = 0; c < columns; c += WIDE) {
            const T *from = known.data() + c;
            Row next, last;
            for (int64_t n = size.terms - 1; n > 0; --n) {
                const Row now = step(from + n * padded, twice, next, last);
                last = next, next = now;
            }
            T sum[WIDE];
            step(from, once, next, last).put(sum);
            std::copy_n(sum, std::min(WIDE, columns - c), out + row * columns + c);
        }
    }
}

template void chebyshev_series<float>(const Series &, int64_t, const float *, const float *, float *);
template void chebyshev_series<double>(const Series &, int64_t, const double *, const double *, double *);

}  // namespace kernels
