// What a guest does while it is saved, forked and put back: 256 disk requests in flight, TCP connections, a stream on a console port; and
// what it sees of who it is. It checks itself: what it was told to be written must be there.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <net/ethernet.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <netpacket/packet.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define DEPTH 256
#define PLACES 8
#define BLOCK 4096

static void die(const char *what) {
    printf("WRONG: %s: %s\n", what, strerror(errno));
    fflush(stdout);
    exit(1);
}

// The content of a block: who wrote it and when, and numbers that follow from that.
static void fill(uint64_t *block, uint64_t slot, uint64_t turn) {
    uint64_t state = slot * 0x9e3779b97f4a7c15u ^ (turn + 1) * 0xbf58476d1ce4e5b9u;
    block[0] = slot;
    block[1] = turn;
    for (size_t at = 2; at < BLOCK / 8; at++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        block[at] = state;
    }
}

// Each slot writes a block, and when it is told that this is done reads it back and compares it, in turn to each of its places. All
// 256 are on their way at any time. When `stop` is there, what is on its way comes back, and all that was written is read once more.
static int disk(const char *path, const char *stop) {
    static struct iocb requests[DEPTH];
    static uint64_t turns[DEPTH];
    static int reads[DEPTH];
    int file = open(path, O_RDWR | O_DIRECT);
    if (file < 0) die(path);
    uint64_t *blocks = NULL, *expected = NULL;
    if (posix_memalign((void **)&blocks, BLOCK, DEPTH * BLOCK) || posix_memalign((void **)&expected, BLOCK, BLOCK)) die("memory");
    aio_context_t context = 0;
    if (syscall(SYS_io_setup, DEPTH, &context) < 0) die("io_setup");
    int in_flight = 0;
    uint64_t written = 0;
    struct io_event events[DEPTH];
    for (int slot = 0; slot < DEPTH; slot++) {
        struct iocb *one = &requests[slot];
        one->aio_fildes = file;
        one->aio_data = slot;
        one->aio_nbytes = BLOCK;
        one->aio_buf = (uintptr_t)(blocks + slot * BLOCK / 8);
        one->aio_lio_opcode = IOCB_CMD_PWRITE;
        one->aio_offset = (int64_t)slot * PLACES * BLOCK;
        fill((uint64_t *)one->aio_buf, slot, 0);
        if (syscall(SYS_io_submit, context, 1, &one) != 1) die("io_submit");
        in_flight++;
    }
    puts("all in flight");
    fflush(stdout);
    while (in_flight) {
        int over = access(stop, F_OK) == 0;
        int count = syscall(SYS_io_getevents, context, 1, DEPTH, events, NULL);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) die("io_getevents");
        for (int at = 0; at < count; at++) {
            int slot = events[at].data;
            struct iocb *one = &requests[slot];
            uint64_t *block = (uint64_t *)one->aio_buf;
            if (events[at].res != BLOCK) {
                errno = -events[at].res;
                die("a request");
            }
            if (reads[slot]) {
                fill(expected, slot, turns[slot]);
                if (memcmp(block, expected, BLOCK)) die("what was read is not what was written");
                turns[slot]++;
            } else {
                written++;
            }
            in_flight--;
            // Only what has been read back has its turn counted.
            if (over && reads[slot]) continue;
            reads[slot] = !reads[slot];
            one->aio_lio_opcode = reads[slot] ? IOCB_CMD_PREAD : IOCB_CMD_PWRITE;
            one->aio_offset = ((int64_t)slot * PLACES + turns[slot] % PLACES) * BLOCK;
            if (reads[slot]) memset(block, 0, BLOCK);
            else fill(block, slot, turns[slot]);
            if (syscall(SYS_io_submit, context, 1, &one) != 1) die("io_submit");
            in_flight++;
        }
    }
    uint64_t checked = 0;
    for (uint64_t slot = 0; slot < DEPTH; slot++) {
        for (uint64_t back = 1; back <= PLACES && back <= turns[slot]; back++) {
            uint64_t turn = turns[slot] - back;
            if (pread(file, blocks, BLOCK, ((int64_t)slot * PLACES + turn % PLACES) * BLOCK) != BLOCK) die("pread");
            fill(expected, slot, turn);
            if (memcmp(blocks, expected, BLOCK)) die("an acknowledged write is not there");
            checked++;
        }
    }
    printf("good %llu written, %llu blocks there\n", (unsigned long long)written, (unsigned long long)checked);
    return 0;
}

static int connected(const char *address, int port) {
    int end = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = inet_addr(address)};
    if (end < 0 || connect(end, (struct sockaddr *)&to, sizeof to)) die("connect");
    return end;
}

// Takes one connection after the other, and says what comes: numbers, in a row, sent back each.
static int serve(int port) {
    int door = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (door < 0 || bind(door, (struct sockaddr *)&here, sizeof here) || listen(door, 8)) die("listen");
    for (int connection = 0;; connection++) {
        int end = accept(door, NULL, NULL);
        if (end < 0) die("accept");
        if (fork()) {
            close(end);
            continue;
        }
        uint32_t number, next = 0;
        while (recv(end, &number, sizeof number, MSG_WAITALL) == sizeof number) {
            if (number != next) {
                printf("WRONG: %u instead of %u on connection %d\n", number, next, connection);
                fflush(stdout);
            }
            next = number + 1;
            if (send(end, &number, sizeof number, MSG_NOSIGNAL) != sizeof number) break;
            printf("%d %u\n", connection, number);
            fflush(stdout);
        }
        printf("end of %d after %u\n", connection, next);
        fflush(stdout);
        exit(0);
    }
}

// Sends one number after the other, each when the one before has come back, and says how it ends.
static int flow(const char *address, int port) {
    int end = connected(address, port), limit = 5000;
    setsockopt(end, IPPROTO_TCP, TCP_USER_TIMEOUT, &limit, sizeof limit);
    for (uint32_t number = 0, back;; number++) {
        if (send(end, &number, sizeof number, MSG_NOSIGNAL) != sizeof number) break;
        ssize_t got = recv(end, &back, sizeof back, MSG_WAITALL);
        if (got == 0) errno = 0;
        if (got != sizeof back) break;
        if (back != number) die("another number came back");
        printf("%u\n", number);
        fflush(stdout);
        usleep(20000);
    }
    printf("ended: %s\n", errno ? strerror(errno) : "closed");
    fflush(stdout);
    return 0;
}

// Writes one number after the other.
static _Noreturn void stream(const char *path) {
    int end = open(path, O_WRONLY);
    if (end < 0) die(path);
    for (unsigned number = 0;; number++) {
        char line[16];
        int len = snprintf(line, sizeof line, "%u\n", number);
        for (int at = 0; at < len;) {
            ssize_t put = write(end, line + at, len - at);
            if (put < 0 && errno != EINTR && errno != EAGAIN) die("write");
            if (put > 0) at += put;
        }
        usleep(2000);
    }
}

static void hex(const char *name, const void *bytes, size_t len) {
    printf("%s ", name);
    for (size_t at = 0; at < len; at++) printf("%02x", ((const unsigned char *)bytes)[at]);
    puts("");
}

// What no two VMs have in common: random numbers, and the initial sequence number of a connection from this card.
static int who(const char *card, const char *address) {
    unsigned char bytes[16];
    if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes) die("getrandom");
    hex("getrandom", bytes, sizeof bytes);
    int random = open("/dev/urandom", O_RDONLY);
    if (random < 0 || read(random, bytes, sizeof bytes) != sizeof bytes) die("urandom");
    hex("urandom", bytes, sizeof bytes);
    int seen = socket(AF_PACKET, SOCK_DGRAM, htons(ETH_P_ALL));
    struct timeval limit = {.tv_sec = 10};
    if (seen < 0) die("AF_PACKET");
    setsockopt(seen, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    int end = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(end, SOL_SOCKET, SO_BINDTODEVICE, card, strlen(card));
    // The same everywhere, so that the secret alone, the address and the time tell the numbers apart.
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_port = htons(40001)};
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = inet_addr(address)};
    if (bind(end, (struct sockaddr *)&from, sizeof from)) die("bind");
    if (connect(end, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) die("connect");
    for (;;) {
        unsigned char packet[2048];
        ssize_t len = recv(seen, packet, sizeof packet, 0);
        if (len < 0) die("no SYN is seen");
        struct iphdr *ip = (struct iphdr *)packet;
        if ((size_t)len < sizeof *ip + sizeof(struct tcphdr) || ip->version != 4 || ip->protocol != IPPROTO_TCP) continue;
        struct tcphdr *tcp = (struct tcphdr *)(packet + ip->ihl * 4);
        if (tcp->dest != to.sin_port || !tcp->syn) continue;
        printf("sequence %08x\n", ntohl(tcp->seq));
        hex("address", &ip->saddr, 4);
        return 0;
    }
}

int main(int count, char **words) {
    if (count == 4 && !strcmp(words[1], "disk")) return disk(words[2], words[3]);
    if (count == 3 && !strcmp(words[1], "serve")) return serve(atoi(words[2]));
    if (count == 4 && !strcmp(words[1], "flow")) return flow(words[2], atoi(words[3]));
    if (count == 3 && !strcmp(words[1], "stream")) stream(words[2]);
    if (count == 4 && !strcmp(words[1], "who")) return who(words[2], words[3]);
    fputs("load disk DEVICE STOP | serve PORT | flow ADDRESS PORT | stream PORT | who CARD ADDRESS\n", stderr);
    return 2;
}
