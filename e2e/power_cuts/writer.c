/* Writes to file systems and says what they have acknowledged as durable: for `e2e/tests/power_cuts.rs`.
 *
 *   writer DIR FIRST [DIR FIRST ...]
 *
 * In each DIR, from record FIRST on: appends record n to `log`, fsync, and for each eighth also replaces a file by
 * another one with rename, fsync of the directory. Only then it prints "DIR n". Beside that a process writes much
 * that nobody waits for.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RECORD = 64, SLOTS = 40, JUNK = 8 << 20 };

static void must(int ok, const char *what) {
    if (!ok) {
        perror(what);
        exit(1);
    }
}

static void record(char *text, long n) {
    memset(text, '.', RECORD);
    text[sprintf(text, "%012ld", n)] = ' ';
    text[RECORD - 1] = '\n';
}

static void replace(const char *dir, long n) {
    char name[256], temporary[256], text[RECORD];
    snprintf(name, sizeof name, "%s/slot-%ld", dir, n / 8 % SLOTS);
    snprintf(temporary, sizeof temporary, "%s/new", dir);
    int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    must(fd >= 0, temporary);
    record(text, n);
    must(write(fd, text, RECORD) == RECORD && fsync(fd) == 0 && close(fd) == 0, temporary);
    must(rename(temporary, name) == 0, name);
    int parent = open(dir, O_RDONLY);
    must(parent >= 0 && fsync(parent) == 0 && close(parent) == 0, dir);
}

/* Overwrites a file in pieces of all sizes and cuts it off now and then, for ever. */
static void junk(const char *dir) {
    static char bytes[64 << 10];
    char name[256];
    snprintf(name, sizeof name, "%s/junk", dir);
    int fd = open(name, O_WRONLY | O_CREAT, 0644);
    must(fd >= 0, name);
    for (unsigned long seed = 1;; seed = seed * 6364136223846793005ul + 1442695040888963407ul) {
        long at = (long)(seed >> 33) % JUNK, len = (long)(seed >> 20) % (long)sizeof bytes;
        memset(bytes, (int)(seed >> 40), sizeof bytes);
        must(pwrite(fd, bytes, (size_t)len, at) == len, name);
        if (seed >> 58 == 0) must(ftruncate(fd, at) == 0, name);
        usleep(2000);
    }
}

int main(int argc, char **argv) {
    int dirs = (argc - 1) / 2, logs[8];
    long next[8];
    must(dirs > 0 && dirs <= 8, "arguments");
    for (int d = 0; d < dirs; d++) {
        char name[256];
        snprintf(name, sizeof name, "%s/log", argv[1 + 2 * d]);
        next[d] = atol(argv[2 + 2 * d]);
        logs[d] = open(name, O_WRONLY | O_CREAT | O_APPEND, 0644);
        must(logs[d] >= 0 && ftruncate(logs[d], (next[d] - 1) * RECORD) == 0, name);
        if (fork() == 0) junk(argv[1 + 2 * d]);
    }
    for (;;) {
        for (int d = 0; d < dirs; d++, next[d - 1]++) {
            char text[RECORD], line[300];
            record(text, next[d]);
            must(write(logs[d], text, RECORD) == RECORD && fsync(logs[d]) == 0, "log");
            if (next[d] % 8 == 0) replace(argv[1 + 2 * d], next[d]);
            int len = snprintf(line, sizeof line, "%s %ld\n", argv[1 + 2 * d], next[d]);
            must(write(1, line, (size_t)len) == len, "standard output");
        }
    }
}
