/* A process that maps a guest's memory beside the benchmark: usage host_memory FD BYTES.
 *
 * It reads "VERB N" and N lines "OFFSET LENGTH" (bytes of the file), does what the verb says, and
 * answers with the nanoseconds that it took. Between commands it sleeps in read(2), as a halted
 * vCPU.
 *
 *   touch    write to every page, as a guest that uses them
 *   huge     ask for huge pages: madvise(MADV_HUGEPAGE)
 *   punch    punch holes, one fallocate each
 *   remove   punch holes, one process_madvise(MADV_REMOVE) of its own mapping for all lines up to
 *            one with length 0, or for 1,024 of them; answers -1 if the kernel refuses that, as
 *            before Linux 6.13
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096L
#define HUGE (2L << 20)
#define MOST 1024L /* UIO_MAXIOV */

static char *memory;
static int fd, self;

static long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000L + time.tv_nsec;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

/* Aligned as QEMU aligns guest memory: huge pages can be mapped. */
static char *map(long length) {
    char *place = mmap(NULL, length + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (place == MAP_FAILED)
        fail("mmap");
    place = (char *)(((long)place + HUGE - 1) & -HUGE);
    if (mmap(place, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED)
        fail("mmap");
    return place;
}

static void touch(const struct iovec *range) {
    volatile char *start = range->iov_base;
    for (size_t at = 0; at < range->iov_len; at += PAGE)
        start[at] = 0x5a;
}

static void huge(const struct iovec *range) {
    if (madvise(range->iov_base, range->iov_len, MADV_HUGEPAGE))
        fail("madvise");
}

static void punch(const struct iovec *range) {
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    if (fallocate(fd, mode, (char *)range->iov_base - memory, range->iov_len))
        fail("fallocate");
}

/* Whether the kernel can. */
static int removed(const struct iovec *ranges, long count) {
    long size = 0;
    for (long i = 0; i < count; i++)
        size += ranges[i].iov_len;
    long done = syscall(SYS_process_madvise, self, ranges, count, MADV_REMOVE, 0);
    if (done < 0 && (errno == ENOSYS || errno == EPERM || errno == EINVAL))
        return 0;
    if (done != size)
        fail("process_madvise");
    return 1;
}

static int remove_all(const struct iovec *list, long count) {
    long first = 0;
    for (long i = 0; i < count; i++)
        if (!list[i].iov_len || i - first == MOST - 1) {
            if (!removed(list + first, i + 1 - first))
                return 0;
            first = i + 1;
        }
    return 1;
}

static int obey(const char *verb, const struct iovec *list, long count) {
    void (*each)(const struct iovec *) = NULL;
    if (!strcmp(verb, "remove"))
        return remove_all(list, count);
    if (!strcmp(verb, "touch"))
        each = touch;
    else if (!strcmp(verb, "huge"))
        each = huge;
    else if (!strcmp(verb, "punch"))
        each = punch;
    else
        exit(2);
    for (long i = 0; i < count; i++)
        each(&list[i]);
    return 1;
}

int main(int count, char **arguments) {
    char verb[16];
    long ranges;
    if (count != 3)
        return 2;
    fd = atoi(arguments[1]);
    memory = map(atol(arguments[2]));
    self = syscall(SYS_pidfd_open, getpid(), 0);
    while (scanf("%15s %ld", verb, &ranges) == 2) {
        struct iovec *list = calloc(ranges, sizeof(*list));
        for (long i = 0, offset; i < ranges; i++) {
            if (scanf("%ld %zu", &offset, &list[i].iov_len) != 2)
                return 2;
            list[i].iov_base = memory + offset;
        }
        long started = now();
        int done = obey(verb, list, ranges);
        printf("%ld\n", done ? now() - started : -1);
        fflush(stdout);
        free(list);
    }
    return 0;
}
