// Elementwise passes of optimizer steps on a CPU, float32: what SCALE, SinkGD and GWT do between a gradient and a
// weight, with each row in the cache from its first use to its last.
//
// A matrix is cut into blocks of rows that depend on its shape alone, and sums over rows are added up block by
// block in their order, so that the number of threads changes no bit. Rows may lie apart (W_row, G_row entries
// from one to the next); moments are contiguous.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct Matrix {  // lowrise.linalg.passes._Matrix
    float* W;
    const float* G;
    float* M;
    float* V;
    float* r;  // (m,): scales of rows
    float* c;  // (n,): of columns
    int64_t m, n, W_row, G_row;
};

typedef float floats __attribute__((vector_size(64)));
constexpr int64_t LANES = 16, ROWS = 4;

floats load(const float* x) {
    floats v;
    memcpy(&v, x, sizeof v);
    return v;
}

float total(floats v) {
    for (int64_t half = LANES / 2; half; half /= 2)
        for (int64_t i = 0; i < half; i++) v[i] += v[i + half];
    return v[0];
}

// Of term(j), j below n, which is a vector of the entries from j on or, at the end, one entry.
template <class Vector, class Entry>
float summed(int64_t n, Vector vector, Entry entry) {
    floats a = {}, b = {}, c = {}, d = {};  // one chain of additions would wait for each
    int64_t j = 0;
    for (; j + 4 * LANES <= n; j += 4 * LANES) {
        a += vector(j);
        b += vector(j + LANES);
        c += vector(j + 2 * LANES);
        d += vector(j + 3 * LANES);
    }
    for (; j + LANES <= n; j += LANES) a += vector(j);
    float sum = total((a + b) + (c + d));
    for (; j < n; j++) sum += entry(j);
    return sum;
}

float squares(const float* x, int64_t n) {
    return summed(
        n, [=](int64_t j) { floats v = load(x + j); return v * v; }, [=](int64_t j) { return x[j] * x[j]; });
}

// Rows of a block: at most 64 blocks, whose sums of columns are kept apart until they are added.
int64_t block_rows(int64_t m) { return std::max<int64_t>(16, (m + 63) / 64); }

int64_t blocks_of(int64_t m) { return (m + block_rows(m) - 1) / block_rows(m); }

struct Rows {
    int64_t first, end;
};

Rows rows_of(int64_t m, int64_t block) {
    int64_t rows = block_rows(m);
    return {block * rows, std::min(m, (block + 1) * rows)};
}

// work(matrix, block) for every block of every matrix.
template <class Work>
void for_blocks(Matrix* matrices, int64_t count, int64_t threads, Work work) {
    std::vector<int64_t> ends(count);
    int64_t blocks = 0;
    for (int64_t i = 0; i < count; i++) ends[i] = blocks += blocks_of(matrices[i].m);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t task = 0; task < blocks; task++) {
        int64_t i = std::upper_bound(ends.begin(), ends.end(), task) - ends.begin();
        work(i, matrices[i], task - (i ? ends[i - 1] : 0));
    }
}

// sums (n,): of each column over all blocks, in their order.
void add_up(const float* parts, int64_t blocks, int64_t n, float* __restrict sums) {
    memcpy(sums, parts, n * sizeof(float));
    for (int64_t b = 1; b < blocks; b++)
        for (int64_t j = 0; j < n; j++) sums[j] += parts[b * n + j];
}

// A NaN stays one.
float at_least(float x, float least) { return x < least ? least : x; }

// Of absolute values, as words: they have the order of the numbers, with NaN above all.
uint32_t largest_of(const Matrix& x, Rows rows) {
    uint32_t most = 0;
    for (int64_t i = rows.first; i < rows.end; i++) {
        const uint32_t* words = (const uint32_t*)(x.G + i * x.G_row);
        for (int64_t j = 0; j < x.n; j++) most = std::max(most, words[j] & 0x7fffffffu);
    }
    return most;
}

// The scale that brings a mean square to 1, squared; 0 for a line that counts as zero.
float scale_squared(float mean, float guard) { return mean <= guard ? 0 : 1 / mean; }

// Rows i .. i + K of S = (G inv)^2: their scales from those of the columns, then their part in the columns' sums.
template <int64_t K>
void sinkhorn_rows(const Matrix& x, int64_t i, float inv, float guard, bool rows, bool columns,
                   float* __restrict sums) {
    const float *g[K], *c = x.c;
    float r[K];
    for (int64_t k = 0; k < K; k++) {
        const float* row = g[k] = x.G + (i + k) * x.G_row;
        if (rows) {
            float sum = summed(
                x.n, [=](int64_t j) { floats v = load(row + j) * inv; return v * v * load(c + j); },
                [=](int64_t j) { return row[j] * inv * (row[j] * inv) * c[j]; });
            x.r[i + k] = scale_squared(sum / x.n, guard);
        }
        r[k] = x.r[i + k];
    }
    if (columns)
        for (int64_t j = 0; j < x.n; j++) {
            float sum = sums[j];
            for (int64_t k = 0; k < K; k++) sum += g[k][j] * inv * (g[k][j] * inv) * r[k];
            sums[j] = sum;
        }
}

// Sums of blocks of 2^level columns of a row, pair by pair, the last block filled up with zeros. They lie in one of
// two halves of `room` (n + 2 entries), or are the row itself.
const float* sums_of_row(const float* row, int64_t n, int64_t level, float* room) {
    float* halves[] = {room, room + n / 2 + 1};
    for (int64_t l = 0; l < level; l++) {
        float* __restrict sums = halves[l % 2];
        for (int64_t j = 0; j < n / 2; j++) sums[j] = row[2 * j] + row[2 * j + 1];
        if (n % 2) sums[n / 2] = row[n - 1];
        row = sums, n = (n + 1) / 2;
    }
    return row;
}

// Adam's moments of approximations, sums times `unit`, and N = M / (sqrt(V) + eps).
void moments_of_row(const float* __restrict sums, int64_t K, float unit, float part1, float b2, float part2,
                    float eps, float* __restrict M, float* __restrict V, float* __restrict N) {
    for (int64_t j = 0; j < K; j++) {
        float A = sums[j] * unit;
        M[j] += part1 * (A - M[j]);
        V[j] = b2 * V[j] + part2 * (A * A);
        N[j] = M[j] / (std::sqrt(V[j]) + eps);
    }
}

// Of each block of w columns: its mean, the factor of what is off the mean, and what is added.
void terms_of_row(const float* __restrict sums, const float* __restrict M, const float* __restrict V, int64_t K,
                  float w, float detail, float approximation, float eps, float* __restrict mean,
                  float* __restrict factor, float* __restrict constant) {
    for (int64_t j = 0; j < K; j++) {
        float inverse = 1 / (std::sqrt(V[j]) + eps);
        mean[j] = sums[j] / w;
        factor[j] = detail * inverse;
        constant[j] = approximation * M[j] * inverse;
    }
}

// w <- keep w - ((g - mean) factor + constant) on blocks of W columns, a vector each.
template <int64_t W>
void update_blocks(float* w, const float* g, int64_t blocks, const float* mean, const float* factor,
                   const float* constant, float keep) {
    typedef float block __attribute__((vector_size(4 * W)));
    for (int64_t j = 0; j < blocks; j++) {
        block to, from;
        memcpy(&to, w + j * W, sizeof to);
        memcpy(&from, g + j * W, sizeof from);
        to = to * keep - ((from - mean[j]) * factor[j] + constant[j]);
        memcpy(w + j * W, &to, sizeof to);
    }
}

}  // namespace

extern "C" {

// W <- keep W - r_i G_ij c_j
void scaled_update(Matrix* matrices, int64_t count, int64_t threads, float keep) {
    for_blocks(matrices, count, threads, [=](int64_t, const Matrix& x, int64_t block) {
        Rows rows = rows_of(x.m, block);
        for (int64_t i = rows.first; i < rows.end; i++) {
            float *__restrict w = x.W + i * x.W_row, r = x.r[i];
            const float *g = x.G + i * x.G_row, *c = x.c;
            for (int64_t j = 0; j < x.n; j++) w[j] = keep * w[j] - g[j] * r * c[j];
        }
    });
}

// SCALE by rows: M <- M + part (G - M) and M for G, where there is M; W <- keep W - rate G / max(RMS of row, eps)
void normalized_rows(Matrix* matrices, int64_t count, int64_t threads, float part, float eps, float rate, float keep) {
    for_blocks(matrices, count, threads, [=](int64_t, const Matrix& x, int64_t block) {
        Rows rows = rows_of(x.m, block);
        for (int64_t i = rows.first; i < rows.end; i++) {
            float* __restrict w = x.W + i * x.W_row;
            const float* g = x.G + i * x.G_row;
            if (x.M) {
                float* __restrict M = x.M + i * x.n;
                for (int64_t j = 0; j < x.n; j++) M[j] += part * (g[j] - M[j]);
                g = M;
            }
            float scale = rate / at_least(std::sqrt(squares(g, x.n) / x.n), eps);
            for (int64_t j = 0; j < x.n; j++) w[j] = keep * w[j] - scale * g[j];
        }
    });
}

// SCALE by columns: W <- keep W - rate G / max(RMS of column, eps)
void normalized_columns(Matrix* matrices, int64_t count, int64_t threads, float eps, float rate, float keep) {
    for (int64_t k = 0; k < count; k++) {
        Matrix x = matrices[k];
        int64_t blocks = blocks_of(x.m);
        std::vector<float> parts(blocks * x.n), scales(x.n), ones(x.m, 1.0f);
        for_blocks(&x, 1, threads, [&](int64_t, const Matrix&, int64_t block) {
            Rows rows = rows_of(x.m, block);
            float* __restrict sums = parts.data() + block * x.n;
            for (int64_t i = rows.first; i < rows.end; i++) {
                const float* g = x.G + i * x.G_row;
                for (int64_t j = 0; j < x.n; j++) sums[j] += g[j] * g[j];
            }
        });
        add_up(parts.data(), blocks, x.n, scales.data());
        for (float& s : scales) s = rate / at_least(std::sqrt(s / x.m), eps);
        x.r = ones.data(), x.c = scales.data();
        scaled_update(&x, 1, threads, keep);
    }
}

// r and c of square-root Sinkhorn (lowrise.linalg.sinkhorn), for S = (G / max|G|)^2 by way of r^2 and c^2.
void sinkhorn(Matrix* matrices, int64_t count, int64_t threads, int64_t iters, int64_t rows_first, float guard) {
    for (int64_t k = 0; k < count; k++) {
        Matrix x = matrices[k];
        int64_t blocks = blocks_of(x.m);
        std::vector<float> parts(blocks * x.n);
        std::vector<uint32_t> most(blocks);
        for_blocks(&x, 1, threads,
                   [&](int64_t, const Matrix&, int64_t block) { most[block] = largest_of(x, rows_of(x.m, block)); });
        float largest;
        memcpy(&largest, &*std::max_element(most.begin(), most.end()), sizeof largest);
        largest = at_least(largest, FLT_MIN);
        float inv = 1 / largest;
        std::fill(x.c, x.c + x.n, 1.0f);
        std::fill(x.r, x.r + x.m, 1.0f);
        // One pass does rows and then columns; if the columns come first, half a pass more does them alone.
        int64_t passes = iters + !rows_first;
        for (int64_t pass = 0; pass < passes; pass++) {
            bool rows_too = rows_first || pass, columns_too = rows_first || pass < iters;
            for_blocks(&x, 1, threads, [&](int64_t, const Matrix&, int64_t block) {
                Rows rows = rows_of(x.m, block);
                float* sums = parts.data() + block * x.n;
                memset(sums, 0, x.n * sizeof(float));
                int64_t i = rows.first;
                for (; i + ROWS <= rows.end; i += ROWS)
                    sinkhorn_rows<ROWS>(x, i, inv, guard, rows_too, columns_too, sums);
                for (; i < rows.end; i++) sinkhorn_rows<1>(x, i, inv, guard, rows_too, columns_too, sums);
            });
            if (columns_too) {
                add_up(parts.data(), blocks, x.n, x.c);
                for (int64_t j = 0; j < x.n; j++) x.c[j] = scale_squared(x.c[j] / x.m, guard);
            }
        }
        for (int64_t i = 0; i < x.m; i++) x.r[i] = std::min(std::sqrt(x.r[i]) / largest, FLT_MAX);
        for (int64_t j = 0; j < x.n; j++) x.c[j] = std::sqrt(x.c[j]);
    }
}

// GWT: the moments (m x K) of the approximations of w = 2^level columns; norms[k] <- ||M / (sqrt(V) + eps)||_F.
void haar_moments(Matrix* matrices, int64_t count, int64_t threads, int64_t level, double b1, double b2, float eps,
                  float* norms) {
    int64_t w = int64_t(1) << level;
    float unit = std::pow(2.0, -0.5 * level), part1 = 1 - b1, keep2 = b2, part2 = 1 - b2;  // 1 - b2 is small
    std::vector<std::vector<float>> parts(count);
    for (int64_t k = 0; k < count; k++) parts[k].resize(blocks_of(matrices[k].m));
    for_blocks(matrices, count, threads, [&](int64_t k, const Matrix& x, int64_t block) {
        int64_t K = (x.n + w - 1) / w;
        std::vector<float> room(x.n + 2), row(K);
        float* N = row.data();
        Rows rows = rows_of(x.m, block);
        float square = 0;
        for (int64_t i = rows.first; i < rows.end; i++) {
            const float* sums = sums_of_row(x.G + i * x.G_row, x.n, level, room.data());
            moments_of_row(sums, K, unit, part1, keep2, part2, eps, x.M + i * K, x.V + i * K, N);
            square += squares(N, K);
        }
        parts[k][block] = square;
    });
    for (int64_t k = 0; k < count; k++) {
        double square = 0;
        for (float part : parts[k]) square += part;
        norms[k] = std::sqrt(square);
    }
}

// GWT: W <- keep W - ((G - mean of its block) detail_k / E + approximation_k M / E) with E = sqrt(V) + eps.
void haar_update(Matrix* matrices, int64_t count, int64_t threads, int64_t level, float eps, const float* detail,
                 const float* approximation, float keep) {
    int64_t w = int64_t(1) << level;
    for_blocks(matrices, count, threads, [=](int64_t k, const Matrix& x, int64_t block) {
        int64_t K = (x.n + w - 1) / w, full = x.n / w;
        std::vector<float> room(x.n + 2), row(3 * K);
        float *mean = row.data(), *factor = mean + K, *constant = factor + K;
        Rows rows = rows_of(x.m, block);
        for (int64_t i = rows.first; i < rows.end; i++) {
            const float* g = x.G + i * x.G_row;
            const float* sums = sums_of_row(g, x.n, level, room.data());
            terms_of_row(sums, x.M + i * K, x.V + i * K, K, w, detail[k], approximation[k], eps, mean, factor,
                         constant);
            float* to = x.W + i * x.W_row;
            switch (w) {
                case 1: update_blocks<1>(to, g, full, mean, factor, constant, keep); break;
                case 2: update_blocks<2>(to, g, full, mean, factor, constant, keep); break;
                case 4: update_blocks<4>(to, g, full, mean, factor, constant, keep); break;
                default:
                    for (int64_t j = 0; j < full; j++)
                        for (int64_t e = 0; e < w; e += 8)
                            update_blocks<8>(to + j * w + e, g + j * w + e, 1, mean + j, factor + j, constant + j,
                                             keep);
            }
            for (int64_t j = full * w; j < x.n; j++)
                to[j] = keep * to[j] - ((g[j] - mean[full]) * factor[full] + constant[full]);
        }
    });
}

}
