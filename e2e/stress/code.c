/* Code that is rewritten while it is called: by another thread (cross-modifying code, SDM vol. 3 §9.1.3: the one that calls
 * serializes), and by the caller itself, also through another mapping. */
#define _GNU_SOURCE
#include "stress.h"
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { TIMES = 3000, PAGE = 4096 };

typedef uint32_t function(uint32_t);

static unsigned char *page, *alias;
/* The last version that is going to be written, and the last that has been. */
static uint32_t announced, written;
static int ended;

/* mov eax, imm32 on a boundary of 4, so that it is written at once; ret. */
static void put_constant(unsigned char *at, uint32_t value) {
    at[3] = 0xb8;
    __atomic_store_n((uint32_t *)(at + 4), value, __ATOMIC_SEQ_CST);
    at[8] = 0xc3;
}

static void serialize(void) {
    uint32_t a = 0, b, c = 0, d;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d)::"memory");
}

static void rewrite(void) {
    for (uint32_t version = 1; version <= TIMES; version++) {
        __atomic_store_n(&announced, version, __ATOMIC_SEQ_CST);
        put_constant(version % 2 ? page : alias, version);
        __atomic_store_n(&written, version, __ATOMIC_SEQ_CST);
        for (int n = 0; n < 50; n++) __builtin_ia32_pause();
    }
    __atomic_store_n(&ended, 1, __ATOMIC_SEQ_CST);
}

static void call(void) {
    function *constant = (function *)(page + 3);
    int last;
    do {
        last = __atomic_load_n(&ended, __ATOMIC_SEQ_CST);
        uint32_t before = __atomic_load_n(&written, __ATOMIC_SEQ_CST);
        serialize();
        uint32_t got = constant(0);
        uint32_t after = __atomic_load_n(&announced, __ATOMIC_SEQ_CST);
        if (got < before) wrong("an old function was called", before, got);
        if (got > after) wrong("a function that nobody wrote", after, got);
    } while (!last);
    expect("the last function", TIMES, constant(0));
}

static void *work(void *argument) {
    if (argument == 0) rewrite(); else call();
    return NULL;
}

/* Functions of several kinds in the place of each other: each does what it says, at once. */
static void replace(uint64_t *random) {
    static const unsigned char bodies[4][12] = {
        {0x89, 0xf8, 0x05, 1, 0, 0, 0, 0xc3},             /* mov eax, edi; add eax, 1; ret */
        {0x8d, 0x04, 0x7f, 0xc3},                         /* lea eax, [rdi+rdi*2]; ret */
        {0x89, 0xf8, 0x35, 0x55, 0x55, 0x55, 0x55, 0xc3}, /* mov eax, edi; xor eax, 0x55555555; ret */
        {0x89, 0xf8, 0xeb, 0x02, 0x0f, 0x0b, 0xf7, 0xd0, 0xc3}, /* mov eax, edi; jmp over ud2; not eax; ret */
    };
    for (int n = 0; n < 200; n++) {
        uint64_t key = draw(random);
        /* Sometimes across the border of the pages. */
        size_t at = key % 8 == 0 ? PAGE - 4 : 64 + key % 16 * 128;
        uint32_t kind = key >> 32 & 3, x = key >> 40;
        memcpy((key >> 36 & 1 ? page : alias) + at, bodies[kind], sizeof bodies[kind]);
        const uint32_t results[4] = {x + 1, x * 3, x ^ 0x55555555, ~x};
        __asm__ volatile("" ::: "memory");
        expect("a function that was just written", results[kind], ((function *)(page + at))(x));
    }
}

void code(void) {
    int file = memfd_create("code", 0);
    if (file < 0 || ftruncate(file, 2 * PAGE)) failed("memfd");
    page = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_SHARED, file, 0);
    alias = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (page == MAP_FAILED || alias == MAP_FAILED) failed("mmap");
    uint64_t random = 5;
    do {
        announced = written = ended = 0;
        put_constant(page, 0);
        threads(3, work);
        replace(&random);
    } while (going());
}
