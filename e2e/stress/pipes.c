/* Bytes through a chain of processes: what comes out has the checksum of what went in. */
#include "stress.h"
#include <sys/wait.h>
#include <unistd.h>

enum { HOPS = 3, BYTES = 1 << 20 };

static uint64_t add(uint64_t sum, const unsigned char *bytes, ssize_t count) {
    for (ssize_t n = 0; n < count; n++) sum = (sum ^ bytes[n]) * 0x100000001b3;
    return sum;
}

static void write_all(int to, const unsigned char *bytes, ssize_t count) {
    while (count > 0) {
        ssize_t done = write(to, bytes, count);
        if (done < 0) failed("write");
        bytes += done;
        count -= done;
    }
}

/* Sends so many bytes in pieces of any size; their sum. */
static uint64_t send_bytes(int to, uint64_t random) {
    static unsigned char bytes[9000];
    uint64_t sum = 0;
    for (int left = BYTES; left > 0;) {
        int piece = 1 + draw(&random) % (sizeof bytes - 1);
        if (piece > left) piece = left;
        for (int n = 0; n < piece; n++) bytes[n] = draw(&random);
        sum = add(sum, bytes, piece);
        write_all(to, bytes, piece);
        left -= piece;
    }
    return sum;
}

static void pass_on(int from, int to, uint64_t random) {
    unsigned char bytes[5000];
    ssize_t got;
    while ((got = read(from, bytes, 1 + draw(&random) % sizeof bytes)) > 0) write_all(to, bytes, got);
    if (got < 0) failed("read");
}

void pipes(void) {
    uint64_t random = 3;
    do {
        uint64_t key = draw(&random);
        int first[2];
        if (pipe(first)) failed("pipe");
        int from = first[0];
        for (int hop = 0; hop < HOPS; hop++) {
            int next[2];
            if (pipe(next)) failed("pipe");
            pid_t pid = fork();
            if (pid < 0) failed("fork");
            if (pid == 0) {
                close(first[1]);
                close(next[0]);
                pass_on(from, next[1], key + hop);
                _exit(0);
            }
            close(from);
            close(next[1]);
            from = next[0];
        }
        int sums[2];
        if (pipe(sums)) failed("pipe");
        pid_t sender = fork();
        if (sender < 0) failed("fork");
        if (sender == 0) {
            close(from);
            uint64_t sum = send_bytes(first[1], key);
            write_all(sums[1], (unsigned char *)&sum, sizeof sum);
            _exit(0);
        }
        close(first[1]);
        uint64_t sum = 0, total = 0, expected = 0;
        static unsigned char bytes[65536];
        ssize_t got;
        while ((got = read(from, bytes, sizeof bytes)) > 0) {
            sum = add(sum, bytes, got);
            total += got;
        }
        if (got < 0) failed("read");
        if (read(sums[0], &expected, sizeof expected) != sizeof expected) failed("read of the sum");
        expect("bytes through pipes", BYTES, total);
        expect("the sum of bytes through pipes", expected, sum);
        close(from);
        close(sums[0]);
        close(sums[1]);
        for (int n = 0; n <= HOPS; n++) {
            int status;
            if (wait(&status) < 0) failed("wait");
            expect("a process of the chain", 0, status);
        }
    } while (going());
}
