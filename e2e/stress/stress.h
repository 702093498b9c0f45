/* What the loads share. */
#ifndef STRESS_H
#define STRESS_H
#include <stdint.h>

/* A load runs rounds, each of which checks itself, until `going()` says no. */
struct load {
    const char *name;
    void (*run)(void);
};

extern const struct load loads[];

/* Whether there is time for another round, which it counts. */
int going(void);
/* A wrong result: says which, and ends everything. */
void wrong(const char *what, uint64_t expected, uint64_t got) __attribute__((noreturn));
/* A system call that failed. */
void failed(const char *what) __attribute__((noreturn));
/* A number that nobody expects. */
uint64_t draw(uint64_t *state);
/* Starts threads with their numbers, and waits for them. */
void threads(int count, void *(*run)(void *));

static inline void expect(const char *what, uint64_t expected, uint64_t got) {
    if (expected != got) wrong(what, expected, got);
}

void locks(void);
void pages(void);
void signals(void);
void forks(void);
void pipes(void);
void code(void);
void units(void);
/* What an executed copy of this program does for `forks`. */
int forked(const char *argument);
#endif
