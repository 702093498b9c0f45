/* The loads of `cargo xtask stress`, in a guest: each in processes of its own, all at the same time, for so many seconds.
 * Every load checks its results. The first wrong one ends the program with status 1 and says which. */
#define _GNU_SOURCE
#include "stress.h"
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

const struct load loads[] = {{"locks", locks}, {"pages", pages}, {"signals", signals}, {"forks", forks},
                             {"pipes", pipes}, {"code", code},   {"units", units}};
enum { LOADS = sizeof loads / sizeof loads[0], REPORT_S = 60 };

static const char *running = "stress";
static time_t end;
/* Rounds of each load, seen by all processes. */
static uint64_t *rounds;
static uint64_t *mine;

static time_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec;
}

int going(void) {
    __atomic_fetch_add(mine, 1, __ATOMIC_RELAXED);
    return now() < end;
}

void wrong(const char *what, uint64_t expected, uint64_t got) {
    fprintf(stderr, "stress: %s: %s: expected %#" PRIx64 ", got %#" PRIx64 "\n", running, what, expected, got);
    _exit(1);
}

void failed(const char *what) {
    fprintf(stderr, "stress: %s: %s: %s\n", running, what, strerror(errno));
    _exit(1);
}

/* Nothing here faults but on purpose. */
static void on_fault(int number, siginfo_t *info, void *context) {
    const greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    fprintf(stderr, "stress: %s: signal %d at %#llx, address %p, error %#llx\n", running, number,
            registers[REG_RIP], info->si_addr, registers[REG_ERR]);
    _exit(1);
}

uint64_t draw(uint64_t *state) {
    *state += 0x9e3779b97f4a7c15;
    uint64_t z = *state;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

void threads(int count, void *(*run)(void *)) {
    pthread_t all[16];
    for (int n = 0; n < count; n++)
        if (pthread_create(&all[n], NULL, run, (void *)(intptr_t)n)) failed("pthread_create");
    for (int n = 0; n < count; n++) pthread_join(all[n], NULL);
}

static void report(time_t left) {
    printf("%5ld s left, rounds:", (long)left);
    for (int n = 0; n < LOADS; n++) printf(" %s %" PRIu64, loads[n].name, rounds[n]);
    printf("\n");
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "forked")) return forked(argv[2]);
    int seconds = argc > 1 ? atoi(argv[1]) : 60;
    end = now() + seconds;
    rounds = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (rounds == MAP_FAILED) failed("mmap");
    setvbuf(stdout, NULL, _IOLBF, 0);
    pid_t pids[LOADS] = {0};
    for (int n = 0; n < LOADS; n++) {
        if (argc > 2 && strcmp(argv[2], loads[n].name)) continue;
        pid_t child = fork();
        if (child < 0) failed("fork");
        if (child == 0) {
            running = loads[n].name;
            mine = rounds + n;
            struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
            sigaction(SIGSEGV, &action, NULL);
            sigaction(SIGBUS, &action, NULL);
            sigaction(SIGILL, &action, NULL);
            loads[n].run();
            _exit(0);
        }
        pids[n] = child;
    }
    time_t said = now();
    for (;;) {
        int status = 0;
        pid_t child = waitpid(-1, &status, WNOHANG);
        if (child < 0) break;
        if (child > 0 && status != 0) {
            const char *name = "a load";
            for (int n = 0; n < LOADS; n++)
                if (pids[n] == child) name = loads[n].name;
            fprintf(stderr, "stress: %s ended with status %#x\n", name, status);
            return 1;
        }
        if (child == 0) usleep(100000);
        if (now() - said >= REPORT_S) {
            said = now();
            report(end - said);
        }
        if (now() > end + 120) {
            fprintf(stderr, "stress: a load hangs\n");
            report(0);
            return 1;
        }
    }
    report(0);
    for (int n = 0; n < LOADS; n++)
        if (rounds[n] == 0 && argc < 3) {
            fprintf(stderr, "stress: %s did no round\n", loads[n].name);
            return 1;
        }
    return 0;
}
