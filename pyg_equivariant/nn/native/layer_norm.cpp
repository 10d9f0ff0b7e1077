// Normalisation of rows with its first two derivatives; see layer_norm.py.
//
// With the mean m(v) of a row's C channels, r = 1 / sqrt(m((x - m(x))^2) + eps) and z = r (x - m(x)):
//
//     y = w z + b,     dz/dx = r P  with  P v = v - m(v) - z m(v z)
//
// z and r are computed again from x where they are needed.

#include "kernels.h"
#include "vectors.h"
#include "workspace.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace kernels {

// The sum of work(channel).
template <typename T, typename Work> static INLINE T total(int64_t channels, const Work &work) {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < channels; ++c) sum += work(c);
    return sum;
}

// Writes z of a row and returns r.
template <typename T> static T normalise(int64_t C, const T *x, T eps, T *z) {
    const T mean = total<T>(C, [=](int64_t c) { return x[c]; }) / C;
    const T variance = total<T>(C, [=](int64_t c) { return (x[c] - mean) * (x[c] - mean); }) / C;
    const T r = T(1) / std::sqrt(variance + eps);
#pragma omp simd
    for (int64_t c = 0; c < C; ++c) z[c] = (x[c] - mean) * r;
    return r;
}

// Calls work(row, memory for its z, sums of this thread) for all rows and adds up the sums.
template <typename T, typename Work> static void each_row(const Rows2d &size, int64_t sums, T *out, const Work &work) {
    const int64_t threads = std::max<int64_t>(1, std::min(size.threads, size.rows / 64));
    std::vector<T> own(threads * sums);
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (int64_t n = 0; n < threads; ++n) {
        const Workspace workspace;
        T *const z = Workspace::take<T>(size.channels);
        for (int64_t row = n * size.rows / threads; row < (n + 1) * size.rows / threads; ++row)
            work(row, z, own.data() + n * sums);
    }
    std::fill_n(out, sums, T(0));
    for (int64_t n = 0; n < threads; ++n)
        for (int64_t i = 0; i < sums; ++i) out[i] += own[n * sums + i];
}

template <typename T> void layer_norm_forward(const Rows2d &size, T eps, const T *x, const T *w, const T *b, T *out) {
    const int64_t C = size.channels;
    each_row<T>(size, 0, nullptr, [&](int64_t row, T *z, T *) {
        normalise(C, x + row * C, eps, z);
        T *const y = out + row * C;
#pragma omp simd
        for (int64_t c = 0; c < C; ++c) y[c] = w[c] * z[c] + b[c];
    });
}

// With u = w g:  x_out = r P u, and the sums over rows  w_out = g z,  b_out = g.
template <typename T>
void layer_norm_backward(const Rows2d &size, T eps, const T *x, const T *w, const T *g, T *x_out, T *weights_out) {
    const int64_t C = size.channels;
    each_row<T>(size, weights_out ? 2 * C : 0, weights_out, [&](int64_t row, T *z, T *sums) {
        const T *const gr = g + row * C;
        const T r = normalise(C, x + row * C, eps, z);
        const T mean = total<T>(C, [=](int64_t c) { return w[c] * gr[c]; }) / C;
        const T along = total<T>(C, [=](int64_t c) { return w[c] * gr[c] * z[c]; }) / C;
        T *const to = x_out + row * C;
#pragma omp simd
        for (int64_t c = 0; c < C; ++c) to[c] = r * (w[c] * gr[c] - mean - z[c] * along);
        if (!weights_out) return;
#pragma omp simd
        for (int64_t c = 0; c < C; ++c) sums[c] += gr[c] * z[c], sums[C + c] += gr[c];
    });
}

// The derivatives of h . r P u = r T by x, w and g:  with p = r P h,  g_out = w p,  w_out = the sum over rows of g p, and
// x_out = -r^2 (T z / C + P (m(h z) u + m(u z) h))  as  dr/dx = -r^2 z / C.
template <typename T>
void layer_norm_second(const Rows2d &size, T eps, const T *x, const T *w, const T *g, const T *h, T *x_out, T *w_out, T *g_out) {
    const int64_t C = size.channels;
    each_row<T>(size, C, w_out, [&](int64_t row, T *z, T *sums) {
        const T *const gr = g + row * C, *const hr = h + row * C;
        const T r = normalise(C, x + row * C, eps, z);
        const T u_mean = total<T>(C, [=](int64_t c) { return w[c] * gr[c]; }) / C;
        const T h_mean = total<T>(C, [=](int64_t c) { return hr[c]; }) / C;
        const T u_along = total<T>(C, [=](int64_t c) { return w[c] * gr[c] * z[c]; }) / C;
        const T h_along = total<T>(C, [=](int64_t c) { return hr[c] * z[c]; }) / C;
        const T both = total<T>(C, [=](int64_t c) { return w[c] * gr[c] * hr[c]; }) / C - u_mean * h_mean - u_along * h_along;
        const T v_mean = h_along * u_mean + u_along * h_mean, v_along = 2 * h_along * u_along;
        T *const to_x = x_out + row * C, *const to_g = g_out + row * C;
#pragma omp simd
        for (int64_t c = 0; c < C; ++c) {
            const T p = r * (hr[c] - h_mean - z[c] * h_along);
            const T v = h_along * w[c] * gr[c] + u_along * hr[c];
            to_x[c] = -r * r * (both * z[c] + v - v_mean - z[c] * v_along);
            to_g[c] = w[c] * p;
            sums[c] += gr[c] * p;
        }
    });
}

#define EXPORT(T)                                                                                                           \
    template void layer_norm_forward<T>(const Rows2d &, T, const T *, const T *, const T *, T *);                          \
    template void layer_norm_backward<T>(const Rows2d &, T, const T *, const T *, const T *, T *, T *);                    \
    template void layer_norm_second<T>(const Rows2d &, T, const T *, const T *, const T *, const T *, T *, T *, T *);
EXPORT(float)
EXPORT(double)

}  // namespace kernels
