/* A process that maps a guest's memory beside the benchmark: usage host_memory FD BYTES.
 *
 * "touch N" and N lines "OFFSET LENGTH" write to every page, as a guest that uses them; then the
 * process sleeps in read(2), as a halted vCPU. "punch N" and N such lines punch those holes, one
 * system call each: the kernel's own cost. Each command is answered by the nanoseconds it took.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

struct range {
    long offset, length;
};

static long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000L + time.tv_nsec;
}

static void touch(volatile char *memory, const struct range *range) {
    for (long at = range->offset; at < range->offset + range->length; at += 4096)
        memory[at] = 0x5a;
}

static void punch(int fd, const struct range *range) {
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    if (fallocate(fd, mode, range->offset, range->length)) {
        perror("fallocate");
        exit(1);
    }
}

int main(int count, char **arguments) {
    char verb[16];
    long ranges;
    if (count != 3)
        return 2;
    int fd = atoi(arguments[1]);
    char *memory = mmap(NULL, atol(arguments[2]), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    while (scanf("%15s %ld", verb, &ranges) == 2) {
        struct range *list = calloc(ranges, sizeof(*list));
        for (long i = 0; i < ranges; i++)
            if (scanf("%ld %ld", &list[i].offset, &list[i].length) != 2)
                return 2;
        long started = now();
        for (long i = 0; i < ranges; i++)
            strcmp(verb, "touch") ? punch(fd, &list[i]) : touch(memory, &list[i]);
        printf("%ld\n", now() - started);
        fflush(stdout);
        free(list);
    }
    return 0;
}
