/* Page tables that change all the time: mappings come, go, move, lose permissions and are copied on write, by threads of one
 * address space at once. What is in a page is what was written there, or zero. */
#define _GNU_SOURCE
#include "stress.h"
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { THREADS = 3, PAGE = 4096, MOST = 64 };

static uint64_t stamp(uint64_t key, size_t page) { return (key ^ page) * 0x9e3779b97f4a7c15; }

static void fill(char *at, size_t pages, uint64_t key) {
    for (size_t n = 0; n < pages; n++) {
        uint64_t *words = (uint64_t *)(at + n * PAGE);
        words[0] = stamp(key, n);
        words[PAGE / 8 - 1] = ~stamp(key, n);
    }
}

static void check(const char *what, const char *at, size_t pages, uint64_t key) {
    for (size_t n = 0; n < pages; n++) {
        const uint64_t *words = (const uint64_t *)(at + n * PAGE);
        expect(what, stamp(key, n), words[0]);
        expect(what, ~stamp(key, n), words[PAGE / 8 - 1]);
    }
}

static char *map(size_t pages) {
    char *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) failed("mmap");
    return at;
}

static void *work(void *argument) {
    uint64_t random = (uintptr_t)argument * 77 + getpid();
    for (int n = 0; n < 60; n++) {
        uint64_t key = draw(&random);
        size_t pages = 2 + key % MOST;
        char *at = map(pages);
        for (size_t page = 0; page < pages; page++) expect("a fresh page", 0, *(uint64_t *)(at + page * PAGE + 8));
        fill(at, pages, key);
        if (mprotect(at, pages * PAGE, PROT_READ)) failed("mprotect");
        check("a page that is read-only", at, pages, key);
        if (mprotect(at, pages * PAGE, PROT_READ | PROT_WRITE)) failed("mprotect");
        fill(at, pages, key + 1);
        char *moved = mremap(at, pages * PAGE, pages * PAGE * 2, MREMAP_MAYMOVE);
        if (moved == MAP_FAILED) failed("mremap");
        check("pages that moved", moved, pages, key + 1);
        /* In the middle a fresh page takes another's place: unmapped before, it would be free for other threads. */
        size_t hole = draw(&random) % pages;
        if (mmap(moved + hole * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
            MAP_FAILED)
            failed("mmap");
        expect("a page in a hole", 0, *(uint64_t *)(moved + hole * PAGE));
        check("pages before a hole", moved, hole, key + 1);
        ((uint64_t *)(moved + hole * PAGE))[0] = stamp(key + 1, hole);
        ((uint64_t *)(moved + hole * PAGE))[PAGE / 8 - 1] = ~stamp(key + 1, hole);
        if (madvise(moved, PAGE, MADV_DONTNEED)) failed("madvise");
        expect("a page that was given away", 0, *(uint64_t *)moved);
        if (munmap(moved, pages * PAGE * 2)) failed("munmap");
    }
    return NULL;
}

/* Copies on write: parent and child write the same pages. */
static void copies(uint64_t key) {
    char *at = map(MOST);
    fill(at, MOST, key);
    pid_t child = fork();
    if (child < 0) failed("fork");
    if (child == 0) {
        check("the parent's pages in the child", at, MOST, key);
        fill(at, MOST, key + 1);
        check("the child's own pages", at, MOST, key + 1);
        _exit(0);
    }
    fill(at, MOST / 2, key + 2);
    check("the parent's own pages", at, MOST / 2, key + 2);
    int status;
    if (waitpid(child, &status, 0) != child) failed("waitpid");
    expect("the child's status", 0, status);
    for (size_t n = MOST / 2; n < MOST; n++)
        expect("the parent's page after the child", stamp(key, n), *(uint64_t *)(at + n * PAGE));
    if (munmap(at, MOST * PAGE)) failed("munmap");
}

void pages(void) {
    uint64_t key = getpid();
    do {
        threads(THREADS, work);
        for (int n = 0; n < 8; n++) copies(draw(&key));
    } while (going());
}
