/* Loads that are programs: Debian's gzip, xz and busybox, and interpreters linked with Debian's libraries.
 * Their paths are relative: the working directory is the guest's root directory, or its copy on the host. */
#include "bench.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define LOADER "lib/ld-linux-x86-64.so.2", "--library-path", "lib"
#define TEXT "/dev/shm/viv-bench-text"

static char output[16 << 20];

/* Runs a program, into `file` if there is one, and gives a checksum of what it prints. */
static uint64_t program(const char *file, const char *const arguments[]) {
    int out[2];
    if (pipe(out)) broken("pipe");
    pid_t child = fork();
    if (!child) {
        if (file) dup2(open(file, O_WRONLY | O_CREAT | O_TRUNC, 0600), 1);
        else dup2(out[1], 1);
        close(out[0]), close(out[1]);
        setenv("PATH", "bin", 1);
        execv(arguments[0], (char *const *)arguments);
        _exit(127);
    }
    close(out[1]);
    size_t size = 0;
    for (ssize_t some; size < sizeof output && (some = read(out[0], output + size, sizeof output - size)) > 0;)
        size += (size_t)some;
    close(out[0]);
    int status = 1;
    waitpid(child, &status, 0);
    if (status) {
        printf("%s ended with %x\n", arguments[3], status);
        exit(1);
    }
    uint64_t sum = size, word;
    for (size_t at = 0; at + 8 <= size; at += 8) memcpy(&word, output + at, 8), sum = (sum ^ word) * 0x100000001b3u;
    return sum;
}

static void text_prepare(void) {
    program(TEXT, (const char *const[]){LOADER, "bin/xz", "-dc", "data/text.xz", NULL});
}
static uint64_t gzip(void) {
    uint64_t sum = program(NULL, (const char *const[]){LOADER, "bin/gzip", "-nc", TEXT, NULL});
    unlink(TEXT);
    return sum;
}
static uint64_t xz(void) {
    uint64_t sum = 0;
    for (int i = 0; i < 3; i++)
        sum += program(NULL, (const char *const[]){LOADER, "bin/xz", "-dc", "data/text.xz", NULL});
    return sum;
}
static uint64_t lua(void) { return program(NULL, (const char *const[]){"bin/lua", "data/interpreted.lua", "", "", NULL}); }
static uint64_t luajit(void) { return program(NULL, (const char *const[]){"bin/luajit", "data/jitted.lua", "", "", NULL}); }
static uint64_t sqlite(void) { return program(NULL, (const char *const[]){"bin/sqlite", "", "", "", NULL}); }
static uint64_t shell(void) {
    return program(NULL, (const char *const[]){"bin/busybox", "sh", "data/script.sh", "", NULL});
}

const struct load programs[] = {{"gzip", text_prepare, gzip}, {"xz", NULL, xz},         {"lua", NULL, lua},
                                {"luajit", NULL, luajit},     {"sqlite", NULL, sqlite}, {"shell", NULL, shell}, {0}};
