// Products of small matrices, in registers, or in the tiles of processors that have some.
//
// Tiles multiply numbers of 16 bits (bfloat16). A number of 32 is the sum of three of these,
//
//     a = a_1 + a_2 + a_3,   |a_2| <= 2^-8 |a|,   |a_3| <= 2^-16 |a|,
//
// and six of the nine products make a b: what is left out is smaller than a number's last digit. Sums have 32 bits. An
// infinite number makes its products NaN.

#pragma once

#include "vectors.h"

#include <algorithm>

#if defined(__AMX_BF16__) && defined(__AVX512BW__) && defined(__linux__)
#define TILES
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace kernels {

constexpr int ROWS = 6;              // of a product, while it is in registers
constexpr int WIDE = REGISTER / 16;  // vectors of each of these
template <typename T> constexpr int64_t PANEL = WIDE * REGISTER / sizeof(T);

inline int64_t up_to(int64_t size, int64_t step) { return (size + step - 1) / step * step; }

// How wide a row is that is filled up to whole panels.
template <typename T> static int64_t padded(int64_t size) { return up_to(size, PANEL<T>); }

template <typename T> static void copy_row(int64_t size, const T *from, T *to) {
    each<T>(size, [=](auto block, int64_t c) { block.at(from + c).put(to + c); });
}

#ifdef TILES

constexpr int64_t SIDE = 16, DEPTH = 32, PARTS = 3, LENGTH = SIDE * DEPTH;  // of a tile
constexpr int64_t BLOCK = PARTS * 2 * LENGTH;                               // of two tiles' parts

// Whether the system lets this process use them.
inline bool has_tiles() {
    static const bool has = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */) == 0;
    return has;
}

// Tiles of 16 rows of 64 bytes for this thread, while this lives.
class Tiles {
    struct Shapes {
        uint8_t palette = 1, start = 0, zero[14] = {};
        uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };

public:
    Tiles() {
        const Shapes shapes;
        if (has_tiles()) _tile_loadconfig(&shapes);
    }
    ~Tiles() {
        if (has_tiles()) _tile_release();
    }
    Tiles(const Tiles &) = delete;
};

// Column by column what was row by row: 16 times 16 numbers.
static INLINE void transpose(__m512i *rows) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
#pragma GCC unroll 4
    for (int step = 1; step < SIDE; step *= 2) {
        const __mmask16 odd = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(step));
        const __m512i size = _mm512_set1_epi32(step), other = _mm512_set1_epi32(SIDE);
        const __m512i low = _mm512_mask_add_epi32(lane, odd, _mm512_sub_epi32(lane, size), other);
        const __m512i high = _mm512_mask_add_epi32(_mm512_add_epi32(lane, size), odd, lane, other);
#pragma GCC unroll 16
        for (int i = 0; i < SIDE; ++i)
            if (!(i & step)) {
                const __m512i a = rows[i], b = rows[i + step];
                rows[i] = _mm512_permutex2var_epi32(a, low, b);
                rows[i + step] = _mm512_permutex2var_epi32(a, high, b);
            }
    }
}

// The matrix of elements (i, k) = from[ALONG ? i * step + k : k * step + i] in parts, filled up with zeros: tiles
// [i / 32, k / 32, part, i / 16 % 2], each with 16 rows of 16 pairs (k, k + 16), or, on the right of a product, with 16 such
// pairs of 16 rows and the last part first: in the order in which they are read.
template <bool ALONG, bool LEFT>
static void split(const float *from, int64_t count, int64_t K, int64_t step, uint16_t *to) {
    const __m512i half = _mm512_set1_epi32(0x8000);
    const auto lanes = [](int64_t n) { return n >= SIDE ? __mmask16(-1) : n <= 0 ? __mmask16(0) : __mmask16((1 << n) - 1); };
    const int64_t blocks = up_to(K, DEPTH) / DEPTH;
    for (int64_t i = 0; i < count; i += SIDE)
        for (int64_t k = 0; k < K; k += DEPTH) {
            uint16_t *tiles = to + (i / (2 * SIDE) * blocks + k / DEPTH) * BLOCK + i / SIDE % 2 * LENGTH;
            __m512i pairs[PARTS][SIDE];
            const float *block = from + (ALONG ? i * step + k : k * step + i);
            const __mmask16 near = lanes(ALONG ? K - k : count - i), far = ALONG ? lanes(K - k - SIDE) : near;
            for (int64_t row = 0; row < SIDE; ++row) {
                const bool has_low = row < (ALONG ? count - i : K - k), has_high = ALONG ? has_low : row + SIDE < K - k;
                const float *low_row = block + row * step, *high_row = ALONG ? low_row + SIDE : low_row + SIDE * step;
                __m512 low = _mm512_maskz_loadu_ps(has_low ? near : __mmask16(0), low_row);
                __m512 high = _mm512_maskz_loadu_ps(has_high ? far : __mmask16(0), high_row);
#pragma GCC unroll 3
                for (int part = 0; part < PARTS; ++part) {
                    const __m512i a = _mm512_add_epi32(_mm512_castps_si512(low), half);
                    const __m512i b = _mm512_add_epi32(_mm512_castps_si512(high), half);
                    pairs[part][row] = _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(a, 16), b);
                    const __m512i upper = _mm512_set1_epi32(0xFFFF0000);
                    low = _mm512_sub_ps(low, _mm512_castsi512_ps(_mm512_and_si512(a, upper)));
                    high = _mm512_sub_ps(high, _mm512_castsi512_ps(_mm512_and_si512(b, upper)));
                }
            }
            for (int part = 0; part < PARTS; ++part) {
                if constexpr (ALONG != LEFT) transpose(pairs[part]);
                for (int row = 0; row < SIDE; ++row)
                    _mm512_store_si512(tiles + (LEFT ? part : PARTS - 1 - part) * 2 * LENGTH + row * DEPTH, pairs[part][row]);
            }
        }
}

// Two tiles by two of c (+)= a b, or one by two.
template <int TALL>
static void tile_product(int64_t blocks, const uint16_t *a, const uint16_t *b, float *c, int64_t width, bool add) {
    const int64_t bytes = width * sizeof(float);
    float *low = c + SIDE * width;
    asm volatile("" ::: "memory");  // what a and b have is written
    if (add) {
        _tile_loadd(0, c, bytes);
        _tile_loadd(1, c + SIDE, bytes);
        if (TALL == 2) {
            _tile_loadd(2, low, bytes);
            _tile_loadd(3, low + SIDE, bytes);
        }
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    const auto left = [&](int part) {
        _tile_loadd(4, a + part * 2 * LENGTH, 64);
        if (TALL == 2) _tile_loadd(5, a + (part * 2 + 1) * LENGTH, 64);
    };
    const auto right = [&](int part) {
        _tile_loadd(6, b + (PARTS - 1 - part) * 2 * LENGTH, 64);
        _tile_loadd(7, b + ((PARTS - 1 - part) * 2 + 1) * LENGTH, 64);
    };
    const auto multiply = [] {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (TALL == 2) {
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    };
    for (int64_t k = 0; k < blocks; ++k, a += BLOCK, b += BLOCK) {
        left(0), right(2), multiply();
        right(1), multiply();
        left(1), multiply();
        right(0), multiply();
        left(2), multiply();
        left(0), multiply();
    }
    _tile_stored(0, c, bytes);
    _tile_stored(1, c + SIDE, bytes);
    if (TALL == 2) {
        _tile_stored(2, low, bytes);
        _tile_stored(3, low + SIDE, bytes);
    }
}

template <typename T> static bool in_tiles() { return sizeof(T) == 4 && has_tiles(); }

// Of a factor, as many numbers of 32 bits.
inline int64_t split_size(int64_t count, int64_t K) { return up_to(count, 2 * SIDE) * up_to(K, DEPTH) * PARTS / 2; }

#else

struct Tiles {};
template <typename T> static bool in_tiles() { return false; }
inline int64_t split_size(int64_t, int64_t) { return 0; }

#endif

// c[i, :] (+)= sum_k a[i, k] b[k, :] for COUNT rows and a panel
template <typename T, int COUNT>
static void product(const T *a, int64_t step_i, int64_t step_k, const T *b, int64_t K, T *c, int64_t width, bool add) {
    using V = Register<T>;
    constexpr int64_t LANES = REGISTER / sizeof(T);
    V sum[COUNT][WIDE] = {};
    for (int64_t k = 0; k < K; ++k, b += PANEL<T>) {
        V row[WIDE];
        for (int j = 0; j < WIDE; ++j) row[j] = load<V>(b + j * LANES);
        for (int i = 0; i < COUNT; ++i) {
            const T factor = a[i * step_i + k * step_k];
            for (int j = 0; j < WIDE; ++j) sum[i][j] += factor * row[j];
        }
    }
    for (int i = 0; i < COUNT; ++i)
        for (int j = 0; j < WIDE; ++j) {
            T *to = c + i * width + j * LANES;
            store<V>(to, add ? load<V>(to) + sum[i][j] : sum[i][j]);
        }
}

// How many numbers the right factor of a product, [K, N], has when it is packed.
template <typename T> static int64_t packed(int64_t K, int64_t N) {
    return in_tiles<T>() ? split_size(padded<T>(N), K) : padded<T>(N) * K;
}

// The right factor, filled up with zeros: in tiles or in panels, [N / PANEL, K, PANEL]. Element (k, n) is from[k * step_k
// + n * step_n], one of the steps being 1.
template <typename T>
static void pack(const T *from, int64_t K, int64_t N, int64_t step_k, int64_t step_n, T *to) {
#ifdef TILES
    if constexpr (sizeof(T) == 4) {
        if (in_tiles<T>()) {
            auto *tiles = reinterpret_cast<uint16_t *>(to);
            if (N < padded<T>(N)) std::fill_n(to, packed<T>(K, N), T(0));
            if (step_k == 1) split<true, false>(from, N, K, step_n, tiles);
            else split<false, false>(from, N, K, step_k, tiles);
            return;
        }
    }
#endif
    for (int64_t n = 0; n < N; n += PANEL<T>) {
        const int64_t width = std::min(PANEL<T>, N - n);
        for (int64_t k = 0; k < K; ++k, to += PANEL<T>) {
            const T *row = from + k * step_k + n * step_n;
            if (step_n == 1)
                copy_row(width, row, to);
            else
                for (int64_t j = 0; j < width; ++j) to[j] = row[j * step_n];
            std::fill(to + width, to + PANEL<T>, T(0));
        }
    }
}

// How many numbers multiply's space has, and how many rows c.
template <typename T> static int64_t space_of(int64_t M, int64_t K) { return in_tiles<T>() ? split_size(M, K) : 0; }
template <typename T> static int64_t rows_of(int64_t M) { return in_tiles<T>() ? up_to(M, 16) : M; }

// c (+)= a b: element (i, k) of a is a[i * step_i + k * step_k], one of the steps being 1, b is packed, and rows of c are
// filled up to whole panels. Tiles must be there.
template <typename T>
static void multiply(int64_t M, int64_t N, int64_t K, const T *a, int64_t step_i, int64_t step_k, const T *b, T *c,
                     bool add, T *space) {
    const int64_t width = padded<T>(N);
#ifdef TILES
    if constexpr (sizeof(T) == 4) {
        if (in_tiles<T>()) {
            auto *left = reinterpret_cast<uint16_t *>(space);
            const auto *right = reinterpret_cast<const uint16_t *>(b);
            const int64_t blocks = up_to(K, DEPTH) / DEPTH, row = blocks * BLOCK;
            if (step_k == 1) split<true, true>(a, M, K, step_i, left);
            else split<false, true>(a, M, K, step_k, left);
            for (int64_t n = 0; n < width; n += 2 * SIDE, right += row) {
                int64_t i = 0;
                for (; i + SIDE < M; i += 2 * SIDE)
                    tile_product<2>(blocks, left + i / (2 * SIDE) * row, right, c + i * width + n, width, add);
                if (i < M) tile_product<1>(blocks, left + i / (2 * SIDE) * row, right, c + i * width + n, width, add);
            }
            return;
        }
    }
#endif
    for (int64_t n = 0; n < width; n += PANEL<T>, b += K * PANEL<T>) {
        int64_t i = 0;
        for (; i + ROWS <= M; i += ROWS)
            product<T, ROWS>(a + i * step_i, step_i, step_k, b, K, c + i * width + n, width, add);
        for (; i < M; ++i) product<T, 1>(a + i * step_i, step_i, step_k, b, K, c + i * width + n, width, add);
    }
}

}  // namespace kernels
