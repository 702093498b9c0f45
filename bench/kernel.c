/* Loads that lean on the kernel. */
#include "bench.h"
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t syscalls(void) {
    uint64_t sum = 0;
    for (int i = 0; i < 1200000; i++) sum += syscall(SYS_getpid) > 0;
    return sum;
}

/* ---- pipes: a byte goes to another process and back ---- */

static void stay_on(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
}

static uint64_t ping_pong(int rounds, int other_cpu) {
    int to[2], from[2];
    if (pipe(to) || pipe(from)) broken("pipe");
    stay_on(0);
    pid_t child = fork();
    if (!child) {
        char byte;
        stay_on(other_cpu);
        while (read(to[0], &byte, 1) == 1 && byte)
            if (write(from[1], &byte, 1) != 1) break;
        _exit(0);
    }
    uint64_t sum = 0;
    char byte = 1;
    for (int i = 0; i < rounds; i++) sum += write(to[1], &byte, 1) == 1 && read(from[0], &byte, 1) == 1;
    byte = 0;
    if (write(to[1], &byte, 1) != 1) broken("write");
    waitpid(child, NULL, 0);
    return sum;
}

static uint64_t one_cpu(void) { return ping_pong(30000, 0); }
static uint64_t two_cpus(void) { return ping_pong(600, 1); }

/* ---- processes and memory ---- */

static uint64_t forkexec(void) {
    uint64_t sum = 0;
    for (int i = 0; i < 500; i++) {
        pid_t child = fork();
        if (!child) {
            execl("/proc/self/exe", "init", "exit", NULL);
            _exit(1);
        }
        int status;
        sum += waitpid(child, &status, 0) == child && status == 0;
    }
    return sum;
}

static char *map(size_t size) {
    char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) broken("mmap");
    madvise(at, size, MADV_NOHUGEPAGE);
    return at;
}

static uint64_t touch(void) {
    enum { SIZE = 64 << 20 };
    uint64_t sum = 0;
    for (int round = 0; round < 10; round++) {
        char *at = map(SIZE);
        for (int i = 0; i < SIZE; i += 4096) at[i] = 1;
        sum += (uint64_t)at[SIZE - 4096];
        munmap(at, SIZE);
    }
    return sum;
}

static uint64_t churn(void) {
    uint64_t sum = 0;
    for (int round = 0; round < 15000; round++) {
        size_t size = 4096u << (round % 5);
        char *at = map(size);
        at[0] = (char)round, at[size - 1] = 1;
        sum += (uint64_t)(unsigned char)at[0];
        munmap(at, size);
    }
    return sum;
}

static char *guarded;
static volatile uint64_t caught;

static void on_fault(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    char *page = (char *)((uintptr_t)info->si_addr & ~(uintptr_t)4095);
    if (page < guarded || page >= guarded + 16 * 4096 || mprotect(page, 4096, PROT_READ | PROT_WRITE)) _exit(1);
    caught++;
}

static uint64_t signals(void) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    sigaction(SIGSEGV, &action, NULL);
    guarded = map(16 * 4096);
    for (int i = 0; i < 20000; i++) {
        char *page = guarded + (i & 15) * 4096;
        if (mprotect(page, 4096, PROT_NONE)) broken("mprotect");
        ((volatile char *)page)[i & 4095] = 1;
    }
    return caught;
}

static uint64_t files(void) {
    uint64_t sum = 0;
    char name[64], other[64], data[8192];
    memset(data, 1, sizeof data);
    if (mkdir("/dev/shm/viv-bench", 0700)) broken("/dev/shm/viv-bench");
    for (int i = 0; i < 12000; i++) {
        snprintf(name, sizeof name, "/dev/shm/viv-bench/file%d", i % 100);
        snprintf(other, sizeof other, "/dev/shm/viv-bench/other%d", i % 7);
        int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
        sum += write(fd, data, sizeof data) == sizeof data;
        sum += lseek(fd, 4096, SEEK_SET) == 4096 && read(fd, data, sizeof data) == 4096;
        sum += fchmod(fd, 0644) == 0;
        close(fd);
        struct stat about;
        sum += stat(name, &about) == 0 && about.st_size == sizeof data;
        sum += rename(name, other) == 0;
        if (i % 3 == 0) unlink(other);
    }
    for (int i = 0; i < 7; i++) {
        snprintf(other, sizeof other, "/dev/shm/viv-bench/other%d", i);
        unlink(other);
    }
    rmdir("/dev/shm/viv-bench");
    return sum;
}

const struct load kernel[] = {{"syscalls", NULL, syscalls}, {"pipe1", NULL, one_cpu}, {"pipe2", NULL, two_cpus},
                              {"forkexec", NULL, forkexec}, {"touch", NULL, touch}, {"churn", NULL, churn},
                              {"signals", NULL, signals},   {"files", NULL, files}, {0}};
