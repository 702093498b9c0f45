/* Locks of every kind around plain counters: none of the increments may be lost. */
#include "stress.h"
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { THREADS = 4, TIMES = 2000 };

static struct {
    /* 0 free, 1 held, 2 held and waited for (Drepper, "Futexes Are Tricky"). */
    int futex __attribute__((aligned(64)));
    int spin __attribute__((aligned(64)));
    pthread_mutex_t mutex __attribute__((aligned(64)));
    uint64_t by_futex, by_spin, by_mutex;
    uint64_t added __attribute__((aligned(64)));
    uint64_t exchanged;
    uint64_t pair[2] __attribute__((aligned(16)));
    /* Across two cache lines. */
    char split[128] __attribute__((aligned(64)));
} all;

static int exchange_if(int *word, int from, int to) {
    __atomic_compare_exchange_n(word, &from, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return from;
}

static void futex_lock(void) {
    int was = exchange_if(&all.futex, 0, 1);
    while (was != 0) {
        if (was == 2 || exchange_if(&all.futex, 1, 2) != 0) syscall(SYS_futex, &all.futex, FUTEX_WAIT_PRIVATE, 2, NULL);
        was = exchange_if(&all.futex, 0, 2);
    }
}

static void futex_unlock(void) {
    if (__atomic_fetch_sub(&all.futex, 1, __ATOMIC_SEQ_CST) != 1) {
        __atomic_store_n(&all.futex, 0, __ATOMIC_SEQ_CST);
        syscall(SYS_futex, &all.futex, FUTEX_WAKE_PRIVATE, 1);
    }
}

static void spin_lock(void) {
    for (int tries = 0; __atomic_exchange_n(&all.spin, 1, __ATOMIC_ACQUIRE); tries++) {
        __builtin_ia32_pause();
        if (tries % 256 == 255) sched_yield();
    }
}

static void *work(void *argument) {
    (void)argument;
    for (int n = 0; n < TIMES; n++) {
        futex_lock();
        all.by_futex++;
        futex_unlock();
        spin_lock();
        all.by_spin++;
        __atomic_store_n(&all.spin, 0, __ATOMIC_RELEASE);
        pthread_mutex_lock(&all.mutex);
        all.by_mutex++;
        pthread_mutex_unlock(&all.mutex);
        __atomic_fetch_add(&all.added, 3, __ATOMIC_RELAXED);
        uint64_t old = __atomic_load_n(&all.exchanged, __ATOMIC_RELAXED);
        while (!__atomic_compare_exchange_n(&all.exchanged, &old, old * 5 + 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {}
        uint64_t low = all.pair[0], high = all.pair[1];
        unsigned char done;
        do {
            uint64_t new_low = low + 1, new_high = high - 1;
            __asm__ volatile("lock cmpxchg16b %1; sete %0"
                             : "=q"(done), "+m"(all.pair), "+a"(low), "+d"(high)
                             : "b"(new_low), "c"(new_high)
                             : "cc", "memory");
        } while (!done);
        if (n % 64 == 0) __asm__ volatile("lock addl $1, %0" : "+m"(*(int *)(all.split + 62))::"cc");
    }
    return NULL;
}

void locks(void) {
    do {
        memset(&all, 0, sizeof all);
        pthread_mutex_init(&all.mutex, NULL);
        threads(THREADS, work);
        const uint64_t times = THREADS * TIMES;
        expect("a counter under a futex lock", times, all.by_futex);
        expect("a counter under a spin lock", times, all.by_spin);
        expect("a counter under a mutex", times, all.by_mutex);
        expect("LOCK XADD", times * 3, all.added);
        uint64_t exchanged = 0;
        for (uint64_t n = 0; n < times; n++) exchanged = exchanged * 5 + 1;
        expect("LOCK CMPXCHG", exchanged, all.exchanged);
        expect("LOCK CMPXCHG16B, low", times, all.pair[0]);
        expect("LOCK CMPXCHG16B, high", -times, all.pair[1]);
        int split;
        memcpy(&split, all.split + 62, sizeof split);
        expect("LOCK ADD across cache lines", THREADS * ((TIMES + 63) / 64), split);
    } while (going());
}
