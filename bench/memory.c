/* Loads of memory: copies, a chase of pointers, code that rewrites itself, threads. */
#include "bench.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* ---- copy: memcpy, memmove and memset, from tens of bytes to megabytes ---- */

static uint64_t copy(void) {
    enum { SIZE = 2 << 20 };
    static char a[SIZE + 64], b[SIZE + 64];
    uint64_t sum = 0;
    memset(a, 7, sizeof a);
    for (int round = 0; round < 250; round++) {
        memcpy(b, a, SIZE);
        b[round]++;
        memmove(b + 1 + (round & 31), b, SIZE / 2);
        memset(a + SIZE / 2, round, SIZE / 4);
        memcpy(a, b, SIZE / 2);
    }
    for (int round = 0; round < 400000; round++) {
        uint32_t size = 16 + (next() & 1023), from = next() & 0xffff, to = next() & 0xffff;
        memcpy(a + to, b + from, size);
        memset(b + to, (int)round, size / 4);
    }
    for (int i = 0; i < SIZE; i += 61) sum = sum * 31 + (unsigned char)a[i] + (unsigned char)b[i];
    return sum;
}

/* ---- chase: one cycle through 64 MiB in random order ---- */

struct line {
    uint32_t next;
    char rest[60];
};
enum { LINES = (64 << 20) / sizeof(struct line) };
static struct line *lines;

static void chase_prepare(void) {
    lines = mmap(NULL, sizeof *lines * LINES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint32_t *order = malloc(sizeof *order * LINES);
    if (lines == MAP_FAILED || !order) broken("memory");
    madvise(lines, sizeof *lines * LINES, MADV_NOHUGEPAGE);
    for (uint32_t i = 0; i < LINES; i++) order[i] = i;
    for (uint32_t i = LINES - 1; i > 0; i--) {
        uint32_t other = next() % i, kept = order[i];
        order[i] = order[other], order[other] = kept;
    }
    for (uint32_t i = 0; i < LINES; i++) lines[order[i]].next = order[(i + 1) % LINES];
    free(order);
}

static uint64_t chase(void) {
    uint32_t at = 0;
    uint64_t sum = 0;
    for (int i = 0; i < 5000000; i++) at = lines[at].next, sum += at;
    return sum;
}

/* ---- rewrite: a small function, written anew before each call, in a few places on a page ---- */

static uint64_t rewrite(void) {
    uint8_t *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) broken("memory that may be written and executed");
    uint64_t sum = 0;
    for (uint32_t i = 0; i < 300000; i++) {
        uint8_t *code = page + (i & 3) * 64;
        /* lea eax, [rdi+i]; xor eax, i*2654435761; ret */
        uint32_t words[2] = {i, i * 2654435761u};
        code[0] = 0x8d, code[1] = 0x87, memcpy(code + 2, &words[0], 4);
        code[6] = 0x35, memcpy(code + 7, &words[1], 4);
        code[11] = 0xc3;
        __asm__ volatile("" ::: "memory");
        sum = sum * 3 + ((uint32_t(*)(uint32_t))(uintptr_t)code)((uint32_t)sum);
    }
    munmap(page, 4096);
    return sum;
}

/* ---- threads: the row "integer" on two threads ---- */

static void *thread(void *start) { return (void *)(uintptr_t)integer_work(5000, (uint32_t)(uintptr_t)start); }

static uint64_t threads(void) {
    pthread_t other;
    void *theirs = NULL;
    if (pthread_create(&other, NULL, thread, (void *)(uintptr_t)7)) broken("thread");
    uint64_t ours = (uint64_t)(uintptr_t)thread((void *)(uintptr_t)42);
    pthread_join(other, &theirs);
    return ours * 5 + (uint64_t)(uintptr_t)theirs;
}

const struct load memory[] = {{"copy", NULL, copy},
                              {"chase", chase_prepare, chase},
                              {"rewrite", NULL, rewrite},
                              {"threads2", NULL, threads},
                              {0}};
