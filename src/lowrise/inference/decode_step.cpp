// One decoding step of one sequence on a CPU: what FrozenDecoder._advance does for one token, in one call.
//
// A step reads every weight once and computes little with it, so its time is that of reading. Products of a
// matrix and a vector here go row after row, which is the order in memory, and ask for what lies AHEAD bytes
// further on, at the end of a matrix for the beginning of the next. Activations are float32 throughout;
// weights, keys and values are float32 or bfloat16 (two of which are one 32-bit word: the even entry in its low
// half, the odd one in its high half, each widened by a shift or a mask).
//
// Threads share the rows of a product. Each output is one thread's sum in one order, so that their number
// changes no bit.

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

typedef float floats __attribute__((vector_size(64)));
typedef uint32_t words __attribute__((vector_size(64)));
constexpr int64_t AHEAD = 4096;

struct bfloat16 {
    uint16_t bits;
};

float wide(float x) { return x; }

float wide(bfloat16 x) {
    uint32_t word = uint32_t(x.bits) << 16;
    float result;
    memcpy(&result, &word, 4);
    return result;
}

void narrow(float x, float* out) { *out = x; }

void narrow(float x, bfloat16* out) {  // to the nearest, ties to even
    uint32_t word;
    memcpy(&word, &x, 4);
    out->bits = std::isnan(x) ? 0x7fc0 : uint16_t((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}

template <class V, class P>
V load(const P* from) {
    V v;
    memcpy(&v, from, sizeof v);
    return v;
}

// The two halves of a vector added.
template <class Half, class V>
Half folded(V v) {
    Half low, high;
    memcpy(&low, &v, sizeof low);
    memcpy(&high, (const char*)&v + sizeof low, sizeof high);
    return low + high;
}

float total(floats v) {  // in four steps, not sixteen: rows may be short
    typedef float floats8 __attribute__((vector_size(32)));
    typedef float floats4 __attribute__((vector_size(16)));
    typedef float floats2 __attribute__((vector_size(8)));
    floats2 pair = folded<floats2>(folded<floats4>(folded<floats8>(v)));
    return pair[0] + pair[1];
}

// Entries of T in a block of 64 bytes, and what a block adds to a sum: bfloat16 entries of even places meet the
// first 16 of x's block, those of odd places the others.
constexpr int64_t entries(float) { return 16; }
constexpr int64_t entries(bfloat16) { return 32; }

void add_block(const float* row, const float* x, floats& a, floats&) { a += load<floats>(row) * load<floats>(x); }

void add_block(const bfloat16* row, const float* x, floats& a, floats& b) {
    words pairs = load<words>(row);
    a += (floats)(pairs << 16) * load<floats>(x);
    b += (floats)(pairs & 0xffff0000u) * load<floats>(x + 16);
}

void arrange_block(const float* x, float* out, float) { memcpy(out, x, 64); }

void arrange_block(const float* x, float* out, bfloat16) {
    for (int64_t i = 0; i < 16; i++) {
        out[i] = x[2 * i];
        out[16 + i] = x[2 * i + 1];
    }
}

// x in the order in which `dot` wants it. What is no whole block is the end of a last block that begins within
// the block before it; the entries that were there already are 0. Needs room for 2 n.
template <class T>
void arrange(const float* x, int64_t n, float* out) {
    constexpr int64_t E = entries(T());
    const int64_t rest = n % E;
    if (n < E) {
        memcpy(out, x, n * sizeof(float));
        return;
    }
    for (int64_t i = 0; i + E <= n; i += E) arrange_block(x + i, out + i, T());
    if (rest) {
        float last[E] = {};
        memcpy(last + E - rest, x + n - rest, rest * sizeof(float));
        arrange_block(last, out + n - rest, T());
    }
}

// row . x for an arranged x; `ahead` is what will be read later.
template <class T>
inline __attribute__((always_inline)) float dot(const T* row, const float* x, int64_t n, const char* ahead) {
    constexpr int64_t E = entries(T());
    float sum = 0;
    if (n < E) {
        for (int64_t i = 0; i < n; i++) sum += wide(row[i]) * x[i];
        return sum;
    }
    floats a{}, b{};
    int64_t i = 0;
    for (; i + E <= n; i += E) {
        __builtin_prefetch(ahead + i * sizeof(T));
        add_block(row + i, x + i, a, b);
    }
    if (i < n) add_block(row + n - E, x + i, a, b);
    return total(a + b);
}

float squares(const float* x, int64_t n) {
    floats a{};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) a += load<floats>(x + i) * load<floats>(x + i);
    float sum = total(a);
    for (; i < n; i++) sum += x[i] * x[i];
    return sum;
}

// y = W x + (y if add), W of m rows of n, x arranged; `next` is the matrix that is read after this one.
template <class T>
void product(const T* W, int64_t m, int64_t n, const float* x, float* y, bool add, const T* next) {
    const char* end = (const char*)(W + m * n);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < m; i++) {
        const T* row = W + i * n;
        const char* ahead = (const char*)row + AHEAD;
        if (ahead >= end) ahead = (const char*)next + (ahead - end);
        float value = dot(row, x, n, ahead);
        y[i] = add ? y[i] + value : value;
    }
}

// e^x to float32's precision for x <= 0, in a form that compilers turn into vectors: 2^k times a polynomial.
float exp_of(float x) {
    x = x < -87.0f ? -87.0f : x;
    float scaled = x * 1.44269504f;
    float k = std::nearbyint(scaled);
    float r = (x - k * 0.693145752f) - k * 1.42860677e-6f;  // ln 2 in two parts
    float p = 1 + r * (1 + r * (1 / 2.f + r * (1 / 6.f + r * (1 / 24.f + r * (1 / 120.f + r / 720.f)))));
    int32_t bits = (int32_t(k) + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

float silu_of(float x) {
    float e = exp_of(x < 0 ? x : -x);
    return x * (x < 0 ? e : 1.0f) / (1 + e);
}

}  // namespace

// The same structures in native_step.py. Pointers that a map has no use for are null.
extern "C" {

struct Map {  // a map's second factor (outputs x latent) and its part of the group's first product
    const void* up;
    int64_t latent, outputs, silu;
};

struct Group {  // maps of one input
    const void* first;  // latents x inputs, the maps' first factors one below the other
    const float* norm;
    const float* bias;
    const Map* maps;
    int64_t inputs, latents, outputs, num_maps;
    double eps;
};

struct Model {
    const Group* groups;  // (q, k, v), o, (gate, up), down of every block, then the head
    const void* embedding;
    const float* rotations;  // positions x head_dim / 2 complex numbers
    int64_t layers, hidden, heads, kv_heads, head_dim, silu, widest, threads;
};
}

namespace {

// Memory of a step; `widest` is the largest number of inputs, latents and outputs of a group but the head.
struct Scratch {
    float *x, *arranged, *latent, *y, *inner, *scores;

    Scratch(const Model& m, float* memory)
        : x(memory), arranged(x + m.hidden), latent(arranged + 2 * m.widest), y(latent + m.widest),
          inner(y + m.widest), scores(inner + m.widest) {}
};

// y = the group's maps of x side by side, or y + these.
template <class T>
void apply(const Group& g, const float* x, float* y, bool add, Scratch& s, const Group* after) {
    const T* next = after ? (const T*)after->first : (const T*)g.first;
#pragma omp single
    {
        const float* input = x;
        if (g.norm) {
            float scale = 1 / std::sqrt(squares(x, g.inputs) / g.inputs + float(g.eps));
            for (int64_t i = 0; i < g.inputs; i++) s.latent[i] = x[i] * scale * g.norm[i];
            input = s.latent;
        }
        arrange<T>(input, g.inputs, s.arranged);
    }
    bool dense = true;
    for (int64_t i = 0; i < g.num_maps; i++) dense = dense && !g.maps[i].up;
    if (dense) {
        product((const T*)g.first, g.latents, g.inputs, s.arranged, y, add, next);
    } else {
        const T* up = nullptr;
        for (int64_t i = g.num_maps - 1; i >= 0; i--) up = g.maps[i].up ? (const T*)g.maps[i].up : up;
        product((const T*)g.first, g.latents, g.inputs, s.arranged, s.latent, false, up);
        int64_t latent = 0, output = 0;
        for (int64_t i = 0; i < g.num_maps; i++) {
            const Map& map = g.maps[i];
            float* z = s.latent + latent;
            if (map.up) {
#pragma omp single
                {
                    if (map.silu)
                        for (int64_t j = 0; j < map.latent; j++) z[j] = silu_of(z[j]);
                    arrange<T>(z, map.latent, s.arranged);
                }
                const T* following = i + 1 < g.num_maps && g.maps[i + 1].up ? (const T*)g.maps[i + 1].up : next;
                product((const T*)map.up, map.outputs, map.latent, s.arranged, y + output, add, following);
            } else {
#pragma omp single
                for (int64_t j = 0; j < map.outputs; j++) y[output + j] = add ? y[output + j] + z[j] : z[j];
            }
            latent += map.latent;
            output += map.outputs;
        }
    }
    if (g.bias) {
#pragma omp single
        for (int64_t i = 0; i < g.outputs; i++) y[i] += g.bias[i];
    }
}

// s.inner = attention of q in s.y to columns `from` to `column`, the last of which is written first.
template <class T>
void attend(const Model& m, T* cache, int64_t columns, int64_t from, int64_t column, Scratch& s) {
    const int64_t d = m.head_dim;
    T *keys = cache, *values = cache + m.kv_heads * columns * d;
    const float *turns = m.rotations + (column - from) * d, scale = 1 / std::sqrt(float(d));
#pragma omp for schedule(static)
    for (int64_t h = 0; h < m.heads + m.kv_heads; h++)
        for (int64_t i = 0; i < d; i += 2) {
            float *pair = s.y + h * d + i, by = h < m.heads ? scale : 1, a = by * pair[0], b = by * pair[1];
            pair[0] = a * turns[i] - b * turns[i + 1];
            pair[1] = a * turns[i + 1] + b * turns[i];
        }
#pragma omp for schedule(static)
    for (int64_t h = 0; h < m.kv_heads; h++)
        for (int64_t i = 0; i < d; i++) {
            narrow(s.y[(m.heads + h) * d + i], keys + (h * columns + column) * d + i);
            narrow(s.y[(m.heads + m.kv_heads + h) * d + i], values + (h * columns + column) * d + i);
        }
#pragma omp for schedule(static)
    for (int64_t h = 0; h < m.heads; h++) {
        const int64_t shared = h / (m.heads / m.kv_heads) * columns * d;
        float *p = s.scores + h * columns, *q = s.arranged + h * 2 * d, *out = s.inner + h * d, most = -INFINITY;
        arrange<T>(s.y + h * d, d, q);
        for (int64_t t = from; t <= column; t++) {
            const T* key = keys + shared + t * d;
            p[t] = dot(key, q, d, (const char*)(key + d));
            most = p[t] > most ? p[t] : most;
        }
        for (int64_t t = from; t <= column; t++) p[t] = exp_of(p[t] - most);
        float sum = 0;
        for (int64_t i = 0; i < d; i++) out[i] = 0;
        for (int64_t t = from; t <= column; t++) {
            const T* value = values + shared + t * d;
            for (int64_t i = 0; i < d; i++) out[i] += p[t] * wide(value[i]);
            sum += p[t];
        }
        for (int64_t i = 0; i < d; i++) out[i] /= sum;
    }
}

template <class T>
void step(const Model& m, void* const* caches, int64_t columns, int64_t from, int64_t column, int64_t token,
          Scratch s, float* logits) {
#pragma omp parallel num_threads(int(m.threads))
    {
        const Group* g = m.groups;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < m.hidden; i++) s.x[i] = wide(((const T*)m.embedding)[token * m.hidden + i]);
        for (int64_t layer = 0; layer < m.layers; layer++, g += 4) {
            apply<T>(g[0], s.x, s.y, false, s, g + 1);
            attend(m, (T*)caches[layer], columns, from, column, s);
            apply<T>(g[1], s.inner, s.x, true, s, g + 2);
            apply<T>(g[2], s.x, s.y, false, s, g + 3);
            const int64_t width = g[3].inputs;
#pragma omp for schedule(static)
            for (int64_t i = 0; i < width; i++) {
                float gate = s.y[i];
                s.inner[i] = (m.silu ? silu_of(gate) : gate) * s.y[width + i];
            }
            apply<T>(g[3], s.inner, s.x, true, s, g + 4);
        }
        apply<T>(*g, s.x, logits, false, s, nullptr);
    }
}

}  // namespace

extern "C" {

int64_t scratch_floats(const Model* m, int64_t columns) {
    return m->hidden + 5 * m->widest + m->heads * columns;
}

// Logits after `token` in column `column` of the caches (keys, values: kv_heads x columns x head_dim each, one
// address a block); the sequence begins in column `from`.
void decode_step(const Model* m, int bf16, void* const* caches, int64_t columns, int64_t from, int64_t column,
                 int64_t token, float* scratch, float* logits) {
    if (bf16)
        step<bfloat16>(*m, caches, columns, from, column, token, Scratch(*m, scratch), logits);
    else
        step<float>(*m, caches, columns, from, column, token, Scratch(*m, scratch), logits);
}

// y = one group of x alone, for measuring.
void apply_group(const Model* m, int bf16, int64_t group, const float* x, float* scratch, float* y) {
    Scratch s(*m, scratch);
#pragma omp parallel num_threads(int(m->threads))
    {
        if (bf16)
            apply<bfloat16>(m->groups[group], x, y, false, s, nullptr);
        else
            apply<float>(m->groups[group], x, y, false, s, nullptr);
    }
}
}
