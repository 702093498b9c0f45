/* The loads of `cargo xtask bench`: as the init of a guest, or as a program on the host.
 *
 * The rows to run are in the variable `rows` (the kernel gives init the unknown words of its command line).
 * Each runs in a process of its own, which prints "begin NAME" and "end NAME CHECKSUM MICROSECONDS" around it, the
 * latter the processor time that the load itself sees. After each mark it sleeps, so that the host can read the
 * virtual machine's clock before it goes on. */
#include "bench.h"
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

uint32_t seed = 1;

uint64_t sum_bytes(uint64_t sum, const void *bytes, size_t size) {
    const unsigned char *at = bytes;
    for (size_t i = 0; i < size; i++) sum = (sum ^ at[i]) * 0x100000001b3u;
    return sum;
}

void broken(const char *what) {
    perror(what);
    exit(1);
}

static int64_t microseconds(int who) {
    struct rusage usage;
    getrusage(who, &usage);
    return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * INT64_C(1000000) + usage.ru_utime.tv_usec +
           usage.ru_stime.tv_usec;
}

static int64_t used(void) { return microseconds(RUSAGE_SELF) + microseconds(RUSAGE_CHILDREN); }

static void mark(const char *text) {
    if (write(1, text, strlen(text)) < 0) exit(1);
    struct timespec pause = {0, 60000000};
    nanosleep(&pause, NULL);
}

static void measure(const struct load *load) {
    char text[128];
    if (load->prepare) load->prepare();
    snprintf(text, sizeof text, "begin %s\n", load->name);
    mark(text);
    int64_t before = used();
    uint64_t sum = load->run();
    int64_t after = used();
    snprintf(text, sizeof text, "end %s %" PRIx64 " %" PRId64 "\n", load->name, sum, after - before);
    mark(text);
    exit(0);
}

static int wanted(const char *name) {
    const char *rows = getenv("rows");
    size_t length = strlen(name);
    for (const char *at = rows; at && (at = strstr(at, name)); at += length)
        if ((at == rows || at[-1] == ',') && (!at[length] || at[length] == ',')) return 1;
    return 0;
}

static void run_group(const struct load *load) {
    for (; load->name; load++) {
        if (!wanted(load->name)) continue;
        pid_t child = fork();
        if (!child) measure(load);
        int status = 1;
        waitpid(child, &status, 0);
        if (status) printf("fail %s %s %d\n", load->name, WIFSIGNALED(status) ? "signal" : "status",
                           WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    }
}

static void set_up(void) {
    mkdir("/dev", 0755), mkdir("/proc", 0755);
    mount("none", "/dev", "devtmpfs", 0, NULL);
    mount("none", "/proc", "proc", 0, NULL);
    mkdir("/dev/shm", 0755);
    mount("none", "/dev/shm", "tmpfs", 0, NULL);
    int console = open("/dev/console", O_RDWR);
    dup2(console, 0), dup2(console, 1), dup2(console, 2);
}

/* The text that is packed and unpacked: words of a made-up language, common ones often. */
static void print_text(void) {
    char words[4096][12];
    for (int i = 0; i < 4096; i++) {
        int length = 2 + (int)(next() % 9);
        for (int at = 0; at < length; at++) words[i][at] = "etaoinshrdlucmfwypvbgkjqxz"[next() % (5 + next() % 22)];
        words[i][length] = 0;
    }
    for (int size = 0; size < 8 << 20;) {
        uint32_t rank = next() % 4096;
        for (int often = (int)(next() % 4); often > 0; often--) rank = next() % (rank + 1);
        size += printf("%s%s", words[rank], next() % 11 ? " " : next() % 5 ? ", " : ".\n");
    }
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "exit")) return 0;
    if (argc > 1 && !strcmp(argv[1], "text")) return print_text(), 0;
    int guest = getpid() == 1;
    if (guest) set_up();
    setvbuf(stdout, NULL, _IONBF, 0);
    if (guest) mark("\nbooted\n");
    run_group(compute), run_group(numbers), run_group(memory), run_group(kernel), run_group(programs);
    if (!guest) return 0;
    mark("finished\n");
    sync();
    reboot(RB_POWER_OFF);
    return 1;
}
