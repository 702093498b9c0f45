/* Storms of processes: each ends with a status that says what it is, and all are summed. */
#include "stress.h"
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CHILDREN = 12, GRANDCHILDREN = 3 };

/* Waits for so many children: the sum of their statuses. */
static uint64_t wait_all(int count) {
    uint64_t sum = 0;
    for (int n = 0; n < count; n++) {
        int status;
        if (wait(&status) < 0) failed("wait");
        if (!WIFEXITED(status)) wrong("how a child ended", 0, status);
        sum += WEXITSTATUS(status);
    }
    return sum;
}

int forked(const char *argument) { return atoi(argument) ^ 0x55; }

static void child(int number) {
    char text[16];
    snprintf(text, sizeof text, "%d", number);
    if (number % 3 == 0) {
        execl("/proc/self/exe", "stress", "forked", text, (char *)NULL);
        failed("execl");
    }
    if (number % 3 == 1) {
        for (int n = 0; n < GRANDCHILDREN; n++) {
            pid_t pid = fork();
            if (pid < 0) failed("fork");
            if (pid == 0) _exit(number + n);
        }
        expect("the grandchildren's statuses", (uint64_t)GRANDCHILDREN * number + 3, wait_all(GRANDCHILDREN));
    }
    _exit(number ^ 0x55);
}

void forks(void) {
    uint64_t random = 1;
    do {
        uint64_t expected = 0;
        for (int n = 0; n < CHILDREN; n++) {
            int number = draw(&random) % 100;
            expected += number ^ 0x55;
            pid_t pid = fork();
            if (pid < 0) failed("fork");
            if (pid == 0) child(number);
        }
        expect("the children's statuses", expected, wait_all(CHILDREN));
    } while (going());
}
