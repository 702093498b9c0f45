/* Signals: on faults, each of which its handler repairs, and from other threads. All are counted. */
#define _GNU_SOURCE
#include "stress.h"
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

enum { THREADS = 3, PAGE = 4096, PAGES = 32, TIMES = 20, SENT = 200 };

static __thread volatile uint64_t faults;
static __thread volatile uintptr_t last;
static __thread volatile uint64_t divisions;
static uint64_t received;

static void on_fault(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    faults++;
    last = (uintptr_t)info->si_addr;
    if (mprotect((void *)(last & -PAGE), PAGE, PROT_READ | PROT_WRITE)) failed("mprotect in a handler");
}

static void on_division(int number, siginfo_t *info, void *context) {
    (void)number, (void)info;
    divisions++;
    /* The divisor becomes 1. */
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RCX] = 1;
}

static void on_sent(int number) {
    (void)number;
    __atomic_fetch_add(&received, 1, __ATOMIC_RELAXED);
}

static void *work(void *argument) {
    uint64_t random = (uintptr_t)argument + 1;
    char *at = mmap(NULL, PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) failed("mmap");
    for (int round = 0; round < TIMES; round++) {
        uint64_t before = faults;
        for (int page = 0; page < PAGES; page++) {
            volatile uint64_t *word = (uint64_t *)(at + page * PAGE + draw(&random) % (PAGE / 8) * 8);
            uint64_t value = draw(&random);
            *word = value;
            expect("the address of a fault", (uintptr_t)word, last);
            expect("what was stored behind a fault", value, *word);
        }
        expect("faults", PAGES, faults - before);
        if (mprotect(at, PAGES * PAGE, round % 2 ? PROT_READ : PROT_NONE)) failed("mprotect");
        uint64_t quotient = 12345 + round, rest = 0, were = divisions;
        __asm__ volatile("divq %%rcx" : "+a"(quotient), "+d"(rest) : "c"((uint64_t)0) : "cc");
        expect("the quotient behind a fault", 12345 + round, quotient);
        expect("faults of divisions", 1, divisions - were);
    }
    munmap(at, PAGES * PAGE);
    return NULL;
}

/* Real-time signals queue: each that is sent arrives. */
static void send_all(void) {
    uint64_t before = __atomic_load_n(&received, __ATOMIC_RELAXED);
    for (int n = 0; n < SENT; n++)
        if (sigqueue(getpid(), SIGRTMIN, (union sigval){0})) failed("sigqueue");
    for (int n = 0; n < 10000 && __atomic_load_n(&received, __ATOMIC_RELAXED) - before < SENT; n++) usleep(100);
    expect("signals that were sent", SENT, __atomic_load_n(&received, __ATOMIC_RELAXED) - before);
}

void signals(void) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    action.sa_sigaction = on_division;
    sigaction(SIGFPE, &action, NULL);
    struct sigaction sent = {.sa_handler = on_sent, .sa_flags = SA_RESTART};
    sigaction(SIGRTMIN, &sent, NULL);
    do {
        threads(THREADS, work);
        send_all();
    } while (going());
}
