/* What the loads of `cargo xtask bench` share. */
#ifndef BENCH_H
#define BENCH_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stddef.h>
#include <stdint.h>

/* A row of the table: `prepare` is not measured, `run` is and gives a checksum. */
struct load {
    const char *name;
    void (*prepare)(void);
    uint64_t (*run)(void);
};

/* Each group of loads ends with a nameless one. */
extern const struct load compute[], numbers[], memory[], kernel[], programs[];

/* A fixed sequence of pseudo-random numbers, the same in every run. */
extern uint32_t seed;
static inline uint32_t next(void) { return (seed = seed * 1664525u + 1013904223u) >> 8; }

/* Checksums of bytes, chained through `sum`. */
uint64_t sum_bytes(uint64_t sum, const void *bytes, size_t size);

/* The work of the row "integer", also used on two threads. */
uint64_t integer_work(int rounds, uint32_t start);
/* Ends the load: something that must work did not. */
_Noreturn void broken(const char *what);
#endif
