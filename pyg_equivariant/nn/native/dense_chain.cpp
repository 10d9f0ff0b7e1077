// Dense layers that follow each other, with their first two derivatives; see dense_chain.py.
//
// For every row, with a_0 = x and s the SiLU:
//
//     z_l = W_l a_{l-1} + b_l,     a_l = s(z_l) + (a_{l-2} if the layer skips),     y = a_n
//
// Some rows are led through all layers before the next ones, so that nothing but what is kept leaves the processor's
// cache. Two sets of rows take turns: while those of one are multiplied, the other's next factors are prepared. The z of all
// rows of a layer are followed by those of the next layer, and so are the derivatives by them. Threads divide the rows.

#include "kernels.h"
#include "products.h"
#include "vectors.h"
#include "workspace.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <limits>
#include <type_traits>
#include <vector>

namespace kernels {

constexpr int64_t CACHED = 4 * 1024 * 1024;  // bytes of all layers that may still be at hand when they are read again

template <typename T> static void add_row(int64_t size, const T *from, T *to) {
    each<T>(size, [=](auto block, int64_t c) { block.at(from + c).add_to(to + c); });
}

// 2^n, of a whole n.
template <typename T, typename V> static V power_of_two(V n) {
    constexpr int BITS = std::numeric_limits<T>::digits - 1, BIAS = std::numeric_limits<T>::max_exponent - 1;
    if constexpr (std::is_same_v<V, T>) {
        using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
        return std::bit_cast<T>((Integer(n) + BIAS) << BITS);
    } else {
        using Integer = decltype(n > n);
        return (V)((__builtin_convertvector(n, Integer) + BIAS) << BITS);
    }
}

// e^x to the last digit or two.
template <typename T, typename V, int WIDE> static INLINE Block<T, V, WIDE> exponential(Block<T, V, WIDE> x) {
    using Row = Block<T, V, WIDE>;
    constexpr bool SINGLE = sizeof(T) == 4;
    constexpr T LOG2_E = 1.4426950408889634, SHIFT = SINGLE ? 12582912.0 : 6755399441055744.0;
    constexpr T LN_2 = SINGLE ? 0.693359375 : 6.93145751953125e-1;  // in two parts, the first one exact times any n
    constexpr T LN_2_REST = SINGLE ? -2.12194440e-4 : 1.42860682030941723212e-6;
    const V low = V{} + (SINGLE ? T(-87) : T(-708)), high = V{} + (SINGLE ? T(88) : T(709));
    x = Row::of([&](int i) { return x.part[i] < low ? low : x.part[i]; });
    x = Row::of([&](int i) { return x.part[i] > high ? high : x.part[i]; });
    const Row n = Row::of([&](int i) { return (x.part[i] * LOG2_E + SHIFT) - SHIFT; });
    const Row r = x + n * -LN_2 + n * -LN_2_REST;
    constexpr int TERMS = SINGLE ? 7 : 13;
    T factor = 1, inverse[TERMS + 1];
    for (int k = 0; k <= TERMS; factor *= ++k) inverse[k] = 1 / factor;
    Row sum = Row() + inverse[TERMS];
    for (int k = TERMS - 1; k >= 0; --k) sum = sum * r + inverse[k];
    return sum * Row::of([&](int i) { return power_of_two<T>(n.part[i]); });
}

#ifdef __AVX512DQ__
// The roots of two, 2^(i / 32), less i / 32 of a power's place among the bits.
alignas(64) constexpr uint32_t ROOTS[32] = {
    0x3f800000, 0x3f7ecd87, 0x3f7daac3, 0x3f7c980f, 0x3f7b95c2, 0x3f7aa43a, 0x3f79c3d3, 0x3f78f4f0,
    0x3f7837f0, 0x3f778d3a, 0x3f76f532, 0x3f767043, 0x3f75fed7, 0x3f75a15b, 0x3f75583f, 0x3f7523f6,
    0x3f7504f3, 0x3f74fbaf, 0x3f7508a4, 0x3f752c4d, 0x3f75672a, 0x3f75b9be, 0x3f76248c, 0x3f76a81e,
    0x3f7744fd, 0x3f77fbb8, 0x3f78ccdf, 0x3f79b907, 0x3f7ac0c7, 0x3f7be4ba, 0x3f7d257d, 0x3f7e83b3};

// 1 / (1 + e^-z) to a digit or two, with e^-z = 2^n e^r, n a thirty-second of a whole number: 2^n from a table, e^r
// by Chebyshev's points (relative error 5e-8), and the processor's estimate of an inverse, which one step corrects. Step by
// step for all vectors, so that none waits for its own last step.
template <int COUNT> static INLINE void logistic(__m512 (&z)[COUNT]) {
    const auto number = [](float value) { return _mm512_set1_ps(value); };
    const __m512i low = _mm512_load_si512(ROOTS), high = _mm512_load_si512(ROOTS + 16);
    const __m512 shift = number(393216);  // its last digit is a thirty-second
    __m512 n[COUNT], r[COUNT], power[COUNT];
    __m512i bits[COUNT];
#define EACH _Pragma("GCC unroll 8") for (int i = 0; i < COUNT; ++i)
    EACH z[i] = _mm512_range_ps(z[i], number(87), 2);  // the smaller one, with the sign of z
    EACH n[i] = _mm512_fnmadd_ps(z[i], number(1.44269504f), shift);
    EACH bits[i] = _mm512_castps_si512(n[i]);
    EACH n[i] = _mm512_sub_ps(n[i], shift);
    EACH r[i] = _mm512_fnmsub_ps(n[i], number(0.693359375f), z[i]);
    EACH r[i] = _mm512_fnmadd_ps(n[i], number(-2.12194440e-4f), r[i]);
    EACH power[i] = _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_permutex2var_epi32(low, bits[i], high), _mm512_slli_epi32(bits[i], 18)));
    EACH n[i] = _mm512_fmadd_ps(r[i], number(0.500003667f), number(1.00001467f));
    EACH r[i] = _mm512_mul_ps(r[i], power[i]);
    EACH power[i] = _mm512_fmadd_ps(r[i], n[i], power[i]);
    EACH power[i] = _mm512_add_ps(power[i], number(1));
    EACH z[i] = _mm512_rcp14_ps(power[i]);
    EACH r[i] = _mm512_fnmadd_ps(power[i], z[i], number(1));
    EACH z[i] = _mm512_fmadd_ps(z[i], r[i], z[i]);
#undef EACH
}
#endif

// The logistic function s of z, and the SiLU's derivatives of both.
template <typename T, typename V, int WIDE> static INLINE Block<T, V, WIDE> logistic(Block<T, V, WIDE> z) {
#ifdef __AVX512DQ__
    if constexpr (sizeof(T) == 4 && sizeof(V) == 64) {
        __m512 values[WIDE];
#pragma GCC unroll 8
        for (int i = 0; i < WIDE; ++i) values[i] = (__m512)z.part[i];
        logistic(values);
        return z.of([&](int i) { return (V)values[i]; });
    }
#endif
    const auto sum = exponential(z * T(-1)) + T(1);
    return z.of([&](int i) { return T(1) / sum.part[i]; });
}
template <typename Row> static INLINE Row first(Row z, Row s) { return s * (z * (s * -1 + 1) + 1); }
template <typename Row> static INLINE Row second(Row z, Row s) { return s * (s * -1 + 1) * (z * (s * -2 + 1) + 2); }

// The layers and their weights, packed for one of the two products. Widths are filled up.
template <typename Form> struct Layers {
    using T = typename Form::Number;
    const DenseChain &chain;
    std::vector<int64_t> column, weight, place_of_factor, place_of_sum;  // where each begins: in z a row, in p, packed, in sums
    const int64_t widest, length = length_of(chain);  // of all factors
    const Workspace workspace;
    const T *factors;
    T *biases;
    bool is_far;

    enum Side { FORWARD, BACKWARD };

    Layers(const DenseChain &chain, const T *p, Side side)
        : chain(chain), widest(padded<T>(*std::max_element(chain.widths, chain.widths + chain.layers + 1))) {
        int64_t columns = 0, size = 0, sums = 0, factor = 0;
        for (auto *places : {&column, &weight, &place_of_factor, &place_of_sum}) places->reserve(chain.layers + 1);
        for (int64_t l = 0; l < chain.layers; ++l) {
            const int64_t in = chain.widths[l], out = chain.widths[l + 1];
            column.push_back(columns), weight.push_back(size), place_of_factor.push_back(factor), place_of_sum.push_back(sums);
            columns += out, size += (in + 1) * out, factor += Form::size(width(l), width(l + 1));
            sums += (width(l) + 1) * width(l + 1);
        }
        place_of_sum.push_back(sums);
        biases = workspace.take<T>((chain.layers + 1) * widest);
        std::fill_n(biases, (chain.layers + 1) * widest, T(0));
        for (int64_t l = 0; l < chain.layers; ++l) {
            const int64_t in = chain.widths[l], out = chain.widths[l + 1];
            std::copy_n(p + weight[l] + in * out, out, biases + l * widest);
        }
        if (chain.packed) {
            factors = static_cast<const T *>(chain.packed) + (side == FORWARD ? 0 : length);
        } else {
            T *to = workspace.take<T>(length);
            pack(p, side, to);
            factors = to;
        }
        is_far = chain.rows * columns * int64_t(sizeof(T)) > CACHED;
    }
    static int64_t length_of(const DenseChain &chain) {
        int64_t length = 0;
        for (int64_t l = 0; l < chain.layers; ++l)
            length += Form::size(padded<T>(chain.widths[l]), padded<T>(chain.widths[l + 1]));
        return length;
    }
    void pack(const T *p, Side side, T *to) const {
        for (int64_t l = 0; l < chain.layers; ++l) {
            const int64_t in = chain.widths[l], out = chain.widths[l + 1];
            if (side == FORWARD) Form::pack(p + weight[l], in, out, 1, in, to + place_of_factor[l]);
            else Form::pack(p + weight[l], out, in, in, 1, to + place_of_factor[l]);
        }
    }
    int64_t count() const { return chain.layers; }
    int64_t width(int64_t place) const { return padded<T>(chain.widths[place]); }
    const T *factor(int64_t l) const { return factors + place_of_factor[l]; }
    const T *bias(int64_t l) const { return biases + l * widest; }
    const T *zeros() const { return bias(count()); }
    int64_t place(int64_t l, int64_t row) const { return column[l] * chain.rows + row * chain.widths[l + 1]; }  // in z
    bool skips(int64_t l) const { return l < chain.layers && chain.skips[l]; }
    int64_t place_of_bias(int64_t l) const { return place_of_sum[l] + width(l) * width(l + 1); }

    // Leads all tiles through what make(sums) makes for two sets of rows; the sums by the weights are added up, if any.
    template <typename Make> void run(T *total, const Make &make) const {
        const int64_t count = up_to(chain.rows, Form::MOST) / Form::MOST;
        const int64_t threads = std::min(chain.threads, std::max(count, int64_t(1)));
        const Workspace outer;
        const int64_t size = total ? place_of_sum.back() : 0;
        T *sums = outer.take<T>(threads * size);
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
        for (int64_t thread = 0; thread < threads; ++thread) {
            const Tiles tiles;
            const Workspace inner;
            T *own = std::fill_n(sums + thread * size, size, T(0)) - size;
            auto first = make(own), second = make(own);
            take_turns(first, second, thread * count / threads, (thread + 1) * count / threads);
            std::atomic_thread_fence(std::memory_order_seq_cst);
        }
        for (int64_t l = 0; total && l < chain.layers; ++l) {
            const int64_t in = chain.widths[l], out = chain.widths[l + 1];
            std::fill(total + weight[l], total + weight[l] + (in + 1) * out, T(0));
            for (const T *own = sums; own < sums + threads * size; own += size) {
                const T *by_weight = own + place_of_sum[l], *by_bias = own + place_of_bias(l);
                for (int64_t n = 0; n < out; ++n) add_row(in, by_weight + n * width(l), total + weight[l] + n * in);
                add_row(out, by_bias, total + weight[l] + in * out);
            }
        }
    }
};

// A set of rows on its way through the stages of its products: what the pieces of a stage prepare is multiplied. What is left
// after the last product are pieces, too.
template <typename Work> class Turn {
    Work &work;
    int64_t tile, end, stage = 0, piece = 0, count = 0;
    bool is_prepared = false;

    void begin() {
        if (tile >= end) return;
        work.open(tile);
        stage = piece = 0, count = work.begin(0);
    }
    void go_on() {
        if (piece < count) return;
        work.close(stage);
        if (stage < work.products) {
            is_prepared = true;
        } else {
            tile += 2;
            begin();
        }
    }

public:
    Turn(Work &work, int64_t first, int64_t end) : work(work), tile(first), end(end) { begin(); }
    bool is_over() const { return tile >= end; }
    bool waits() const { return is_prepared || is_over(); }
    int64_t pieces() const {
        return waits() ? 0 : count - piece + (stage == work.products && tile + 2 < end ? work.pieces(0) : 0);
    }
    // At most so many, of one stage.
    __attribute__((noinline)) void do_pieces(int64_t number) {
        const int64_t now = stage, last = std::min(count, piece + number);
        for (int64_t i = piece; i < last; ++i) work.piece(now, i);
        piece = last;
        go_on();
    }
    int64_t steps() const { return work.steps(stage); }
    template <typename Meanwhile> void multiply(Meanwhile &meanwhile) {
        work.multiply(stage, meanwhile);
        is_prepared = false;
        ++stage, piece = 0, count = work.begin(stage);
        go_on();
    }
};

// The pieces of one set of rows, spread over the steps of a product of the other one.
template <typename Turn> class Meanwhile {
    Turn &turn;
    int64_t pieces, steps, owed = 0;

public:
    Meanwhile(Turn &turn, int64_t steps) : turn(turn), pieces(turn.pieces()), steps(steps) {}
    INLINE void operator()() {
        for (owed += pieces; owed >= steps && !turn.waits(); owed -= steps) turn.do_pieces(1);
    }
    ~Meanwhile() {
        while (!turn.waits()) turn.do_pieces(pieces);
    }
};

template <typename Work> static void take_turns(Work &first, Work &second, int64_t from, int64_t to) {
    Turn<Work> one(first, from, to), other(second, from + 1, to), *now = &one, *next = &other;
    while (!one.waits()) one.do_pieces(one.pieces());
    for (; !one.is_over() || !other.is_over(); std::swap(now, next)) {
        Meanwhile<Turn<Work>> meanwhile(*next, now->is_over() ? 1 : now->steps());
        if (!now->is_over()) now->multiply(meanwhile);
    }
}

// Some rows of a matrix, or, where these do not fill vectors, a copy of them that zeros fill up.
template <typename Form, typename T> class Window {
    using Number = typename Form::Number;
    Number *copy = nullptr;
    T *place = nullptr;
    int64_t rows = 0, width = 0;

public:
    T *at = nullptr;

    // From the place of the first of these rows on.
    void open(T *first, int64_t count, int64_t wide, int64_t most) {
        place = first, rows = count, width = wide;
        if (is_whole()) {
            at = place;
            return;
        }
        if (!copy) copy = Workspace::take<Number>(most);
        at = copy;
        if constexpr (std::is_const_v<T>) {
            std::fill_n(copy, up_to(rows, Form::HEIGHT) * padded<Number>(width), Number(0));
            for (int64_t e = 0; e < rows; ++e) copy_row(width, place + e * width, copy + e * padded<Number>(width));
        }
    }
    bool is_whole() const { return rows % Form::HEIGHT == 0 && width == padded<Number>(width); }
    void close() {
        for (int64_t e = 0; !is_whole() && e < rows; ++e) copy_row(width, at + e * padded<Number>(width), place + e * width);
    }
};

// What the ways through the layers share. Of the outcomes of every other layer, those that a skip adds later are kept.
template <typename Form> struct Way {
    using T = typename Form::Number;
    using In = Window<Form, const T>;
    using Out = Window<Form, T>;
    const Layers<Form> &layers;
    const int64_t n, widest, most;
    int64_t row = 0, given = 0, rows = 0;  // of the tile, and how many these are when they are filled up
    int64_t width = 0, count = 0;          // of a stage's first numbers, and their pieces
    const T *added = nullptr;              // what a skip adds to these
    T *keeps = nullptr;                    // and where they are kept for another one
    T *const product, *const left, *const kept[2];

    explicit Way(const Layers<Form> &layers)
        : layers(layers), n(layers.count()), widest(layers.widest), most(Form::MOST * widest), product(Workspace::take<T>(most)),
          left(Workspace::take<T>(Form::size(Form::MOST, widest))),
          kept{Workspace::take<T>(most), Workspace::take<T>(most)} {}
    void open(int64_t tile) {
        row = tile * Form::MOST, given = std::min(Form::MOST, layers.chain.rows - row), rows = up_to(given, Form::HEIGHT);
    }
    // A matrix of all rows, or the part of a layer.
    template <typename W, typename P> void open_rows(W &window, P *matrix, int64_t place) const {
        const int64_t width = layers.chain.widths[place];
        window.open(matrix + row * width, given, width, most);
    }
    template <typename W, typename P> void open_layer(W &window, P *matrix, int64_t l) const {
        window.open(matrix + layers.place(l, row), given, layers.chain.widths[l + 1], most);
    }
    int64_t pieces_of(int64_t place) const { return Form::pieces(rows, layers.width(place)); }
    // Of the layer's outcome, or what belongs to it, as a skip adds them and as another one will need them.
    void begin(int64_t place, bool adds, bool keep) {
        width = layers.width(place), count = pieces_of(place);
        added = adds ? kept[place & 1] : nullptr, keeps = keep ? kept[place & 1] : nullptr;
    }
    template <typename Row> INLINE Row skip(Row row, Place at) const {
        if (added) row = row + Form::read(added, width, at);
        if (keeps) Form::write(keeps, width, at, row);
        return row;
    }
};

template <typename Form> struct Forward : Way<Form> {
    using T = typename Form::Number;
    using Way<Form>::layers, Way<Form>::n, Way<Form>::rows, Way<Form>::width;
    const int64_t products = n;
    const T *x;
    T *y, *z;
    const T *bias = nullptr;
    bool past = false;
    typename Way<Form>::In of_x;
    typename Way<Form>::Out of_y, of_z;

    Forward(const Layers<Form> &layers, const T *x, T *y, T *z) : Way<Form>(layers), x(x), y(y), z(z) {}
    void open(int64_t tile) {
        Way<Form>::open(tile);
        this->open_rows(of_x, x, 0);
        this->open_rows(of_y, y, n);
    }
    // Stage l begins with the outcome of the layer before, or x.
    int64_t begin(int64_t l) {
        if (l) {
            this->open_layer(of_z, z, l - 1);
            past = layers.is_far && of_z.is_whole(), bias = layers.bias(l - 1);
        }
        Way<Form>::begin(l, l && layers.skips(l - 1), layers.skips(l + 1));
        return this->count;
    }
    int64_t pieces(int64_t l) const { return this->pieces_of(l); }
    INLINE void piece(int64_t l, int64_t i) {
        const auto at = Form::place(i, width);
        auto a = Form::read(l ? this->product : of_x.at, width, at);
        if (l) {
            a = a + Form::read(bias, 0, at);
            Form::write(of_z.at, width, at, a, past);
            a = a * logistic(a);
        }
        a = this->skip(a, at);
        if (l == n) Form::write(of_y.at, width, at, a);
        else Form::put(a, at, rows, width, this->left, (T *)nullptr, (T *)nullptr);
    }
    void close(int64_t l) {
        if (l) of_z.close();
        if (l == n) of_y.close();
    }
    int64_t steps(int64_t l) const { return Form::steps(rows, layers.width(l + 1), layers.width(l)); }
    template <typename M> void multiply(int64_t l, M &meanwhile) {
        Form::multiply_along(rows, layers.width(l + 1), layers.width(l), this->left, layers.factor(l),
                             this->product, meanwhile);
    }
};

// With the derivatives g by y and h by z, if any: those by x, and by the activations or by the weights.
template <typename Form, bool WEIGHTS> struct Backward : Way<Form> {
    using T = typename Form::Number;
    using In = typename Way<Form>::In;
    using Way<Form>::layers, Way<Form>::n, Way<Form>::rows, Way<Form>::width;
    const int64_t products = WEIGHTS ? n + 1 : n;
    const T *x, *z, *g, *h;
    T *x_out, *a_out, *sums;
    const T *by = nullptr, *read = nullptr;
    int64_t by_width = 0;
    bool past = false;
    In of_x, of_g, of_h;
    std::vector<In> of_z;
    typename Way<Form>::Out by_x, by_a;
    T *across[2] = {}, *right = nullptr;

    Backward(const Layers<Form> &layers, const T *x, const T *z, const T *g, const T *h, T *x_out, T *a_out, T *sums)
        : Way<Form>(layers), x(x), z(z), g(g), h(h), x_out(x_out), a_out(a_out), sums(sums), of_z(n) {
        if (!WEIGHTS) return;
        for (T **factor : {across, across + 1, &right}) *factor = Workspace::take<T>(Form::size(Form::MOST, this->widest));
    }
    void open(int64_t tile) {
        Way<Form>::open(tile);
        if (WEIGHTS) this->open_rows(of_x, x, 0);
        if (g) this->open_rows(of_g, g, n);
        this->open_rows(by_x, x_out, 0);
        for (int64_t l = 0; l < n; ++l) this->open_layer(of_z[l], z, l);
    }
    // Stage s begins with the derivative by the outcome of layer l = n - 1 - s, or, after the last one, by x. The outcome
    // itself is a factor of the sum by the weights of the layer after it.
    int64_t pieces(int64_t s) const {
        if (s > n) return 0;
        return this->pieces_of(n - s) + (WEIGHTS && s < n ? Form::turns(rows, layers.width(n - s)) : 0);
    }
    int64_t begin(int64_t s) {
        if (s > n) return 0;
        const int64_t l = n - 1 - s;
        Way<Form>::begin(l + 1, layers.skips(l + 2), l >= 0 && layers.skips(l));
        by = s ? this->product : g ? of_g.at : layers.zeros(), by_width = s || g ? width : 0;
        if (l >= 0) {
            if (h) this->open_layer(of_h, h, l);
            if (a_out) this->open_layer(by_a, a_out, l);
            past = a_out && layers.is_far && by_a.is_whole(), read = of_z[l].at;
        }
        return pieces(s);
    }
    INLINE void piece(int64_t s, int64_t i) {
        if (i >= this->count) return Form::turn(across[s & 1], i - this->count);
        const auto at = Form::place(i, width);
        auto row = this->skip(Form::read(by, by_width, at), at);
        if (s == n) {
            Form::write(by_x.at, width, at, row);
            if (WEIGHTS) Form::put(Form::read(of_x.at, width, at), at, rows, width, (T *)nullptr, (T *)nullptr, right);
            return;
        }
        if (a_out) Form::write(by_a.at, width, at, row, past);
        const auto value = Form::read(read, width, at), logistic = kernels::logistic(value);
        row = row * first(value, logistic);
        if (h) row = row + Form::read(of_h.at, width, at);
        Form::put(row, at, rows, width, this->left, WEIGHTS ? across[s & 1] : nullptr, (T *)nullptr);
        if (WEIGHTS) Form::add_to_row(sums + layers.place_of_bias(n - 1 - s), at, row);
        if (WEIGHTS && s) outcome(n - 1 - s, value * logistic, at);
    }
    template <typename Row> INLINE void outcome(int64_t l, Row row, Place at) {
        for (; layers.skips(l); l -= 2) {
            if (l == 1) {
                row = row + Form::read(of_x.at, width, at);
                break;
            }
            const auto value = Form::read(of_z[l - 2].at, width, at);
            row = row + value * logistic(value);
        }
        Form::put(row, at, rows, width, (T *)nullptr, (T *)nullptr, right);
    }
    void close(int64_t s) {
        if (s == n) by_x.close();
        else if (a_out && s < n) by_a.close();
    }
    int64_t steps(int64_t s) const {
        int64_t steps = 0;
        if (s < n) steps += Form::steps(rows, layers.width(n - 1 - s), layers.width(n - s));
        if (WEIGHTS && s) steps += Form::steps(layers.width(n - s + 1), layers.width(n - s), rows);
        return steps;
    }
    template <typename M> void multiply(int64_t s, M &meanwhile) {
        const int64_t l = n - 1 - s;
        if (l >= 0)
            Form::multiply_along(rows, layers.width(l), width, this->left, layers.factor(l), this->product,
                                 meanwhile);
        if (WEIGHTS && s)
            Form::multiply_across(layers.width(l + 2), width, rows, across[(s - 1) & 1], right,
                                  sums + layers.place_of_sum[l + 1], meanwhile);
    }
};

// With the derivative k by what Backward gives for x, without h: those by its g, z and weights.
template <typename Form> struct Second : Way<Form> {
    using T = typename Form::Number;
    using In = typename Way<Form>::In;
    using Out = typename Way<Form>::Out;
    using Way<Form>::layers, Way<Form>::n, Way<Form>::rows, Way<Form>::width;
    const int64_t products = n + 1;
    const T *z, *by_a, *k;
    T *g_out, *z_out, *sums;
    bool past = false;
    In of_k, of_z, of_a;
    Out by_g, by_z;
    T *across, *right[2];

    Second(const Layers<Form> &layers, const T *z, const T *by_a, const T *k, T *g_out, T *z_out, T *sums)
        : Way<Form>(layers), z(z), by_a(by_a), k(k), g_out(g_out), z_out(z_out), sums(sums) {
        for (T **factor : {&across, right, right + 1}) *factor = Workspace::take<T>(Form::size(Form::MOST, this->widest));
    }
    void open(int64_t tile) {
        Way<Form>::open(tile);
        this->open_rows(of_k, k, 0);
        this->open_rows(by_g, g_out, n);
    }
    // Stage l begins with what the layer before makes of k, or k. With the derivatives by that layer's z, it is a factor of the
    // sum by the weights.
    int64_t pieces(int64_t l) const {
        if (l > n) return 0;
        return this->pieces_of(l) + (l ? Form::turns(rows, layers.width(l)) : 0);
    }
    int64_t begin(int64_t l) {
        if (l > n) return 0;
        Way<Form>::begin(l, l && layers.skips(l - 1), layers.skips(l + 1));
        if (l) {
            this->open_layer(by_z, z_out, l - 1);
            this->open_layer(of_z, z, l - 1);
            this->open_layer(of_a, by_a, l - 1);
            past = layers.is_far && by_z.is_whole();
        }
        return pieces(l);
    }
    INLINE void piece(int64_t l, int64_t i) {
        if (i >= this->count) return Form::turn(across, i - this->count);
        const auto at = Form::place(i, width);
        auto row = Form::read(l ? this->product : of_k.at, width, at);
        if (l) {
            const auto value = Form::read(of_z.at, width, at), s = logistic(value), slope = first(value, s);
            const auto by = Form::read(of_a.at, width, at);
            Form::write(by_z.at, width, at, second(value, s) * by * row, past);
            Form::put(slope * by, at, rows, width, (T *)nullptr, across, (T *)nullptr);
            row = slope * row;
        }
        row = this->skip(row, at);
        if (l == n) Form::write(by_g.at, width, at, row);
        else Form::put(row, at, rows, width, this->left, (T *)nullptr, right[l & 1]);
    }
    void close(int64_t l) {
        if (l && l <= n) by_z.close();
        if (l == n) by_g.close();
    }
    int64_t steps(int64_t l) const {
        int64_t steps = 0;
        if (l < n) steps += Form::steps(rows, layers.width(l + 1), layers.width(l));
        if (l) steps += Form::steps(layers.width(l), layers.width(l - 1), rows);
        return steps;
    }
    template <typename M> void multiply(int64_t l, M &meanwhile) {
        if (l < n)
            Form::multiply_along(rows, layers.width(l + 1), width, this->left, layers.factor(l), this->product,
                                 meanwhile);
        if (l)
            Form::multiply_across(width, layers.width(l - 1), rows, across, right[(l - 1) & 1],
                                  sums + layers.place_of_sum[l - 1], meanwhile);
    }
};

// Calls work with the form of factors that this processor is quickest with.
template <typename T, typename Work> static void formed(const Work &work) {
#ifdef TILES
    if constexpr (std::is_same_v<T, float>)
        if (has_tiles()) return work(Tiled());
#endif
    work(Plain<T>());
}

template <typename T> int64_t dense_chain_pack(const DenseChain &chain, const T *p, T *out) {
    int64_t length = 0;
    formed<T>([&](auto form) {
        using L = Layers<decltype(form)>;
        length = L::length_of(chain);
        if (!out) return;
        DenseChain packed = chain;
        packed.packed = out;
        const L layers(packed, p, L::FORWARD);
        layers.pack(p, L::FORWARD, out), layers.pack(p, L::BACKWARD, out + length);
    });
    return 2 * length + REGISTER / sizeof(T);  // so that their number is another one where registers are
}

template <typename T> void dense_chain_forward(const DenseChain &chain, const T *x, const T *p, T *y, T *z) {
    formed<T>([&](auto form) {
        using L = Layers<decltype(form)>;
        const L layers(chain, p, L::FORWARD);
        layers.run(nullptr, [&](T *) { return Forward<decltype(form)>(layers, x, y, z); });
    });
}

template <typename T>
void dense_chain_backward(const DenseChain &chain, const T *x, const T *z, const T *p, const T *g, const T *h, T *x_out,
                          T *a_out, T *p_out) {
    formed<T>([&](auto form) {
        using Form = decltype(form);
        using L = Layers<Form>;
        const L layers(chain, p, L::BACKWARD);
        if (p_out)
            layers.run(p_out, [&](T *sums) { return Backward<Form, true>(layers, x, z, g, h, x_out, a_out, sums); });
        else layers.run(nullptr, [&](T *) { return Backward<Form, false>(layers, x, z, g, h, x_out, a_out, nullptr); });
    });
}

template <typename T>
void dense_chain_second(const DenseChain &chain, const T *z, const T *p, const T *by_a, const T *k, T *g_out, T *z_out,
                        T *p_out) {
    formed<T>([&](auto form) {
        using L = Layers<decltype(form)>;
        const L layers(chain, p, L::FORWARD);
        layers.run(p_out, [&](T *sums) { return Second<decltype(form)>(layers, z, by_a, k, g_out, z_out, sums); });
    });
}

#define EXPORT(T)                                                                                                           \
    template int64_t dense_chain_pack<T>(const DenseChain &, const T *, T *);                                               \
    template void dense_chain_forward<T>(const DenseChain &, const T *, const T *, T *, T *);                               \
    template void dense_chain_backward<T>(const DenseChain &, const T *, const T *, const T *, const T *, const T *, T *,   \
                                          T *, T *);                                                                        \
    template void dense_chain_second<T>(const DenseChain &, const T *, const T *, const T *, const T *, T *, T *, T *);
EXPORT(float)
EXPORT(double)

}  // namespace kernels
