// Vectors, and rows in the order of what they belong to: what the kernels share.

#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

namespace kernels {

// Bytes of one of the processor's registers. The compiler would take wider vectors apart, through memory.
#ifdef __AVX512F__
constexpr int64_t REGISTER = 64;
#else
constexpr int64_t REGISTER = 32;
#endif
constexpr int SEVERAL = REGISTER / 16;  // as many as there is room for among so many registers
template <typename T> using Vector __attribute__((vector_size(REGISTER), aligned(sizeof(T)), may_alias)) = T;

template <typename V, typename T> static V load(const T *from) { return *reinterpret_cast<const V *>(from); }
template <typename V, typename T> static void store(T *to, V value) { *reinterpret_cast<V *>(to) = value; }

// The sum of a vector's lanes, in halves.
template <typename T, int BYTES = REGISTER> static T sum_of_lanes(const T *lanes) {
    if constexpr (BYTES == sizeof(T)) {
        return *lanes;
    } else {
        using Half __attribute__((vector_size(BYTES / 2), aligned(sizeof(T)), may_alias)) = T;
        const Half sum = load<Half>(lanes) + load<Half>(lanes + BYTES / 2 / sizeof(T));
        return sum_of_lanes<T, BYTES / 2>(reinterpret_cast<const T *>(&sum));
    }
}

// Vectors or numbers that are handled together, so that the processor need not wait for one before it begins the next.
template <typename T, typename V, int WIDE> struct Block {
    static constexpr int64_t LANES = sizeof(V) / sizeof(T);
    V part[WIDE] = {};

    static INLINE Block at(const T *from) {
        return of([=](int i) { return load<V>(from + i * LANES); });
    }
    template <typename Work> static INLINE Block of(const Work &work) {
        Block block;
#pragma GCC unroll 8
        for (int i = 0; i < WIDE; ++i) block.part[i] = work(i);
        return block;
    }
    INLINE void put(T *to) const {
#pragma GCC unroll 8
        for (int i = 0; i < WIDE; ++i) store<V>(to + i * LANES, part[i]);
    }
    INLINE void add_to(T *to) const { (at(to) + *this).put(to); }
    // Past the caches, if need be: for what is more than fits into them and read much later. A fence must follow.
    INLINE void put_away(T *to, bool past) const {
#pragma GCC unroll 8
        for (int i = 0; i < WIDE; ++i) put_away_part(i, to + i * LANES, past);
    }
    INLINE void put_away_part(int i, T *to, bool past) const {
#ifdef __AVX512F__
        if constexpr (sizeof(V) == 64)
            if (past && reinterpret_cast<uintptr_t>(to) % sizeof(V) == 0)
                return _mm512_stream_si512(reinterpret_cast<__m512i *>(to), (__m512i)part[i]);
#endif
        store<V>(to, part[i]);
    }
    INLINE Block operator+(const Block &other) const {
        return of([&](int i) { return part[i] + other.part[i]; });
    }
    INLINE Block &operator+=(const Block &other) { return *this = *this + other; }
    INLINE Block operator*(const Block &other) const {
        return of([&](int i) { return part[i] * other.part[i]; });
    }
    INLINE Block operator+(T term) const {
        return of([&](int i) { return part[i] + term; });
    }
    INLINE Block operator*(T factor) const {
        return of([&](int i) { return part[i] * factor; });
    }
    INLINE T dot(const Block &other) const {
        V sum = part[0] * other.part[0];
#pragma GCC unroll 8
        for (int i = 1; i < WIDE; ++i) sum += part[i] * other.part[i];
        return sum_of_lanes<T, sizeof(V)>(reinterpret_cast<const T *>(&sum));
    }
};

// So many vectors or numbers like this one.
template <typename T, int WIDE, typename V> static Block<T, V, WIDE> blocks(V) { return {}; }

// Calls work(a block, place) for all numbers of a row.
template <typename T, typename Work> static void each(int64_t size, const Work &work) {
    constexpr int64_t LANES = REGISTER / sizeof(T);
    int64_t c = 0;
    for (; c + SEVERAL * LANES <= size; c += SEVERAL * LANES) work(blocks<T, SEVERAL>(Vector<T>()), c);
    for (; c + LANES <= size; c += LANES) work(blocks<T, 1>(Vector<T>()), c);
    for (; c < size; ++c) work(blocks<T, 1>(T()), c);
}

// Rows, those that belong to the same place after each other, so that what they share is at hand: those of place n are
// order[first[n]] to order[first[n + 1] - 1].
struct Sorted {
    std::vector<int64_t> first, order;

    Sorted(const int64_t *place, int64_t rows, int64_t places) : first(places + 2), order(rows) {
        for (int64_t row = 0; row < rows; ++row) ++first[place[row] + 2];
        for (int64_t n = 0; n < places; ++n) first[n + 2] += first[n + 1];
        for (int64_t row = 0; row < rows; ++row) order[first[place[row] + 1]++] = row;
    }
};

// Rows that are summed up, from the first one to the last: cleared when they are first written, while they are at hand, and
// those left over.
template <typename T> class Rows {
    T *const out;
    const int64_t first, last, size, channels, count;
    std::vector<char> seen = std::vector<char>(last - first);

public:
    Rows(T *out, int64_t first, int64_t last, int64_t size, int64_t channels, int64_t count)
        : out(out), first(first), last(last), size(size), channels(channels), count(count) {}
    T *clear(int64_t row) {
        T *to = out + row * size * channels;
        if (!seen[row - first])
            for (int64_t f = 0; f < size; ++f) std::memset(to + f * channels, 0, count * sizeof(T));
        seen[row - first] = 1;
        return to;
    }
    void finish() {
        for (int64_t row = first; row < last; ++row) clear(row);
    }
};

}  // namespace kernels
