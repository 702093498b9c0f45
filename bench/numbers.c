/* Loads of floating point and vectors. Their results are compared bit for bit. */
#include "bench.h"
#include <math.h>
#include <string.h>
#include <smmintrin.h>

/* ---- nbody: five bodies under gravity ---- */

struct body {
    double x, y, z, vx, vy, vz, mass;
};

static uint64_t nbody(void) {
    enum { N = 5 };
    struct body bodies[N];
    for (int i = 0; i < N; i++)
        bodies[i] = (struct body){i * 3.5 + 0.1, i * -2.25 + 0.2, i * 0.75 - 1,
                                  0.1 / (i + 1), 0.2 - i * 0.05, 0.01 * i, i ? 0.001 * i : 39.0};
    for (int step = 0; step < 700000; step++) {
        for (int i = 0; i < N; i++)
            for (int j = i + 1; j < N; j++) {
                double dx = bodies[i].x - bodies[j].x, dy = bodies[i].y - bodies[j].y, dz = bodies[i].z - bodies[j].z;
                double square = dx * dx + dy * dy + dz * dz + 0.01;
                double force = 0.001 / (square * sqrt(square));
                bodies[i].vx -= dx * bodies[j].mass * force, bodies[j].vx += dx * bodies[i].mass * force;
                bodies[i].vy -= dy * bodies[j].mass * force, bodies[j].vy += dy * bodies[i].mass * force;
                bodies[i].vz -= dz * bodies[j].mass * force, bodies[j].vz += dz * bodies[i].mass * force;
            }
        for (int i = 0; i < N; i++) {
            bodies[i].x += 0.001 * bodies[i].vx;
            bodies[i].y += 0.001 * bodies[i].vy;
            bodies[i].z += 0.001 * bodies[i].vz;
        }
    }
    return sum_bytes(0, bodies, sizeof bodies);
}

/* ---- matmul: a product of matrices of doubles ---- */

static uint64_t matmul(void) {
    enum { N = 160 };
    static double a[N][N], b[N][N], c[N][N];
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) a[i][j] = (i + 1.0) / (j + 3.0), b[i][j] = (i - j) * 0.37;
    for (int round = 0; round < 24; round++) {
        memset(c, 0, sizeof c);
        for (int i = 0; i < N; i++)
            for (int l = 0; l < N; l++)
                for (int j = 0; j < N; j++) c[i][j] += a[i][l] * b[l][j];
        a[round][round] = c[round][round + 1] * 1e-3;
    }
    return sum_bytes(0, c, sizeof c);
}

/* ---- x87: long double ---- */

static uint64_t x87(void) {
    long double sum = 0, x = 0.3L, y = 1.7L;
    for (int i = 1; i < 2500000; i++) {
        x = x * y - (long double)i / (y + 2.5L);
        y = sqrtl(fabsl(x)) + 0.125L;
        if (x > 1e6L || x < -1e6L) x *= 1e-7L;
        sum += x / (long double)(i + (i & 7));
    }
    /* A fixed number of bits, in integers, so that padding does not count. */
    int exponent;
    long double fraction = frexpl(sum, &exponent);
    return (uint64_t)(int64_t)(fraction * 0x1p62L) ^ (uint64_t)(unsigned)exponent << 56;
}

/* ---- sse: integers in vectors, up to SSE4.1 ---- */

static uint64_t sse(void) {
    enum { N = 16384 };
    static __m128i in[N / 16], out[N / 16];
    uint8_t *bytes = (uint8_t *)in;
    for (int i = 0; i < N; i++) bytes[i] = (uint8_t)next();
    const __m128i order = _mm_set_epi8(3, 1, 2, 0, 7, 5, 6, 4, 11, 9, 10, 8, 15, 13, 14, 12);
    const __m128i weights = _mm_set1_epi16(0x0b07), low = _mm_set1_epi8(0x55);
    __m128i total = _mm_setzero_si128(), most = _mm_setzero_si128(), mixed = _mm_set1_epi32(12345);
    int bits = 0;
    for (int round = 0; round < 30000; round++)
        for (int i = 0; i + 1 < N / 16; i++) {
            __m128i a = _mm_loadu_si128((const __m128i *)(bytes + 16 * i + (round & 15))), b = in[i];
            __m128i shuffled = _mm_shuffle_epi8(a, order);
            __m128i mean = _mm_avg_epu8(shuffled, b);
            __m128i products = _mm_maddubs_epi16(mean, weights);
            __m128i wide = _mm_madd_epi16(products, _mm_unpacklo_epi8(a, b));
            mixed = _mm_add_epi32(_mm_mullo_epi32(mixed, _mm_set1_epi32(1664525)), _mm_srai_epi32(wide, 3));
            most = _mm_max_epu8(most, _mm_subs_epu8(mean, low));
            total = _mm_add_epi64(total, _mm_sad_epu8(shuffled, b));
            __m128i greater = _mm_cmpgt_epi8(mean, low);
            bits += _mm_movemask_epi8(greater);
            out[i] = _mm_blendv_epi8(_mm_packus_epi16(products, wide), _mm_alignr_epi8(a, mixed, 5), greater);
        }
    uint64_t sum = sum_bytes(sum_bytes((uint64_t)bits, &total, sizeof total), &most, sizeof most);
    return sum_bytes(sum_bytes(sum, &mixed, sizeof mixed), out, sizeof out);
}

const struct load numbers[] = {
    {"nbody", NULL, nbody}, {"matmul", NULL, matmul}, {"x87", NULL, x87}, {"sse", NULL, sse}, {0}};
