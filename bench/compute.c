/* Loads of integer instructions: a mixture like CoreMark's, branches and indirect calls, SHA-256. */
#include "bench.h"
#include <stdlib.h>
#include <string.h>

/* ---- integer: lists, a matrix of integers, a state machine that reads numbers, a CRC over all ---- */

struct item {
    struct item *next;
    int16_t value, index;
};

static uint16_t crc16(uint16_t crc, uint16_t data) {
    for (int i = 0; i < 16; i++, data >>= 1) crc = (crc ^ data) & 1 ? (crc >> 1) ^ 0xa001 : crc >> 1;
    return crc;
}

static struct item *merge_sort(struct item *list, int by_index) {
    if (!list || !list->next) return list;
    struct item *middle = list, *end = list->next;
    while (end && (end = end->next)) middle = middle->next, end = end->next;
    struct item *right = merge_sort(middle->next, by_index), *head, **tail = &head;
    middle->next = NULL;
    struct item *left = merge_sort(list, by_index);
    while (left && right) {
        int less = by_index ? left->index <= right->index : left->value <= right->value;
        struct item **from = less ? &left : &right;
        *tail = *from, tail = &(*from)->next, *from = (*from)->next;
    }
    *tail = left ? left : right;
    return head;
}

static uint16_t lists(uint32_t start) {
    struct item items[200], *head = NULL;
    uint16_t crc = 0;
    for (int i = 0; i < 200; i++) {
        start = start * 1103515245u + 12345u;
        items[i] = (struct item){head, (int16_t)(start >> 16), (int16_t)i};
        head = &items[i];
    }
    head = merge_sort(head, 0);
    struct item *reversed = NULL;
    while (head) {
        struct item *rest = head->next;
        head->next = reversed, reversed = head, head = rest;
    }
    for (struct item *at = reversed; at; at = at->next) crc = crc16(crc, (uint16_t)at->value);
    for (int wanted = 0; wanted < 200; wanted += 20)
        for (struct item *at = reversed; at; at = at->next)
            if (at->index == wanted) { crc ^= (uint16_t)at->value; break; }
    reversed = merge_sort(reversed, 1);
    return crc16(crc, (uint16_t)reversed->value);
}

static uint16_t matrix(uint32_t start) {
    enum { N = 24 };
    int16_t a[N][N], b[N][N];
    int32_t c[N][N];
    uint16_t crc = 0;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            start = start * 1103515245u + 12345u;
            a[i][j] = (int16_t)(start >> 20), b[j][i] = (int16_t)(start >> 18 & 0x3ff);
        }
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            int32_t sum = 0;
            for (int k = 0; k < N; k++) sum += (a[i][k] >> 2) * b[k][j] - (a[k][i] & 0x3f);
            c[i][j] = sum;
        }
    for (int i = 0; i < N; i++) crc = crc16(crc, (uint16_t)(c[i][i] ^ c[i][N - 1 - i] >> 8));
    return crc;
}

enum state { BEGIN, SIGN, DIGITS, POINT, FRACTION, EXPONENT, POWER, BAD, STATES };

static enum state step(enum state state, char c) {
    int digit = c >= '0' && c <= '9';
    switch (state) {
    case BEGIN: return digit ? DIGITS : c == '+' || c == '-' ? SIGN : c == '.' ? POINT : BAD;
    case SIGN: return digit ? DIGITS : c == '.' ? POINT : BAD;
    case DIGITS: return digit ? DIGITS : c == '.' ? FRACTION : c == 'e' ? EXPONENT : BAD;
    case POINT:
    case FRACTION: return digit ? FRACTION : c == 'e' ? EXPONENT : BAD;
    case EXPONENT: return digit || c == '-' ? POWER : BAD;
    case POWER: return digit ? POWER : BAD;
    default: return BAD;
    }
}

static uint16_t machine(uint32_t start) {
    static const char text[] = "5012,+1234,-874,+122,.45,-1.5e3,12e-7,0x1f,7.7.7,-.25e2,+9e,1,22,T0.3e-1F,-1e-9,";
    uint32_t counts[STATES] = {0};
    uint16_t crc = 0;
    for (int round = 0; round < 6; round++) {
        enum state state = BEGIN;
        for (const char *at = text; *at; at++) {
            char c = *at;
            if ((start >> (round + (at - text) % 8) & 0x1f) == 7) c = '.';
            if (c == ',') counts[state]++, state = BEGIN;
            else state = step(state, c);
        }
        start = start * 1103515245u + 12345u;
    }
    for (int i = 0; i < STATES; i++) crc = crc16(crc, (uint16_t)counts[i]);
    return crc;
}

uint64_t integer_work(int rounds, uint32_t start) {
    uint64_t sum = 0;
    for (int i = 0; i < rounds; i++) {
        start = start * 1664525u + 1013904223u;
        sum = sum * 31 + lists(start) + ((uint64_t)matrix(start) << 16) + ((uint64_t)machine(start) << 32);
    }
    return sum;
}

static uint64_t integer(void) { return integer_work(9000, 42); }

/* ---- branchy: a search tree, a small interpreter that calls its operations through a table, qsort ---- */

struct node {
    struct node *left, *right;
    uint32_t key;
};

static uint64_t tree(void) {
    static struct node pool[20000];
    struct node *root = NULL;
    uint64_t found = 0;
    int size = 0;
    for (int i = 0; i < 20000; i++) {
        uint32_t key = next();
        struct node **at = &root;
        while (*at && (*at)->key != key) at = key < (*at)->key ? &(*at)->left : &(*at)->right;
        if (!*at) pool[size] = (struct node){NULL, NULL, key}, *at = &pool[size++];
    }
    for (int i = 0; i < 700000; i++) {
        uint32_t key = i & 1 ? pool[next() % size].key : next();
        struct node *at = root;
        while (at && at->key != key) at = key < at->key ? at->left : at->right;
        found += at != NULL;
    }
    return found;
}

struct cpu {
    uint32_t r[4], pc;
};
typedef void operation(struct cpu *, uint8_t);
static void op_add(struct cpu *cpu, uint8_t x) { cpu->r[x & 3] += cpu->r[x >> 2 & 3] + 1; }
static void op_xor(struct cpu *cpu, uint8_t x) { cpu->r[x & 3] ^= cpu->r[x >> 2 & 3] << 3; }
static void op_mul(struct cpu *cpu, uint8_t x) { cpu->r[x & 3] = cpu->r[x & 3] * 2654435761u + x; }
static void op_rotate(struct cpu *cpu, uint8_t x) { cpu->r[x & 3] = cpu->r[x & 3] >> 7 | cpu->r[x & 3] << 25; }
static void op_skip(struct cpu *cpu, uint8_t x) { if (cpu->r[x & 3] & 1) cpu->pc += x >> 4; }
static void op_swap(struct cpu *cpu, uint8_t x) {
    uint32_t kept = cpu->r[x & 3];
    cpu->r[x & 3] = cpu->r[x >> 2 & 3], cpu->r[x >> 2 & 3] = kept;
}
static void op_branch(struct cpu *cpu, uint8_t x) { if (cpu->r[x & 3] > cpu->r[x >> 2 & 3]) cpu->pc -= x >> 5; }
static void op_none(struct cpu *cpu, uint8_t x) { cpu->r[3] += x; }

static uint64_t interpret(void) {
    static operation *const operations[8] = {op_add, op_xor, op_mul, op_rotate, op_skip, op_swap, op_branch, op_none};
    struct { uint8_t code, operand; } program[256];
    struct cpu cpu = {{1, 2, 3, 4}, 0};
    for (int i = 0; i < 256; i++) program[i].code = next() & 7, program[i].operand = next();
    for (int i = 0; i < 40000000; i++) {
        uint8_t at = (uint8_t)cpu.pc++;
        operations[program[at].code](&cpu, program[at].operand);
        if (!(i & 0xff)) cpu.pc += cpu.r[0] >> 5;
    }
    return (uint64_t)(cpu.r[0] ^ cpu.r[1]) << 32 | (cpu.r[2] ^ cpu.r[3]);
}

static int order(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static uint64_t sort(void) {
    static uint32_t values[200000];
    for (int i = 0; i < 200000; i++) values[i] = next();
    qsort(values, 200000, sizeof *values, order);
    return sum_bytes(0, values, sizeof values);
}

static uint64_t branchy(void) { return tree() * 3 + interpret() * 5 + sort(); }

/* ---- sha256: FIPS 180-4, as the standard writes it ---- */

static const uint32_t k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void block(uint32_t h[8], const uint8_t *data) {
    uint32_t w[64];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)data[4 * i] << 24 | data[4 * i + 1] << 16 | data[4 * i + 2] << 8 | data[4 * i + 3];
    for (int i = 16; i < 64; i++)
        w[i] = w[i - 16] + w[i - 7] + (rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3) +
               (rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10);
    uint32_t a = h[0], b = h[1], c = h[2], d = h[3], e = h[4], f = h[5], g = h[6], last = h[7];
    for (int i = 0; i < 64; i++) {
        uint32_t t1 = last + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + k[i] + w[i];
        uint32_t t2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        last = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e, h[5] += f, h[6] += g, h[7] += last;
}

static uint64_t sha256(void) {
    static uint8_t data[1 << 16];
    uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)next();
    for (int round = 0; round < 1100; round++) {
        for (size_t at = 0; at < sizeof data; at += 64) block(h, data + at);
        data[round % sizeof data] ^= (uint8_t)h[0];
    }
    return (uint64_t)h[0] << 32 | h[1];
}

const struct load compute[] = {{"integer", NULL, integer}, {"branchy", NULL, branchy}, {"sha256", NULL, sha256}, {0}};
