// What the scalars and vectors of an atom send each other, with two derivatives; see exchange.py.
//
// Of a row o has three parts a, b, c, and each of its components m has l, r, v:
//
//     s = b sum_m l_m r_m + c,     w_m = a v_m

#include "kernels.h"
#include "vectors.h"

namespace kernels {

// Calls work(a block, and where it is in the first part of o, in s, in the first part of the components, and in w).
template <typename T, typename Work> static void each_part(const Exchange &size, const Work &work) {
    const int64_t C = size.channels;
#pragma omp parallel for num_threads(size.threads) schedule(static) if (size.threads > 1)
    for (int64_t n = 0; n < size.rows; ++n)
        each<T>(C, [&](auto block, int64_t c) {
            work(block, 3 * n * C + c, n * C + c, 3 * n * size.components * C + c, n * size.components * C + c);
        });
}

template <typename T> void exchange_forward(const Exchange &size, const T *o, const T *x, T *s, T *w) {
    const int64_t C = size.channels;
    each_part<T>(size, [&](auto block, int64_t of_o, int64_t of_s, int64_t of_x, int64_t of_w) {
        using B = decltype(block);
        const B a = B::at(o + of_o), b = B::at(o + of_o + C), c = B::at(o + of_o + 2 * C);
        B dot;
        for (int64_t m = 0; m < size.components; ++m, of_x += 3 * C, of_w += C) {
            dot = dot + B::at(x + of_x) * B::at(x + of_x + C);
            (a * B::at(x + of_x + 2 * C)).put(w + of_w);
        }
        (b * dot + c).put(s + of_s);
    });
}

// With the gradients g by s and h_m by w_m:  a_out = sum_m h_m v_m,  b_out = g sum_m l_m r_m,  c_out = g,
// l_out = g b r,  r_out = g b l,  v_out = a h
template <typename T>
void exchange_backward(const Exchange &size, const T *o, const T *x, const T *g, const T *h, T *o_out, T *x_out) {
    const int64_t C = size.channels;
    each_part<T>(size, [&](auto block, int64_t of_o, int64_t of_s, int64_t of_x, int64_t of_w) {
        using B = decltype(block);
        const B a = B::at(o + of_o), b = B::at(o + of_o + C), grad = B::at(g + of_s), both = grad * b;
        B dot, along;
        for (int64_t m = 0; m < size.components; ++m, of_x += 3 * C, of_w += C) {
            const B l = B::at(x + of_x), r = B::at(x + of_x + C), by = B::at(h + of_w);
            dot = dot + l * r;
            along = along + by * B::at(x + of_x + 2 * C);
            (both * r).put(x_out + of_x);
            (both * l).put(x_out + of_x + C);
            (a * by).put(x_out + of_x + 2 * C);
        }
        along.put(o_out + of_o);
        (grad * dot).put(o_out + of_o + C);
        grad.put(o_out + of_o + 2 * C);
    });
}

// The derivatives of  p . o_out + q . x_out  of the above, with p = (pa, pb, pc) and q = (ql, qr, qv):
// with  t = sum_m ql r + qr l,  g_out = pb sum_m l r + pc + b t,  h_out = pa v + a qv,  a_out = sum_m h qv,  b_out = g t,
// c_out = 0,  l_out = g (pb r + b qr),  r_out = g (pb l + b ql),  v_out = pa h
template <typename T>
void exchange_second(const Exchange &size, const T *o, const T *x, const T *g, const T *h, const T *p, const T *q, T *o_out,
                     T *x_out, T *g_out, T *h_out) {
    const int64_t C = size.channels;
    each_part<T>(size, [&](auto block, int64_t of_o, int64_t of_s, int64_t of_x, int64_t of_w) {
        using B = decltype(block);
        const B a = B::at(o + of_o), b = B::at(o + of_o + C), grad = B::at(g + of_s);
        const B pa = B::at(p + of_o), pb = B::at(p + of_o + C), pc = B::at(p + of_o + 2 * C);
        B dot, along, turned;
        for (int64_t m = 0; m < size.components; ++m, of_x += 3 * C, of_w += C) {
            const B l = B::at(x + of_x), r = B::at(x + of_x + C), by = B::at(h + of_w);
            const B ql = B::at(q + of_x), qr = B::at(q + of_x + C), qv = B::at(q + of_x + 2 * C);
            dot = dot + l * r;
            turned = turned + ql * r + qr * l;
            along = along + by * qv;
            (pa * B::at(x + of_x + 2 * C) + a * qv).put(h_out + of_w);
            (grad * (pb * r + b * qr)).put(x_out + of_x);
            (grad * (pb * l + b * ql)).put(x_out + of_x + C);
            (pa * by).put(x_out + of_x + 2 * C);
        }
        along.put(o_out + of_o);
        (grad * turned).put(o_out + of_o + C);
        B().put(o_out + of_o + 2 * C);
        (pb * dot + pc + b * turned).put(g_out + of_s);
    });
}

#define EXPORT(T)                                                                                                     \
    template void exchange_forward<T>(const Exchange &, const T *, const T *, T *, T *);                              \
    template void exchange_backward<T>(const Exchange &, const T *, const T *, const T *, const T *, T *, T *);       \
    template void exchange_second<T>(const Exchange &, const T *, const T *, const T *, const T *, const T *,         \
                                     const T *, T *, T *, T *, T *);
EXPORT(float)
EXPORT(double)

}  // namespace kernels
