// The kernels as operations of PyTorch: checks, memory, types. Their schemas and derivatives are in Python.

#include "kernels.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <limits>
#include <mutex>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

using at::Tensor;
using kernels::DenseChain;
using kernels::Exchange;
using kernels::Graph;
using kernels::Harmonics;
using kernels::Inputs;
using kernels::Outputs;
using kernels::POINTS;
using kernels::Polynomials;
using kernels::Rejection;
using kernels::Rows2d;
using kernels::Sizes;
using kernels::Table;
using Optional = std::optional<Tensor>;

// Calls work with a number of the tensor's type.
template <typename Work> static auto typed(const Tensor &like, Work work) {
    return like.scalar_type() == at::kFloat ? work(float()) : work(double());
}
template <typename T> static const T *in(const Tensor &tensor) { return tensor.const_data_ptr<T>(); }
template <typename T> static T *out(const Tensor &tensor) { return tensor.mutable_data_ptr<T>(); }
static const int64_t *indices(const Tensor &tensor) { return tensor.const_data_ptr<int64_t>(); }
static Tensor contiguous(const Optional &tensor) { return tensor ? tensor->contiguous() : Tensor(); }
template <typename T> static const T *in_if(const Tensor &tensor) { return tensor.defined() ? in<T>(tensor) : nullptr; }
template <typename T> static T *out_if(const Tensor &tensor) { return tensor.numel() ? out<T>(tensor) : nullptr; }
static Tensor empty(const Tensor &like) { return at::empty(like.sizes(), like.options()); }
static Tensor zeros(const Tensor &like) { return at::zeros(like.sizes(), like.options()); }

// Rows of as many channels as the last axis has.
struct Rows {
    const Tensor tensor;
    int64_t count, channels;

    explicit Rows(const Tensor &x)
        : tensor(x.dim() == 2 && x.stride(1) == 1 && x.stride(0) >= x.size(1) ? x : x.contiguous()),
          count(c10::multiply_integers(x.sizes().slice(0, x.dim() - 1))), channels(x.size(-1)) {}
    int64_t stride() const { return std::max<int64_t>(1, tensor.dim() == 2 ? tensor.stride(0) : channels); }
    Tensor like(int64_t width) const {
        auto sizes = tensor.sizes().vec();
        sizes.back() = width;
        return at::empty(sizes, tensor.options());
    }
};

// Sums over edges. Their terms are known by a key, for all of the program's life.

struct Terms {
    std::vector<int64_t> a, f, first_term, o, first_entry, b;
    std::vector<double> v;
    int64_t num_x, num_w, num_sh, num_out;
};

static std::mutex mutex;
static std::unordered_map<std::string, Terms> known;

static int64_t beyond(at::IntArrayRef numbers) {
    return numbers.empty() ? 0 : 1 + *std::max_element(numbers.begin(), numbers.end());
}

static void edge_sum_terms(std::string_view key, at::IntArrayRef a, at::IntArrayRef f, at::IntArrayRef first_term,
                           at::IntArrayRef o, at::IntArrayRef first_entry, at::IntArrayRef b, at::ArrayRef<double> v,
                           int64_t num_out) {
    const std::lock_guard<std::mutex> lock(mutex);
    known.emplace(key, Terms{a.vec(), f.vec(), first_term.vec(), o.vec(), first_entry.vec(), b.vec(), v.vec(), beyond(a),
                             beyond(f), beyond(b), num_out});
}

static const Terms &terms_of(std::string_view key) {
    const std::lock_guard<std::mutex> lock(mutex);
    return known.at(std::string(key));  // which stays where it is
}

static void check(int64_t row, int64_t nodes) {
    TORCH_CHECK_INDEX(row < 0, "row ", row, " of an interpolation reads beyond its ", nodes, " nodes");
}

struct EdgeSum {
    const Terms &terms;
    const Tensor x, y, w, c, source, target, row, start;
    Table table;
    Graph graph;

    EdgeSum(std::string_view key, const Tensor &x, const Tensor &y, const Tensor &w, const Optional &c, const Tensor &source,
            const Tensor &target, const Tensor &row, const Optional &start)
        : terms(terms_of(key)), x(x.contiguous()), y(y.contiguous()), w(w.contiguous()), c(contiguous(c)),
          source(source.contiguous()), target(target.contiguous()), row(row.contiguous()), start(contiguous(start)) {
        const int64_t edges = source.size(0);
        TORCH_CHECK_VALUE(
            x.size(1) >= terms.num_x && w.size(1) >= terms.num_w && y.size(1) >= terms.num_sh && x.size(2) == w.size(2) &&
                y.size(0) == edges && target.size(0) == edges && row.size(0) == edges,
            "a sum over ", edges, " edges with ", terms.num_x, " rows of features, ", terms.num_sh,
            " columns of geometry and ", terms.num_w, " rows of filters got features ", x.sizes(), ", geometry ", y.sizes(),
            ", filters ", w.sizes(), " and indices ", source.sizes(), ", ", target.sizes(), ", ", row.sizes());
        table = {int64_t(terms.a.size()), int64_t(terms.o.size()), x.size(1), w.size(1), terms.num_out, y.size(1),
                 terms.a.data(), terms.f.data(), terms.first_term.data(), terms.o.data(), terms.first_entry.data(),
                 terms.b.data(), terms.v.data()};
        graph = {edges, x.size(0), w.size(0), x.size(2), at::get_num_threads(), indices(this->source),
                 indices(this->target), indices(this->row), w.size(0), nullptr};
        if (!start) return;
        TORCH_CHECK_VALUE(c && c->dim() == 2 && c->size(0) == start->size(0) && c->size(1) == POINTS,
                          "an interpolation needs ", POINTS, " coefficients of each of ", start->size(0), " rows");
        graph.rows = start->size(0);
        graph.start = indices(this->start);
        for (int64_t n = 0; n < graph.rows; ++n)
            if (graph.start[n] < 0 || graph.start[n] + POINTS > w.size(0)) ::check(n, w.size(0));
    }

    template <typename T> Inputs<T> inputs() const { return {in<T>(x), in<T>(y), in<T>(w), in_if<T>(c)}; }

    // Memory for the derivatives: what nobody asks for has no numbers.
    std::array<Tensor, 4> derivatives(bool geometry, bool filters) const {
        const auto cleared = [](const Tensor &like, bool wanted) {
            return wanted ? zeros(like) : at::empty({0}, like.options());
        };
        return {empty(x), cleared(y, geometry), !graph.start ? empty(w) : cleared(w, filters),
                cleared(c.defined() ? c : y, c.defined() && geometry)};
    }

    void check(int64_t edge) const {
        TORCH_CHECK_INDEX(edge < 0, "edge ", edge, " leads from atom ", graph.source[edge], " to atom ", graph.target[edge],
                          " with filter ", graph.row[edge], ", but there are ", graph.nodes, " atoms and ", graph.rows,
                          " filters");
    }
};

template <typename T> static Outputs<T> outputs(const std::array<Tensor, 4> &of) {
    return {out<T>(of[0]), out_if<T>(of[1]), out_if<T>(of[2]), out_if<T>(of[3])};
}

static Tensor edge_sum_forward(std::string_view key, const Tensor &x, const Tensor &y, const Tensor &w, const Optional &c,
                               const Tensor &source, const Tensor &target, const Tensor &row, const Optional &start) {
    const EdgeSum sum(key, x, y, w, c, source, target, row, start);
    Tensor total = at::empty({x.size(0), sum.terms.num_out, x.size(2)}, x.options());
    sum.check(typed(x, [&](auto zero) {
        using T = decltype(zero);
        return kernels::edge_sum_forward<T>(sum.table, sum.graph, sum.inputs<T>(), out<T>(total));
    }));
    return total;
}

static std::tuple<Tensor, Tensor, Tensor, Tensor>
edge_sum_backward(std::string_view key, const Tensor &x, const Tensor &y, const Tensor &w, const Optional &c, const Tensor &g,
                  const Tensor &source, const Tensor &target, const Tensor &row, const Optional &start, bool geometry,
                  bool filters) {
    const EdgeSum sum(key, x, y, w, c, source, target, row, start);
    const Tensor grad = g.contiguous();
    const std::array<Tensor, 4> of = sum.derivatives(geometry, filters);
    sum.check(typed(x, [&](auto zero) {
        using T = decltype(zero);
        return kernels::edge_sum_backward<T>(sum.table, sum.graph, sum.inputs<T>(), in<T>(grad), outputs<T>(of));
    }));
    return {of[0], of[1], of[2], of[3]};
}

static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>
edge_sum_second(std::string_view key, const Tensor &x, const Tensor &y, const Tensor &w, const Optional &c, const Tensor &g,
                const Optional &hx, const Optional &hy, const Optional &hw, const Optional &hc, const Tensor &source,
                const Tensor &target, const Tensor &row, const Optional &start, bool geometry, bool filters) {
    const EdgeSum sum(key, x, y, w, c, source, target, row, start);
    const Tensor grad = g.contiguous(), by_x = hx ? hx->contiguous() : zeros(x), by_y = hy ? hy->contiguous() : zeros(y);
    const Tensor by_w = hw || start ? contiguous(hw) : zeros(w), by_c = contiguous(hc), of_g = empty(g);
    const std::array<Tensor, 4> of = sum.derivatives(geometry, filters);
    sum.check(typed(x, [&](auto zero) {
        using T = decltype(zero);
        return kernels::edge_sum_second<T>(sum.table, sum.graph, sum.inputs<T>(), in<T>(grad),
                                           {in<T>(by_x), in<T>(by_y), in_if<T>(by_w), in_if<T>(by_c)}, outputs<T>(of),
                                           out<T>(of_g));
    }));
    return {of[0], of[1], of[2], of[3], of_g};
}

// Interpolation.

static Tensor interpolation_polynomials(const Tensor &place, int64_t order) {
    const Tensor from = place.contiguous();
    Tensor result = at::empty({place.size(0), POINTS}, place.options());
    typed(place, [&](auto zero) {
        using T = decltype(zero);
        kernels::interpolation_polynomials<T>(place.size(0), order, in<T>(from), out<T>(result));
    });
    return result;
}

static Tensor interpolation_read(const Tensor &table, const Tensor &c, const Tensor &start) {
    const Tensor values = table.contiguous(), factors = c.contiguous(), first = start.contiguous();
    const Sizes size{start.size(0), table.size(0), table.size(1), at::get_num_threads(), indices(first)};
    Tensor result = at::empty({size.rows, size.width}, table.options());
    check(typed(table, [&](auto zero) {
        using T = decltype(zero);
        return kernels::interpolation_read<T>(size, in<T>(values), in<T>(factors), out<T>(result));
    }), size.nodes);
    return result;
}

static Tensor interpolation_put(const Tensor &c, const Tensor &g, const Tensor &start, int64_t nodes) {
    const Tensor factors = c.contiguous(), grad = g.contiguous(), first = start.contiguous();
    const Sizes size{start.size(0), nodes, g.size(1), at::get_num_threads(), indices(first)};
    Tensor result = at::zeros({size.nodes, size.width}, g.options());
    check(typed(g, [&](auto zero) {
        using T = decltype(zero);
        return kernels::interpolation_put<T>(size, in<T>(factors), in<T>(grad), out<T>(result));
    }), size.nodes);
    return result;
}

static Tensor interpolation_dot(const Tensor &g, const Tensor &table, const Tensor &start) {
    const Tensor grad = g.contiguous(), values = table.contiguous(), first = start.contiguous();
    const Sizes size{start.size(0), table.size(0), table.size(1), at::get_num_threads(), indices(first)};
    Tensor result = at::zeros({size.rows, POINTS}, g.options());
    check(typed(g, [&](auto zero) {
        using T = decltype(zero);
        return kernels::interpolation_dot<T>(size, in<T>(grad), in<T>(values), out<T>(result));
    }), size.nodes);
    return result;
}

// Chebyshev series.

static Tensor chebyshev_series(const Tensor &u, const Tensor &series, int64_t order) {
    TORCH_CHECK_VALUE(u.dim() == 1 && series.dim() == 2 && series.size(0) > 0 && order >= 0 && u.dtype() == series.dtype(),
                      "derivative ", order, " of a series of coefficients ", series.sizes(), " at numbers ", u.sizes());
    const Tensor from = u.contiguous(), coefficients = series.contiguous();
    Tensor result = at::empty({u.size(0), series.size(1)}, u.options());
    typed(u, [&](auto zero) {
        using T = decltype(zero);
        kernels::chebyshev_series<T>({u.size(0), series.size(0), series.size(1), at::get_num_threads()}, order, in<T>(from),
                                     in<T>(coefficients), out<T>(result));
    });
    return result;
}

// Harmonics of edges.

static Rows2d vectors(const Tensor &v, int64_t lmax) {
    TORCH_CHECK_VALUE(v.dim() == 2 && v.size(1) == 3 && lmax >= 0, "harmonics up to degree ", lmax, " of vectors ", v.sizes());
    return {v.size(0), lmax, at::get_num_threads()};
}

static void components(const Tensor &g, const Rows2d &size) {
    TORCH_CHECK_VALUE(g.dim() == 2 && g.size(0) == size.rows && g.size(1) == (size.channels + 1) * (size.channels + 1),
                      "harmonics up to degree ", size.channels, " of ", size.rows, " edges got gradients ", g.sizes());
}

static Tensor harmonics_forward(const Tensor &v, int64_t lmax) {
    const Rows2d size = vectors(v, lmax);
    const Tensor vec = v.contiguous(), y = at::empty({size.rows, (lmax + 1) * (lmax + 1)}, v.options());
    typed(v, [&](auto zero) {
        using T = decltype(zero);
        kernels::harmonics_forward<T>(size, in<T>(vec), out<T>(y));
    });
    return y;
}

static Tensor harmonics_backward(const Tensor &v, const Tensor &g, int64_t lmax) {
    const Rows2d size = vectors(v, lmax);
    components(g, size);
    const Tensor vec = v.contiguous(), grad = g.contiguous(), of_v = empty(vec);
    typed(v, [&](auto zero) {
        using T = decltype(zero);
        kernels::harmonics_backward<T>(size, in<T>(vec), in<T>(grad), out<T>(of_v));
    });
    return of_v;
}

static std::tuple<Tensor, Tensor> harmonics_second(const Tensor &v, const Tensor &g, const Tensor &h, int64_t lmax) {
    const Rows2d size = vectors(v, lmax);
    components(g, size);
    TORCH_CHECK_VALUE(h.sizes() == v.sizes(), "vectors are ", v.sizes(), " and ", h.sizes());
    const Tensor vec = v.contiguous(), grad = g.contiguous(), by = h.contiguous(), of_v = empty(vec), of_g = empty(grad);
    typed(v, [&](auto zero) {
        using T = decltype(zero);
        kernels::harmonics_second<T>(size, in<T>(vec), in<T>(grad), in<T>(by), out<T>(of_v), out<T>(of_g));
    });
    return {of_v, of_g};
}

// Sums of harmonics.

struct HarmonicSum {
    const Tensor index;
    Harmonics size;

    HarmonicSum(const Tensor &index, at::IntArrayRef first, int64_t nodes, int64_t channels)
        : index(index.contiguous()),
          size{index.size(0), nodes, int64_t(first.size()) - 1, first.back(), channels, at::get_num_threads(),
               indices(this->index), first.data()} {}

    void fits(const Tensor &tensor, int64_t length, int64_t rows) const {
        TORCH_CHECK_VALUE(tensor.size(0) == length && tensor.size(1) == rows &&
                              (tensor.dim() == 2 || tensor.size(2) == size.channels),
                          "sums of ", size.components, " harmonics in ", size.rows, " rows over ", size.edges, " edges of ",
                          size.nodes, " atoms with ", size.channels, " channels got a tensor ", tensor.sizes());
    }
    void of_edges(const Tensor &values) const { fits(values, size.edges, size.rows); }
    void of_atoms(const Tensor &tensors) const { fits(tensors, size.nodes, size.components); }
    void harmonics(const Tensor &sh) const { fits(sh, size.edges, size.components); }

    void check(int64_t edge) const {
        TORCH_CHECK_INDEX(edge < 0, "edge ", edge, " has the atom ", size.index[edge], " of ", size.nodes);
    }
};

static Tensor harmonic_to_atoms(const Tensor &sh, const Tensor &values, const Tensor &index, at::IntArrayRef first,
                                int64_t nodes) {
    const Tensor y = sh.contiguous(), v = values.contiguous();
    const HarmonicSum sum(index, first, nodes, values.size(2));
    sum.harmonics(sh), sum.of_edges(values);
    Tensor result = at::empty({nodes, sum.size.components, sum.size.channels}, values.options());
    sum.check(typed(v, [&](auto zero) {
        using T = decltype(zero);
        return kernels::harmonic_to_atoms<T>(sum.size, in<T>(y), in<T>(v), out<T>(result));
    }));
    return result;
}

static Tensor harmonic_to_edges(const Tensor &sh, const Tensor &tensors, const Tensor &index, at::IntArrayRef first) {
    const Tensor y = sh.contiguous(), a = tensors.contiguous();
    const HarmonicSum sum(index, first, tensors.size(0), tensors.size(2));
    sum.harmonics(sh), sum.of_atoms(tensors);
    Tensor result = at::empty({sum.size.edges, sum.size.rows, sum.size.channels}, tensors.options());
    sum.check(typed(a, [&](auto zero) {
        using T = decltype(zero);
        return kernels::harmonic_to_edges<T>(sum.size, in<T>(y), in<T>(a), out<T>(result));
    }));
    return result;
}

static Tensor harmonic_dot(const Tensor &values, const Tensor &tensors, const Tensor &index, at::IntArrayRef first) {
    const Tensor v = values.contiguous(), a = tensors.contiguous();
    const HarmonicSum sum(index, first, tensors.size(0), tensors.size(2));
    sum.of_edges(values), sum.of_atoms(tensors);
    Tensor result = at::empty({sum.size.edges, sum.size.components}, values.options());
    sum.check(typed(v, [&](auto zero) {
        using T = decltype(zero);
        return kernels::harmonic_dot<T>(sum.size, in<T>(v), in<T>(a), out<T>(result));
    }));
    return result;
}

// Sums of harmonics with products of the edges.

struct ProductSum : HarmonicSum {
    const Tensor y, b, w, x;
    const int64_t rank;

    ProductSum(const Tensor &sh, const Tensor &factors, const Tensor &weight, const Tensor &x, const Tensor &index,
               at::IntArrayRef first, int64_t nodes)
        : HarmonicSum(index, first, nodes, x.size(1)), y(sh.contiguous()), b(factors.contiguous()), w(weight.contiguous()),
          x(x.contiguous()), rank(weight.size(0)) {
        harmonics(sh);
        TORCH_CHECK_VALUE(b.dim() == 3 && b.size(0) == size.edges && b.size(1) == size.rows && b.size(2) == rank &&
                              w.size(1) == size.channels && x.size(0) == size.edges,
                          "products over ", size.edges, " edges got ", b.sizes(), " factors, weights ", w.sizes(),
                          " and features ", x.sizes());
    }
};

static Tensor product_to_atoms(const Tensor &sh, const Tensor &factors, const Tensor &weight, const Tensor &x,
                               const Tensor &index, at::IntArrayRef first, int64_t nodes) {
    const ProductSum sum(sh, factors, weight, x, index, first, nodes);
    Tensor result = at::empty({nodes, sum.size.components, sum.size.channels}, x.options());
    sum.check(typed(x, [&](auto zero) {
        using T = decltype(zero);
        return kernels::product_to_atoms<T>(sum.size, sum.rank, in<T>(sum.y), in<T>(sum.b), in<T>(sum.w), in<T>(sum.x),
                                            out<T>(result));
    }));
    return result;
}

static std::tuple<Tensor, Tensor, Tensor, Tensor> product_backward(const Tensor &sh, const Tensor &factors,
                                                                   const Tensor &weight, const Tensor &x, const Tensor &g,
                                                                   const Tensor &index, at::IntArrayRef first) {
    const ProductSum sum(sh, factors, weight, x, index, first, g.size(0));
    sum.of_atoms(g);
    const Tensor grad = g.contiguous();
    Tensor of_y = empty(sh), of_b = empty(factors), of_w = empty(weight), of_x = empty(x);
    sum.check(typed(x, [&](auto zero) {
        using T = decltype(zero);
        return kernels::product_backward<T>(sum.size, sum.rank, in<T>(sum.y), in<T>(sum.b), in<T>(sum.w), in<T>(sum.x),
                                            in<T>(grad), out<T>(of_y), out<T>(of_b), out<T>(of_w), out<T>(of_x));
    }));
    return {of_y, of_b, of_w, of_x};
}

static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>
product_second(const Tensor &sh, const Tensor &factors, const Tensor &weight, const Tensor &x, const Tensor &g,
               const Tensor &hy, const Tensor &hb, const Tensor &hw, const Tensor &hx, const Tensor &index,
               at::IntArrayRef first) {
    const ProductSum sum(sh, factors, weight, x, index, first, g.size(0)), by(hy, hb, hw, hx, index, first, g.size(0));
    sum.of_atoms(g);
    const Tensor grad = g.contiguous();
    Tensor of_y = empty(sh), of_b = empty(factors), of_w = empty(weight), of_x = empty(x), of_g = empty(g);
    sum.check(typed(x, [&](auto zero) {
        using T = decltype(zero);
        return kernels::product_second<T>(sum.size, sum.rank, in<T>(sum.y), in<T>(sum.b), in<T>(sum.w), in<T>(sum.x),
                                          in<T>(grad), in<T>(by.y), in<T>(by.b), in<T>(by.w), in<T>(by.x), out<T>(of_y),
                                          out<T>(of_b), out<T>(of_w), out<T>(of_x), out<T>(of_g));
    }));
    return {of_y, of_b, of_w, of_x, of_g};
}

// Products of rows that edges read.

struct HeadProduct {
    const Tensor to_a, to_b, to_c;
    kernels::Heads size;

    HeadProduct(const Tensor &a, const Tensor &b, const Tensor &to_a, const Tensor &to_b, const Tensor &to_c, int64_t heads)
        : to_a(to_a.contiguous()), to_b(to_b.contiguous()), to_c(to_c.contiguous()),
          size{to_a.size(0), a.size(1), heads, at::get_num_threads()} {
        TORCH_CHECK_VALUE(a.dim() == 2 && b.dim() == 2 && b.size(1) == a.size(1) && to_b.size(0) == size.edges && to_c.size(0) == size.edges,
                          "edges read rows of ", a.sizes(), " and ", b.sizes(), " at ", to_a.sizes(), ", ", to_b.sizes(),
                          " and ", to_c.sizes());
        TORCH_CHECK_VALUE(heads > 0 && size.channels % heads == 0, size.channels, " channels in ", heads, " heads");
    }
    void third(const Tensor &c) const {
        TORCH_CHECK_VALUE(c.dim() == 2 && c.size(1) == size.channels, "edges multiply ", size.channels,
                          " channels by rows of ", c.sizes());
    }
    void factors(const Tensor &s) const {
        TORCH_CHECK_VALUE(s.dim() == 2 && s.size(0) == size.edges && s.size(1) == size.heads, size.edges, " edges with ",
                          size.heads, " heads have factors ", s.sizes());
    }
    template <typename T> static kernels::Factor<T> factor(const Rows &rows, const Tensor &index) {
        return {in<T>(rows.tensor), rows.stride(), rows.count, indices(index)};
    }
    template <typename T> kernels::Product<T> product(const Rows &a, const Rows &b, const Rows &c, const Tensor &s) const {
        return {factor<T>(a, to_a), factor<T>(b, to_b), factor<T>(c, to_c), in_if<T>(s)};
    }
    void check(int64_t edge, const Tensor &a, const Tensor &b, int64_t places) const {
        TORCH_CHECK_INDEX(edge < 0, "edge ", edge, " reads the rows ", indices(to_a)[edge], " of ", a.size(0), ", ",
                          indices(to_b)[edge], " of ", b.size(0), " and ", indices(to_c)[edge], " of ", places);
    }
};

static Tensor head_dot(const Tensor &a, const Tensor &b, const Tensor &c, const Tensor &to_a, const Tensor &to_b,
                       const Tensor &to_c, int64_t heads) {
    const HeadProduct of(a, b, to_a, to_b, to_c, heads);
    of.third(c);
    const Rows x(a), y(b), z(c);
    const Tensor s = at::empty({of.size.edges, heads}, a.options());
    of.check(typed(a, [&](auto zero) {
        using T = decltype(zero);
        return kernels::head_value<T>(of.size, of.product<T>(x, y, z, Tensor()), {nullptr, nullptr, nullptr, out<T>(s)});
    }), a, b, z.count);
    return s;
}

static Tensor head_sum(const Tensor &a, const Tensor &b, const Tensor &s, const Tensor &to_a, const Tensor &to_b,
                       const Tensor &to_c, int64_t places) {
    const HeadProduct of(a, b, to_a, to_b, to_c, s.size(1));
    of.factors(s);
    const Tensor c = at::empty({places, a.size(1)}, a.options()), factors = s.contiguous();
    const Rows x(a), y(b), z(c);
    of.check(typed(a, [&](auto zero) {
        using T = decltype(zero);
        return kernels::head_value<T>(of.size, of.product<T>(x, y, z, factors), {nullptr, nullptr, out<T>(c), nullptr});
    }), a, b, places);
    return c;
}

static std::tuple<Tensor, Tensor, Tensor> head_first(const Tensor &a, const Tensor &b, const Tensor &c, const Tensor &s,
                                                     const Tensor &to_a, const Tensor &to_b, const Tensor &to_c,
                                                     bool by_factors) {
    const HeadProduct of(a, b, to_a, to_b, to_c, s.size(1));
    of.third(c), of.factors(s);
    const Rows x(a), y(b), z(c);
    const Tensor factors = s.contiguous();
    const Tensor of_a = x.like(of.size.channels), of_b = y.like(of.size.channels);
    const Tensor last = by_factors ? empty(factors) : z.like(of.size.channels);
    of.check(typed(a, [&](auto zero) {
        using T = decltype(zero);
        T *const third = out<T>(last);
        return kernels::head_first<T>(of.size, of.product<T>(x, y, z, factors),
                                      {out<T>(of_a), out<T>(of_b), by_factors ? nullptr : third, by_factors ? third : nullptr});
    }), a, b, z.count);
    return {of_a, of_b, last};
}

static std::tuple<Tensor, Tensor, Tensor, Tensor>
head_second(const Tensor &a, const Tensor &b, const Tensor &c, const Tensor &s, const Tensor &ha, const Tensor &hb,
            const Tensor &last, const Tensor &to_a, const Tensor &to_b, const Tensor &to_c, bool by_factors) {
    const HeadProduct of(a, b, to_a, to_b, to_c, s.size(1));
    of.third(c), of.factors(s);
    TORCH_CHECK_VALUE(ha.sizes() == a.sizes() && hb.sizes() == b.sizes() && last.sizes() == (by_factors ? s : c).sizes(),
                      "rows of ", a.sizes(), ", ", b.sizes(), " and ", (by_factors ? s : c).sizes(), " got directions ",
                      ha.sizes(), ", ", hb.sizes(), " and ", last.sizes());
    const Rows x(a), y(b), z(c), hx(ha), hy(hb), hz(by_factors ? c : last);
    const Tensor factors = s.contiguous(), hs = by_factors ? last.contiguous() : Tensor();
    const int64_t channels = of.size.channels;
    const Tensor of_a = x.like(channels), of_b = y.like(channels), of_c = z.like(channels), of_s = empty(factors);
    of.check(typed(a, [&](auto zero) {
        using T = decltype(zero);
        return kernels::head_second<T>(of.size, of.product<T>(x, y, z, factors), of.product<T>(hx, hy, hz, hs),
                                       {out<T>(of_a), out<T>(of_b), out<T>(of_c), out<T>(of_s)});
    }), a, b, z.count);
    return {of_a, of_b, of_c, of_s};
}

// Chains of dense layers.

struct Chain {
    int64_t columns = 0, numbers = 0;
    DenseChain chain;

    Chain(int64_t rows, const Tensor &weights, const Optional &packed, at::IntArrayRef widths,
          at::IntArrayRef skips)
        : chain{rows, int64_t(skips.size()), at::get_num_threads(), widths.data(), skips.data()} {
        for (size_t l = 0; l < skips.size(); ++l) columns += widths[l + 1], numbers += (widths[l] + 1) * widths[l + 1];
        TORCH_CHECK_VALUE(weights.dim() == 1 && weights.size(0) == numbers, "a chain of the widths ", widths, " got weights ",
                          weights.sizes());
        if (!packed) return;
        const int64_t bytes = size_of_packed(weights);
        TORCH_CHECK_VALUE(packed->nbytes() == size_t(bytes), "a chain of the widths ", widths, " needs ", bytes,
                          " bytes of packed weights, got ", packed->nbytes(),
                          ": freeze the model in the precision, and on the machine, that it is used with");
        chain.packed = packed->const_data_ptr();
    }
    int64_t size_of_packed(const Tensor &weights) const {
        return typed(weights, [&](auto zero) {
            using T = decltype(zero);
            return kernels::dense_chain_pack<T>(chain, in<T>(weights), nullptr) * int64_t(sizeof(T));
        });
    }
    void check(const Tensor &tensor, int64_t width) const {
        TORCH_CHECK_VALUE(tensor.dim() == 2 && tensor.size(0) == chain.rows && tensor.size(1) == width, "a chain with ",
                          chain.rows, " rows of ", width, " got a tensor ", tensor.sizes());
    }
    void of_layers(const Tensor &tensor) const {
        TORCH_CHECK_VALUE(tensor.dim() == 1 && tensor.size(0) == chain.rows * columns, "a chain with ", chain.rows,
                          " rows, of ", columns, " in all layers, got a tensor ", tensor.sizes());
    }
    int64_t first() const { return chain.widths[0]; }
    int64_t last() const { return chain.widths[chain.layers]; }
};

// For products in both directions, as bytes: what a processor is quickest with.
static Tensor dense_chain_pack(const Tensor &weights, at::IntArrayRef widths) {
    const Tensor p = weights.contiguous();
    const std::vector<int64_t> skips(widths.size() - 1);
    const Chain chain(0, p, std::nullopt, widths, skips);
    Tensor packed = at::empty({chain.size_of_packed(p)}, p.options().dtype(at::kByte));
    typed(p, [&](auto zero) {
        using T = decltype(zero);
        kernels::dense_chain_pack<T>(chain.chain, in<T>(p), static_cast<T *>(packed.mutable_data_ptr()));
    });
    return packed;
}

static std::tuple<Tensor, Tensor> dense_chain_forward(const Tensor &x, const Tensor &weights,
                                                      const Optional &packed, at::IntArrayRef widths,
                                                      at::IntArrayRef skips) {
    const Tensor from = x.contiguous(), p = weights.contiguous();
    const Chain chain(x.size(0), p, packed, widths, skips);
    chain.check(x, chain.first());
    Tensor y = at::empty({x.size(0), chain.last()}, x.options()), z = at::empty({x.size(0) * chain.columns}, x.options());
    typed(x, [&](auto zero) {
        using T = decltype(zero);
        kernels::dense_chain_forward<T>(chain.chain, in<T>(from), in<T>(p), out<T>(y), out<T>(z));
    });
    return {y, z};
}

struct Back {
    const Tensor kept, p, by_y, by_z;
    const Chain chain;
    Tensor of_x;

    Back(const Tensor &z, const Tensor &weights, const Optional &packed, const Optional &g,
         const Optional &h, int64_t rows, at::IntArrayRef widths, at::IntArrayRef skips)
        : kept(z.contiguous()), p(weights.contiguous()), by_y(g ? g->contiguous() : Tensor()),
          by_z(h ? h->contiguous() : Tensor()), chain(rows, p, packed, widths, skips),
          of_x(at::empty({rows, chain.first()}, z.options())) {
        chain.of_layers(z);
        if (g) chain.check(*g, chain.last());
        if (h) chain.of_layers(*h);
    }
    void run(const Tensor &x, const Tensor &of_a, const Tensor &of_p) const {
        typed(kept, [&](auto zero) {
            using T = decltype(zero);
            const auto given = [](const Tensor &tensor) { return tensor.defined() ? in<T>(tensor) : nullptr; };
            const auto wanted = [](const Tensor &tensor) { return tensor.defined() ? out<T>(tensor) : nullptr; };
            kernels::dense_chain_backward<T>(chain.chain, given(x), in<T>(kept), in<T>(p), given(by_y), given(by_z),
                                             out<T>(of_x), wanted(of_a), wanted(of_p));
        });
    }
};

static std::tuple<Tensor, Tensor> dense_chain_backward(const Tensor &z, const Tensor &weights,
                                                       const Optional &packed, const Optional &g,
                                                       const Optional &h, int64_t rows, at::IntArrayRef widths,
                                                       at::IntArrayRef skips) {
    const Back back(z, weights, packed, g, h, rows, widths, skips);
    Tensor of_a = empty(z);
    back.run(Tensor(), of_a, Tensor());
    return {back.of_x, of_a};
}

static std::tuple<Tensor, Tensor> dense_chain_gradients(const Tensor &x, const Tensor &z, const Tensor &weights,
                                                        const Optional &g, const Optional &h,
                                                        at::IntArrayRef widths, at::IntArrayRef skips) {
    const Back back(z, weights, std::nullopt, g, h, x.size(0), widths, skips);
    back.chain.check(x, back.chain.first());
    Tensor of_p = empty(weights);
    back.run(x.contiguous(), Tensor(), of_p);
    return {back.of_x, of_p};
}

static std::tuple<Tensor, Tensor, Tensor> dense_chain_second(const Tensor &z, const Tensor &weights, const Tensor &by_a,
                                                             const Tensor &k, at::IntArrayRef widths, at::IntArrayRef skips) {
    const Tensor kept = z.contiguous(), p = weights.contiguous(), grad = by_a.contiguous(), along = k.contiguous();
    const Chain chain(k.size(0), p, std::nullopt, widths, skips);
    chain.of_layers(z), chain.of_layers(by_a), chain.check(k, chain.first());
    Tensor of_g = at::empty({k.size(0), chain.last()}, z.options()), of_z = empty(kept), of_p = empty(p);
    typed(z, [&](auto zero) {
        using T = decltype(zero);
        kernels::dense_chain_second<T>(chain.chain, in<T>(kept), in<T>(p), in<T>(grad), in<T>(along), out<T>(of_g),
                                       out<T>(of_z), out<T>(of_p));
    });
    return {of_g, of_z, of_p};
}

// Pairs.

static std::tuple<Tensor, Tensor> find_pairs(const Tensor &edge_index, const Tensor &edge_vec) {
    const Tensor index = edge_index.contiguous(), vec = edge_vec.contiguous();
    const int64_t edges = edge_index.size(1);
    Tensor first = at::empty({edges}, index.options()), of = at::empty({edges}, index.options());
    const int64_t count = typed(vec, [&](auto zero) {
        using T = decltype(zero);
        return kernels::find_pairs<T>(edges, indices(index), indices(index) + edges, in<T>(vec), out<int64_t>(first),
                             out<int64_t>(of));
    });
    if (count == 1)  // the compiler asks all the time whether a size is 1, and must know that it is not
        return {at::arange(edges, index.options()), at::arange(edges, index.options())};
    return {first.narrow(0, 0, count).clone(), of};
}

static Tensor find_returns(const Tensor &edge_index, const Tensor &edge_vec, int64_t num_atoms, double same) {
    const Tensor index = edge_index.contiguous(), vec = edge_vec.contiguous();
    const int64_t edges = edge_index.size(1), *ends = indices(index);
    for (int64_t n = 0; n < 2 * edges; ++n)
        TORCH_CHECK_INDEX(ends[n] >= 0 && ends[n] < num_atoms, "edge ", n % edges, " has the atom ", ends[n], " of ", num_atoms);
    Tensor of = at::empty({edges}, index.options());
    typed(vec, [&](auto zero) {
        using T = decltype(zero);
        kernels::find_returns<T>(edges, num_atoms, ends, ends + edges, in<T>(vec), T(same * same), out<int64_t>(of));
    });
    return of;
}

// Products of blocks of rows with a matrix each, or with one for each element.

struct Blocks {
    at::IntArrayRef rows, ins, outs;
    int64_t elements;

    Blocks(at::IntArrayRef rows, at::IntArrayRef ins, at::IntArrayRef outs, int64_t elements, bool by_element)
        : rows(rows), ins(ins), outs(outs), elements(elements) {
        TORCH_CHECK_VALUE(by_element || elements == 1, "matrices of ", elements, " elements, but not which atom has which");
        TORCH_CHECK_VALUE(rows.size() == ins.size() && rows.size() == outs.size(), "there are ", rows.size(),
                          " blocks of rows, ", ins.size(), " of channels, and ", outs.size(), " of outcomes");
    }
    int64_t width(at::IntArrayRef channels) const {
        return std::inner_product(rows.begin(), rows.end(), channels.begin(), int64_t(0));
    }
    int64_t weights() const { return elements * std::inner_product(ins.begin(), ins.end(), outs.begin(), int64_t(0)); }
};

static Tensor with_rows(const Tensor &x, const Tensor &like, int64_t atoms, int64_t width) {
    TORCH_CHECK_VALUE(x.dim() == 2 && x.size(0) == atoms && x.size(1) == width, "expected features of ", atoms, " x ",
                      width, ", got ", x.sizes());
    TORCH_CHECK_VALUE(x.scalar_type() == like.scalar_type(), "features are ", x.scalar_type(), " and ", like.scalar_type());
    return x.stride(1) == 1 && x.stride(0) >= std::max<int64_t>(width, 1) ? x : x.contiguous();
}

// A matrix in memory, row by row, or its transpose.
template <typename T> struct Matrix {
    const T *data;
    int64_t stride;
    bool transposed = false;
};

// PyTorch's BLAS, where it can be called. Numbers of 64 bits serve builds that read 32 of them as well.
#define BLAS_GEMM(name, T)                                                                                             \
    extern "C" __attribute__((weak)) void name(const char *, const char *, const int64_t *, const int64_t *,           \
                                               const int64_t *, const T *, const T *, const int64_t *, const T *,      \
                                               const int64_t *, const T *, T *, const int64_t *);                      \
    static auto *gemm_of(T) { return name; }
BLAS_GEMM(sgemm_, float)
BLAS_GEMM(dgemm_, double)

// c [m, n] = a [m, k] b [k, n], added to what is there or not.
template <typename T>
static void multiply(int64_t m, int64_t n, int64_t k, Matrix<T> a, Matrix<T> b, T *c, int64_t stride, bool add = false) {
    if (m == 0 || n == 0) return;
    if (k == 0) {
        if (!add)
            for (int64_t row = 0; row < m; ++row) std::fill_n(c + row * stride, n, T(0));
        return;
    }
    if (auto *gemm = gemm_of(T())) {  // which reads columns: cᵀ = bᵀ aᵀ
        const char of_a = a.transposed ? 'T' : 'N', of_b = b.transposed ? 'T' : 'N';
        const T one = 1, before = add;
        gemm(&of_b, &of_a, &n, &m, &k, &one, b.data, &b.stride, a.data, &a.stride, &before, c, &stride);
        return;
    }
    const auto tensor = [&](const T *data, int64_t rows, int64_t columns, int64_t step, bool transposed) {
        const auto strides = transposed ? std::array{int64_t(1), step} : std::array{step, int64_t(1)};
        return at::from_blob(const_cast<T *>(data), {rows, columns}, strides, at::CppTypeToScalarType<T>::value);
    };
    Tensor sum = tensor(c, m, n, stride, false);
    at::addmm_out(sum, sum, tensor(a.data, m, k, a.stride, a.transposed), tensor(b.data, k, n, b.stride, b.transposed), add);
}

struct ByElement {
    std::vector<int64_t> order;  // of the atoms, element after element
    std::vector<int64_t> first;  // place of each element's first atom; the last ones' element has no matrix
};

static ByElement by_element(int64_t atoms, const Tensor &index, int64_t elements) {
    TORCH_CHECK_VALUE(index.size(0) == atoms, "there are features of ", atoms, " atoms, but elements of ", index.size(0));
    const Tensor of = index.contiguous();
    const int64_t *element = indices(of);
    const auto group = [&](int64_t atom) { return element[atom] < 0 ? elements : element[atom]; };
    ByElement result{std::vector<int64_t>(atoms), std::vector<int64_t>(elements + 2)};
    for (int64_t atom = 0; atom < atoms; ++atom) {
        TORCH_CHECK_INDEX(element[atom] < elements, "atom ", atom, " has the matrix ", element[atom], " of ", elements);
        ++result.first[group(atom) + 1];
    }
    std::partial_sum(result.first.begin(), result.first.end(), result.first.begin());
    std::vector<int64_t> next = result.first;
    for (int64_t atom = 0; atom < atoms; ++atom) result.order[next[group(atom)]++] = atom;
    return result;
}

// Features block after block, each with its atoms in their order: what is at [atom, offset] is at [offset, atom].
template <typename T> static Tensor in_order(const Tensor &x, const ByElement &atoms, const Blocks &blocks, at::IntArrayRef channels) {
    const int64_t count = x.size(0);
    Tensor result = at::empty({x.numel()}, x.options());
    T *to = out<T>(result);
    for (size_t b = 0, offset = 0; b < blocks.rows.size(); ++b) {
        const int64_t width = blocks.rows[b] * channels[b];
        for (int64_t place = 0; place < count; ++place, to += width)
            std::copy_n(in<T>(x) + atoms.order[place] * x.stride(0) + offset, width, to);
        offset += width;
    }
    return result;
}

template <typename T> static void put_back(const T *from, const ByElement &atoms, const Blocks &blocks, at::IntArrayRef channels, Tensor &y) {
    for (size_t b = 0, offset = 0; b < blocks.rows.size(); ++b) {
        const int64_t width = blocks.rows[b] * channels[b];
        for (int64_t place = 0; place < y.size(0); ++place, from += width)
            std::copy_n(from, width, out<T>(y) + atoms.order[place] * y.stride(0) + offset);
        offset += width;
    }
}

static Tensor block_product(const Tensor &features, const Tensor &weight, const Optional &index,
                            at::IntArrayRef rows, at::IntArrayRef ins, at::IntArrayRef outs, int64_t elements,
                            bool transposed) {
    const Blocks blocks(rows, ins, outs, elements, index.has_value());
    const auto [from, to] = transposed ? std::pair(outs, ins) : std::pair(ins, outs);
    const int64_t atoms = features.size(0);
    const Tensor x = with_rows(features, weight, atoms, blocks.width(from)), matrices = weight.contiguous();
    TORCH_CHECK_VALUE(weight.numel() == blocks.weights(), "expected ", blocks.weights(), " weights, got ", weight.numel());
    Tensor y = at::empty({atoms, blocks.width(to)}, x.options());
    typed(x, [&, from = from, to = to](auto zero) {
        using T = decltype(zero);
        const T *w = in<T>(matrices);
        if (!index) {
            const T *a = in<T>(x);
            T *c = out<T>(y);
            for (size_t b = 0; b < rows.size(); w += ins[b] * outs[b], ++b)
                for (int64_t row = 0; row < rows[b]; ++row, a += from[b], c += to[b])
                    multiply<T>(atoms, to[b], from[b], {a, x.stride(0)}, {w, outs[b], transposed}, c, y.stride(0));
            return;
        }
        const ByElement sorted = by_element(atoms, *index, elements);
        const Tensor packed = in_order<T>(x, sorted, blocks, from), mixed = at::empty({y.numel()}, y.options());
        const T *a = in<T>(packed);
        T *c = out<T>(mixed);
        for (size_t b = 0; b < rows.size(); ++b) {
            for (int64_t e = 0; e < elements; ++e, w += ins[b] * outs[b]) {
                const int64_t count = rows[b] * (sorted.first[e + 1] - sorted.first[e]);
                multiply<T>(count, to[b], from[b], {a, from[b]}, {w, outs[b], transposed}, c, to[b]);
                a += count * from[b];
                c += count * to[b];
            }
            const int64_t unknown = rows[b] * (atoms - sorted.first[elements]);
            std::fill_n(c, unknown * to[b], std::numeric_limits<T>::quiet_NaN());
            a += unknown * from[b];
            c += unknown * to[b];
        }
        put_back(in<T>(mixed), sorted, blocks, to, y);
    });
    return y;
}

static Tensor block_outer(const Tensor &left, const Tensor &right, const Optional &index, at::IntArrayRef rows,
                          at::IntArrayRef ins, at::IntArrayRef outs, int64_t elements) {
    const Blocks blocks(rows, ins, outs, elements, index.has_value());
    const int64_t atoms = left.size(0);
    const Tensor x = with_rows(left, left, atoms, blocks.width(ins)), g = with_rows(right, left, atoms, blocks.width(outs));
    Tensor result = at::empty({blocks.weights()}, x.options());
    typed(x, [&](auto zero) {
        using T = decltype(zero);
        T *w = out<T>(result);
        if (!index) {
            const T *a = in<T>(x), *b = in<T>(g);
            for (size_t block = 0; block < rows.size(); w += ins[block] * outs[block], ++block)
                for (int64_t row = 0; row < rows[block]; ++row, a += ins[block], b += outs[block])
                    multiply<T>(ins[block], outs[block], atoms, {a, x.stride(0), true}, {b, g.stride(0)}, w, outs[block], row > 0);
            return;
        }
        const ByElement sorted = by_element(atoms, *index, elements);
        const Tensor packed_x = in_order<T>(x, sorted, blocks, ins), packed_g = in_order<T>(g, sorted, blocks, outs);
        const T *a = in<T>(packed_x), *b = in<T>(packed_g);
        for (size_t block = 0; block < rows.size(); ++block) {
            for (int64_t e = 0; e < elements; ++e, w += ins[block] * outs[block]) {
                const int64_t count = rows[block] * (sorted.first[e + 1] - sorted.first[e]);
                multiply<T>(ins[block], outs[block], count, {a, ins[block], true}, {b, outs[block]}, w, outs[block]);
                a += count * ins[block];
                b += count * outs[block];
            }
            const int64_t unknown = rows[block] * (atoms - sorted.first[elements]);
            a += unknown * ins[block];
            b += unknown * outs[block];
        }
    });
    return result;
}

// Dense layers.

template <typename T> static Matrix<T> matrix(const Rows &rows, bool transposed = false) {
    return {in<T>(rows.tensor), rows.stride(), transposed};
}

static Tensor linear_forward(const Tensor &x, const Tensor &w, const Optional &b) {
    TORCH_CHECK_VALUE(x.dim() && w.dim() == 2 && x.size(-1) == w.size(1) && (!b || b->numel() == w.size(0)), "a matrix ",
                      w.sizes(), " cannot multiply rows ", x.sizes(), " and add ", b ? b->sizes() : at::IntArrayRef());
    const Rows rows(x), weight(w);
    const Tensor y = rows.like(w.size(0)), bias = contiguous(b);
    const int64_t outs = w.size(0);
    typed(x, [&](auto zero) {
        using T = decltype(zero);
        if (b)
            for (int64_t n = 0; n < rows.count; ++n) std::copy_n(in<T>(bias), outs, out<T>(y) + n * outs);
        multiply<T>(rows.count, outs, rows.channels, matrix<T>(rows), matrix<T>(weight, true), out<T>(y), outs, bool(b));
    });
    return y;
}

static Tensor linear_back(const Tensor &g, const Tensor &w) {
    TORCH_CHECK_VALUE(g.dim() && w.dim() == 2 && g.size(-1) == w.size(0), "a matrix ", w.sizes(),
                      " cannot multiply gradients ", g.sizes());
    const Rows rows(g), weight(w);
    const Tensor x = rows.like(w.size(1));
    typed(g, [&](auto zero) {
        using T = decltype(zero);
        multiply<T>(rows.count, w.size(1), rows.channels, matrix<T>(rows), matrix<T>(weight), out<T>(x), w.size(1));
    });
    return x;
}

static Tensor linear_outer(const Tensor &g, const Tensor &x) {
    TORCH_CHECK_VALUE(g.dim() && g.dim() == x.dim() && g.sizes().slice(0, g.dim() - 1) == x.sizes().slice(0, x.dim() - 1),
                      "gradients ", g.sizes(), " do not belong to rows ", x.sizes());
    const Rows left(g), right(x);
    const int64_t outs = left.channels, ins = right.channels;
    const Tensor w = at::empty({outs, ins}, g.options());
    typed(g, [&](auto zero) {
        using T = decltype(zero);
        multiply<T>(outs, ins, left.count, matrix<T>(left, true), matrix<T>(right), out<T>(w), ins);
    });
    return w;
}

// Normalisation of rows.

static Rows2d rows_of(const Tensor &x, const Tensor &w, const Tensor &like) {
    TORCH_CHECK_VALUE(x.dim() && w.dim() == 1 && x.size(-1) == w.size(0) && like.size(-1) == w.size(0),
                      "rows of ", w.sizes(), " channels are normalised, got ", x.sizes(), " and ", like.sizes());
    return {x.size(-1) ? x.numel() / x.size(-1) : 0, x.size(-1), at::get_num_threads()};
}

static Tensor layer_norm_forward(const Tensor &x, const Tensor &w, const Tensor &b, double eps) {
    const Tensor from = x.contiguous(), weight = w.contiguous(), bias = b.contiguous(), y = empty(from);
    typed(x, [&](auto zero) {
        using T = decltype(zero);
        kernels::layer_norm_forward<T>(rows_of(x, w, b), T(eps), in<T>(from), in<T>(weight), in<T>(bias), out<T>(y));
    });
    return y;
}

static std::tuple<Tensor, Tensor> layer_norm_backward(const Tensor &x, const Tensor &w, const Tensor &g, double eps,
                                                      bool weights) {
    const Tensor from = x.contiguous(), weight = w.contiguous(), grad = g.contiguous(), of_x = empty(from);
    const Tensor of_weights = at::empty({weights ? 2 : 0, w.size(0)}, w.options());
    typed(x, [&](auto zero) {
        using T = decltype(zero);
        kernels::layer_norm_backward<T>(rows_of(x, w, g), T(eps), in<T>(from), in<T>(weight), in<T>(grad), out<T>(of_x),
                                        weights ? out<T>(of_weights) : nullptr);
    });
    return {of_x, of_weights};
}

static std::tuple<Tensor, Tensor, Tensor> layer_norm_second(const Tensor &x, const Tensor &w, const Tensor &g, const Tensor &h,
                                                            double eps) {
    const Tensor from = x.contiguous(), weight = w.contiguous(), grad = g.contiguous(), by = h.contiguous();
    const Tensor of_x = empty(from), of_w = empty(weight), of_g = empty(grad);
    typed(x, [&](auto zero) {
        using T = decltype(zero);
        kernels::layer_norm_second<T>(rows_of(x, w, g), T(eps), in<T>(from), in<T>(weight), in<T>(grad), in<T>(by), out<T>(of_x),
                                      out<T>(of_w), out<T>(of_g));
    });
    return {of_x, of_w, of_g};
}

// What scalars and vectors send each other.

static Exchange exchanged(const Tensor &o, const Tensor &x) {
    TORCH_CHECK_VALUE(o.dim() == 2 && x.dim() == 3 && o.size(0) == x.size(0) && o.size(1) == x.size(2) && o.size(1) % 3 == 0,
                      "three scalars and three vectors a channel are exchanged, got ", o.sizes(), " and ", x.sizes());
    return {x.size(0), x.size(1), x.size(2) / 3, at::get_num_threads()};
}

static Exchange exchanged(const Tensor &o, const Tensor &x, const Tensor &g, const Tensor &h) {
    const Exchange size = exchanged(o, x);
    TORCH_CHECK_VALUE(g.sizes() == at::IntArrayRef({size.rows, size.channels}) &&
                          h.sizes() == at::IntArrayRef({size.rows, size.components, size.channels}), "scalars ",
                      o.sizes(), " and vectors ", x.sizes(), " got gradients ", g.sizes(), " and ", h.sizes());
    return size;
}

static std::tuple<Tensor, Tensor> exchange_forward(const Tensor &scalars, const Tensor &vectors) {
    const Exchange size = exchanged(scalars, vectors);
    const Tensor o = scalars.contiguous(), x = vectors.contiguous();
    const Tensor s = at::empty({size.rows, size.channels}, o.options());
    const Tensor w = at::empty({size.rows, size.components, size.channels}, o.options());
    typed(o, [&](auto zero) {
        using T = decltype(zero);
        kernels::exchange_forward<T>(size, in<T>(o), in<T>(x), out<T>(s), out<T>(w));
    });
    return {s, w};
}

static std::tuple<Tensor, Tensor> exchange_backward(const Tensor &scalars, const Tensor &vectors, const Tensor &of_s,
                                                    const Tensor &of_w) {
    const Exchange size = exchanged(scalars, vectors, of_s, of_w);
    const Tensor o = scalars.contiguous(), x = vectors.contiguous(), g = of_s.contiguous(), h = of_w.contiguous();
    const Tensor of_o = empty(o), of_x = empty(x);
    typed(o, [&](auto zero) {
        using T = decltype(zero);
        kernels::exchange_backward<T>(size, in<T>(o), in<T>(x), in<T>(g), in<T>(h), out<T>(of_o), out<T>(of_x));
    });
    return {of_o, of_x};
}

static std::tuple<Tensor, Tensor, Tensor, Tensor> exchange_second(const Tensor &scalars, const Tensor &vectors,
                                                                  const Tensor &of_s, const Tensor &of_w,
                                                                  const Tensor &by_o, const Tensor &by_x) {
    const Exchange size = exchanged(scalars, vectors, of_s, of_w);
    TORCH_CHECK_VALUE(by_o.sizes() == scalars.sizes() && by_x.sizes() == vectors.sizes(), "scalars ", scalars.sizes(),
                      " and vectors ", vectors.sizes(), " got directions ", by_o.sizes(), " and ", by_x.sizes());
    const Tensor o = scalars.contiguous(), x = vectors.contiguous(), g = of_s.contiguous(), h = of_w.contiguous();
    const Tensor p = by_o.contiguous(), q = by_x.contiguous();
    const Tensor of_o = empty(o), of_x = empty(x), of_g = empty(g), of_h = empty(h);
    typed(o, [&](auto zero) {
        using T = decltype(zero);
        kernels::exchange_second<T>(size, in<T>(o), in<T>(x), in<T>(g), in<T>(h), in<T>(p), in<T>(q), out<T>(of_o),
                                    out<T>(of_x), out<T>(of_g), out<T>(of_h));
    });
    return {of_o, of_x, of_g, of_h};
}

// Products of rejections.

struct Rejected {
    const Tensor x, y, source, target;
    Rejection size;

    Rejected(const Tensor &tensors, const Tensor &sh, const Tensor &from, const Tensor &to)
        : x(tensors.contiguous()), y(sh.contiguous()), source(from.contiguous()), target(to.contiguous()),
          size{from.size(0), x.size(0), x.size(1), x.size(-1) / 2, at::get_num_threads(), indices(source), indices(target)} {
        TORCH_CHECK_VALUE(x.dim() == 3 && x.size(2) % 2 == 0 && to.size(0) == size.edges &&
                              y.sizes() == at::IntArrayRef({size.edges, size.components}), "edges from ", from.sizes(),
                          " to ", to.sizes(), " with ", y.sizes(), " components read tensors ", x.sizes());
    }
    Tensor gradients(const Tensor &g) const {
        TORCH_CHECK_VALUE(g.sizes() == at::IntArrayRef({size.edges, size.channels}), size.edges, " edges with ",
                          size.channels, " channels got gradients ", g.sizes());
        return g.contiguous();
    }
    void check(int64_t edge) const {
        TORCH_CHECK_INDEX(edge < 0, "edge ", edge, " has the atoms ", size.source[edge], " and ", size.target[edge], " of ",
                          size.nodes);
    }
};

static Tensor rejection_forward(const Tensor &x, const Tensor &y, const Tensor &source, const Tensor &target) {
    const Rejected of(x, y, source, target);
    const Tensor result = at::empty({of.size.edges, of.size.channels}, x.options());
    of.check(typed(x, [&](auto zero) {
        using T = decltype(zero);
        return kernels::rejection_forward<T>(of.size, in<T>(of.x), in<T>(of.y), out<T>(result));
    }));
    return result;
}

static std::tuple<Tensor, Tensor> rejection_backward(const Tensor &x, const Tensor &y, const Tensor &g, const Tensor &source,
                                                     const Tensor &target) {
    const Rejected of(x, y, source, target);
    const Tensor grad = of.gradients(g), of_x = empty(of.x), of_y = empty(of.y);
    of.check(typed(x, [&](auto zero) {
        using T = decltype(zero);
        return kernels::rejection_backward<T>(of.size, in<T>(of.x), in<T>(of.y), in<T>(grad), out<T>(of_x), out<T>(of_y));
    }));
    return {of_x, of_y};
}

static std::tuple<Tensor, Tensor, Tensor> rejection_second(const Tensor &x, const Tensor &y, const Tensor &g, const Tensor &hx,
                                                           const Tensor &hy, const Tensor &source, const Tensor &target) {
    const Rejected of(x, y, source, target);
    TORCH_CHECK_VALUE(hx.sizes() == x.sizes() && hy.sizes() == y.sizes(), "tensors ", x.sizes(), " and components ", y.sizes(),
                      " got directions ", hx.sizes(), " and ", hy.sizes());
    const Tensor grad = of.gradients(g), by_x = hx.contiguous(), by_y = hy.contiguous();
    const Tensor of_x = empty(of.x), of_y = empty(of.y), of_g = empty(grad);
    of.check(typed(x, [&](auto zero) {
        using T = decltype(zero);
        return kernels::rejection_second<T>(of.size, in<T>(of.x), in<T>(of.y), in<T>(grad), in<T>(by_x), in<T>(by_y),
                                            out<T>(of_x), out<T>(of_y), out<T>(of_g));
    }));
    return {of_x, of_y, of_g};
}

// Polynomials.

struct Weighted {
    const Tensor x, w, factors, row, sums;
    Polynomials size;

    Weighted(const Tensor &components, const Tensor &weights, const Tensor &pairs, const Tensor &rows, const Tensor &table,
             int64_t outcomes)
        : x(components.contiguous()), w(weights.contiguous()), factors(pairs.contiguous()), row(rows.contiguous()),
          sums(table.contiguous()),
          size{x.size(0), x.size(2), x.size(1), w.size(1), outcomes, factors.size(0), row.size(1), at::get_num_threads(),
               indices(factors), indices(row), indices(row) + row.size(1), indices(row) + 2 * row.size(1)} {
        const int64_t count = 1 + *std::max_element(size.weight, size.weight + size.rows);
        TORCH_CHECK_VALUE(size.values() == sums.size(1) && count <= size.weights && x.size(0) == w.size(0) &&
                              x.size(2) == w.size(2), "polynomials of ", sums.size(1) - 1 - size.products, " components with ",
                          count, " weights got components ", x.sizes(), " and weights ", w.sizes());
    }
    Tensor gradients(const Tensor &g) const {
        TORCH_CHECK_VALUE(g.sizes() == at::IntArrayRef({size.atoms, size.outcomes, size.channels}), size.outcomes,
                          " polynomials of components ", x.sizes(), " got gradients ", g.sizes());
        return g.contiguous();
    }
    Tensor by_weights(bool wanted) const { return wanted ? empty(w) : at::empty({0}, w.options()); }
};

static Tensor polynomials_forward(const Tensor &x, const Tensor &w, const Tensor &factors, const Tensor &row,
                                  const Tensor &sums, at::IntArrayRef, int64_t outcomes) {
    const Weighted of(x, w, factors, row, sums, outcomes);
    const Tensor y = at::empty({of.size.atoms, outcomes, of.size.channels}, x.options());
    typed(x, [&](auto zero) {
        using T = decltype(zero);
        kernels::polynomials_forward<T>(of.size, in<T>(of.x), in<T>(of.w), in<T>(of.sums), out<T>(y));
    });
    return y;
}

static std::tuple<Tensor, Tensor> polynomials_backward(const Tensor &x, const Tensor &w, const Tensor &g, const Tensor &factors,
                                                       const Tensor &row, const Tensor &sums, at::IntArrayRef,
                                                       int64_t outcomes, bool weights) {
    const Weighted of(x, w, factors, row, sums, outcomes);
    const Tensor grad = of.gradients(g), of_x = empty(of.x), of_w = of.by_weights(weights);
    typed(x, [&](auto zero) {
        using T = decltype(zero);
        kernels::polynomials_backward<T>(of.size, in<T>(of.x), in<T>(of.w), in<T>(of.sums), in<T>(grad), out<T>(of_x),
                                         out_if<T>(of_w));
    });
    return {of_x, of_w};
}

static std::tuple<Tensor, Tensor, Tensor> polynomials_second(const Tensor &x, const Tensor &w, const Tensor &g,
                                                             const Optional &hx, const Optional &hw, const Tensor &factors,
                                                             const Tensor &row, const Tensor &sums, at::IntArrayRef,
                                                             int64_t outcomes, bool weights) {
    const Weighted of(x, w, factors, row, sums, outcomes);
    const Tensor grad = of.gradients(g), along_x = contiguous(hx), along_w = contiguous(hw);
    TORCH_CHECK_VALUE((!hx || hx->sizes() == x.sizes()) && (!hw || hw->sizes() == w.sizes()), "polynomials of components ",
                      x.sizes(), " with weights ", w.sizes(), " got directions of other shapes");
    const Tensor of_x = empty(of.x), of_w = of.by_weights(weights), of_g = empty(grad);
    typed(x, [&](auto zero) {
        using T = decltype(zero);
        kernels::polynomials_second<T>(of.size, in<T>(of.x), in<T>(of.w), in<T>(of.sums), in<T>(grad), in_if<T>(along_x),
                                       in_if<T>(along_w), out<T>(of_x), out_if<T>(of_w), out<T>(of_g));
    });
    return {of_x, of_w, of_g};
}

// Each under two names: without the underscore it has derivatives.
TORCH_LIBRARY_IMPL(pyg_equivariant, CPU, m) {
    for (const std::string prefix : {"", "_"}) {
        const auto both = [&](const char *name, auto function) { m.impl((prefix + name).c_str(), function); };
        both("edge_sum_forward", TORCH_FN(edge_sum_forward));
        both("edge_sum_backward", TORCH_FN(edge_sum_backward));
        both("edge_sum_second", TORCH_FN(edge_sum_second));
        both("interpolation_polynomials", TORCH_FN(interpolation_polynomials));
        both("interpolation_read", TORCH_FN(interpolation_read));
        both("interpolation_put", TORCH_FN(interpolation_put));
        both("interpolation_dot", TORCH_FN(interpolation_dot));
        both("chebyshev_series", TORCH_FN(chebyshev_series));
        both("harmonics_forward", TORCH_FN(harmonics_forward));
        both("harmonics_backward", TORCH_FN(harmonics_backward));
        both("harmonics_second", TORCH_FN(harmonics_second));
        both("harmonic_to_atoms", TORCH_FN(harmonic_to_atoms));
        both("harmonic_to_edges", TORCH_FN(harmonic_to_edges));
        both("harmonic_dot", TORCH_FN(harmonic_dot));
        both("head_sum", TORCH_FN(head_sum));
        both("head_dot", TORCH_FN(head_dot));
        both("head_first", TORCH_FN(head_first));
        both("head_second", TORCH_FN(head_second));
        both("product_to_atoms", TORCH_FN(product_to_atoms));
        both("product_backward", TORCH_FN(product_backward));
        both("product_second", TORCH_FN(product_second));
        if (prefix.empty()) m.impl("dense_chain_pack", TORCH_FN(dense_chain_pack));
        both("dense_chain_forward", TORCH_FN(dense_chain_forward));
        both("dense_chain_backward", TORCH_FN(dense_chain_backward));
        both("dense_chain_gradients", TORCH_FN(dense_chain_gradients));
        both("dense_chain_second", TORCH_FN(dense_chain_second));
        both("linear_forward", TORCH_FN(linear_forward));
        both("linear_back", TORCH_FN(linear_back));
        both("linear_outer", TORCH_FN(linear_outer));
        both("layer_norm_forward", TORCH_FN(layer_norm_forward));
        both("layer_norm_backward", TORCH_FN(layer_norm_backward));
        both("layer_norm_second", TORCH_FN(layer_norm_second));
        both("exchange_forward", TORCH_FN(exchange_forward));
        both("exchange_backward", TORCH_FN(exchange_backward));
        both("exchange_second", TORCH_FN(exchange_second));
        both("rejection_forward", TORCH_FN(rejection_forward));
        both("rejection_backward", TORCH_FN(rejection_backward));
        both("rejection_second", TORCH_FN(rejection_second));
        both("polynomials_forward", TORCH_FN(polynomials_forward));
        both("polynomials_backward", TORCH_FN(polynomials_backward));
        both("polynomials_second", TORCH_FN(polynomials_second));
        both("find_pairs", TORCH_FN(find_pairs));
        both("find_returns", TORCH_FN(find_returns));
        both("block_product", TORCH_FN(block_product));
        both("block_outer", TORCH_FN(block_outer));
    }
}
TORCH_LIBRARY_IMPL(pyg_equivariant, CompositeExplicitAutograd, m) { m.impl("edge_sum_terms", TORCH_FN(edge_sum_terms)); }
