/* The loads of `cargo xtask bench`, as the init of a guest: five that compute, five that lean on the kernel.
 *
 * It prints "begin NAME" and "end NAME" on the console around each load, so that the host can measure the
 * virtual machine's processor time in between, and a checksum, so that both machines are seen to do the same. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static uint32_t seed = 1;
static uint32_t next(void) { return seed = seed * 1664525u + 1013904223u; }

static uint64_t integer(void) {
    uint64_t sum = 0;
    for (uint32_t i = 1; i < 30000000; i++) sum += (sum >> 3) ^ (i * 2654435761u);
    return sum;
}

struct node { struct node *left, *right; uint32_t key; };
static uint64_t branchy(void) {
    static struct node pool[100000];
    struct node *root = NULL;
    int used = 0;
    for (int i = 0; i < 100000; i++) {
        uint32_t key = next();
        struct node **at = &root;
        while (*at && (*at)->key != key) at = key < (*at)->key ? &(*at)->left : &(*at)->right;
        if (!*at) { pool[used].key = key; *at = &pool[used++]; }
    }
    uint64_t found = 0;
    for (int i = 0; i < 300000; i++) {
        uint32_t key = i & 1 ? pool[next() % used].key : next();
        struct node *at = root;
        while (at && at->key != key) at = key < at->key ? at->left : at->right;
        found += at != NULL;
    }
    return found;
}

/* SHA-256 (FIPS 180-4). */
static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }
static uint64_t sha256(void) {
    static uint32_t k[64];
    uint32_t h[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    for (int i = 0; i < 64; i++) k[i] = next();
    for (int block = 0; block < 20000; block++) {
        uint32_t w[64], s[8];
        for (int i = 0; i < 16; i++) w[i] = next();
        for (int i = 16; i < 64; i++)
            w[i] = w[i - 16] + w[i - 7] + (rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3) +
                   (rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10);
        memcpy(s, h, sizeof s);
        for (int i = 0; i < 64; i++) {
            uint32_t a = s[7] + (rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25)) +
                         ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
            uint32_t b = (rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22)) +
                         ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
            memmove(s + 1, s, 7 * sizeof *s);
            s[4] += a;
            s[0] = a + b;
        }
        for (int i = 0; i < 8; i++) h[i] += s[i];
    }
    return h[0];
}

static uint64_t matrix(void) {
    enum { N = 120 };
    static double a[N][N], b[N][N], c[N][N];
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) a[i][j] = i + j, b[i][j] = i - j;
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++) {
                double sum = 0;
                for (int k = 0; k < N; k++) sum += a[i][k] * b[k][j];
                c[i][j] = sum;
            }
    return (uint64_t)(int64_t)c[N / 2][N / 3];
}

static uint64_t copy(void) {
    enum { SIZE = 4 << 20 };
    char *a = malloc(SIZE), *b = malloc(SIZE);
    memset(a, 7, SIZE);
    for (int i = 0; i < 60; i++) {
        memcpy(b, a, SIZE);
        b[i]++;
        memcpy(a, b, SIZE);
    }
    uint64_t sum = 0;
    for (int i = 0; i < SIZE; i += 4096) sum += (unsigned char)a[i];
    free(a);
    free(b);
    return sum;
}

static uint64_t calls(void) {
    uint64_t sum = 0;
    for (int i = 0; i < 300000; i++) sum += syscall(SYS_getppid) == 0;
    return sum;
}

static uint64_t pipes(void) {
    int to[2], from[2];
    if (pipe(to) || pipe(from)) return 0;
    if (!fork()) {
        char byte;
        while (read(to[0], &byte, 1) == 1 && byte)
            if (write(from[1], &byte, 1) != 1) break;
        _exit(0);
    }
    uint64_t sum = 0;
    char byte = 1;
    for (int i = 0; i < 15000; i++) sum += write(to[1], &byte, 1) == 1 && read(from[0], &byte, 1) == 1;
    byte = 0;
    if (write(to[1], &byte, 1) != 1) sum = 0;
    wait(NULL);
    close(to[0]), close(to[1]), close(from[0]), close(from[1]);
    return sum;
}

static uint64_t forks(void) {
    uint64_t sum = 0;
    for (int i = 0; i < 250; i++) {
        pid_t child = fork();
        if (!child) {
            execl("/init", "init", "exit", NULL);
            _exit(1);
        }
        int status;
        sum += waitpid(child, &status, 0) == child && status == 0;
    }
    return sum;
}

static uint64_t faults(void) {
    enum { SIZE = 32 << 20 };
    uint64_t sum = 0;
    for (int i = 0; i < 5; i++) {
        char *a = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (int at = 0; at < SIZE; at += 4096) a[at] = 1;
        sum += a[SIZE - 4096];
        munmap(a, SIZE);
    }
    return sum;
}

static uint64_t files(void) {
    uint64_t sum = 0;
    char name[64], data[4096];
    memset(data, 1, sizeof data);
    for (int i = 0; i < 4000; i++) {
        snprintf(name, sizeof name, "/tmp/file%d", i % 100);
        int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
        sum += write(fd, data, sizeof data) == sizeof data;
        sum += lseek(fd, 0, SEEK_SET) == 0 && read(fd, data, sizeof data) == sizeof data;
        close(fd);
        struct stat about;
        sum += stat(name, &about) == 0 && about.st_size == sizeof data;
        unlink(name);
    }
    return sum;
}

static const struct { const char *name; uint64_t (*run)(void); } loads[] = {
    {"integer", integer}, {"branchy", branchy}, {"sha256", sha256}, {"matrix", matrix}, {"copy", copy},
    {"calls", calls},     {"pipes", pipes},     {"forks", forks},   {"faults", faults}, {"files", files},
};

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "exit")) return 0;
    mkdir("/dev", 0755);
    mkdir("/tmp", 0755);
    mount("none", "/dev", "devtmpfs", 0, NULL);
    mount("none", "/tmp", "tmpfs", 0, NULL);
    int console = open("/dev/console", O_RDWR);
    dup2(console, 0), dup2(console, 1), dup2(console, 2);
    setvbuf(stdout, NULL, _IONBF, 0);
    printf("\nend boot 0\n");
    for (unsigned i = 0; i < sizeof loads / sizeof *loads; i++) {
        printf("begin %s\n", loads[i].name);
        printf("end %s %llx\n", loads[i].name, (unsigned long long)loads[i].run());
    }
    sync();
    reboot(RB_POWER_OFF);
    return 0;
}
