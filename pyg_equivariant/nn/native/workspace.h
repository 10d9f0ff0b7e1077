// Memory that kernels work in.

#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

namespace kernels {

// Memory that a thread keeps from one operation to the next. What is taken while a Workspace lives is free after it.
class Workspace {
    struct alignas(64) Line {
        char bytes[64];
    };
    struct Chunk {
        std::unique_ptr<Line[]> lines;
        int64_t size;
    };
    struct Pool {
        std::vector<Chunk> chunks;
        size_t chunk = 0;
        int64_t used = 0;
    };
    static Pool &pool() {
        static thread_local Pool pool;
        return pool;
    }
    const size_t chunk = pool().chunk;
    const int64_t used = pool().used;

public:
    Workspace() = default;
    Workspace(const Workspace &) = delete;
    ~Workspace() { pool().chunk = chunk, pool().used = used; }
    // Numbers that begin where vectors do.
    template <typename T> static T *take(int64_t size) {
        Pool &all = pool();
        const int64_t lines = int64_t((size * sizeof(T) + sizeof(Line) - 1) / sizeof(Line));
        while (all.chunk < all.chunks.size() && all.used + lines > all.chunks[all.chunk].size) ++all.chunk, all.used = 0;
        if (all.chunk == all.chunks.size()) {
            const int64_t most = std::max(lines, int64_t(1 << 15));
            all.chunks.push_back({std::unique_ptr<Line[]>(new Line[most]), most});
        }
        all.used += lines;
        return reinterpret_cast<T *>(all.chunks[all.chunk].lines.get() + all.used - lines);
    }
};

}  // namespace kernels
