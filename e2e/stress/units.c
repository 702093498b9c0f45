/* Vector and x87 registers across context switches: threads compute the same, and come to the same. */
#include "stress.h"
#include <sched.h>
#include <string.h>

enum { THREADS = 4, STEPS = 20000 };

static double results[THREADS];
static long double longs[THREADS];
static uint64_t vectors[THREADS];

static void *work(void *argument) {
    int n = (int)(intptr_t)argument;
    double sum = 0;
    long double product = 1;
    typedef uint32_t four __attribute__((vector_size(16)));
    four vector = {1, 2, 3, 4}, step = {5, 7, 11, 13};
    for (int i = 1; i <= STEPS; i++) {
        sum += 1.0 / i;
        product = product * 1.0001L + 0.5L / i;
        if (product > 1e6L) product *= 1e-6L;
        vector = vector * step + (four){i, i, i, i};
        /* In the middle of it, with the registers full. */
        if (i % 1000 == 0) sched_yield();
    }
    results[n] = sum;
    longs[n] = product;
    vectors[n] = ((uint64_t)vector[0] << 32 | vector[1]) ^ ((uint64_t)vector[2] << 32 | vector[3]);
    return NULL;
}

static uint64_t bits(const void *value, int size) {
    uint64_t word = 0;
    memcpy(&word, value, size < 8 ? size : 8);
    return word;
}

void units(void) {
    static uint64_t first[3];
    do {
        memset(longs, 0, sizeof longs);
        threads(THREADS, work);
        for (int n = 0; n < THREADS; n++) {
            const uint64_t got[3] = {bits(&results[n], 8), bits(&longs[n], 8), vectors[n]};
            if (first[0] == 0) memcpy(first, got, sizeof first);
            expect("a sum of doubles", first[0], got[0]);
            expect("a product of long doubles", first[1], got[1]);
            expect("a vector", first[2], got[2]);
        }
    } while (going());
}
