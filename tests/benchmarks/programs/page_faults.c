/* The guest program of the page-fault benchmark. Freestanding: it is sent over a serial line.
 *
 *   page_faults fill MIB             write to every page of MIB MiB once, and end
 *   page_faults base|huge TASKS MS   TASKS processes map, touch page for page, and unmap 64 MiB,
 *                                    with 4 KiB pages or transparent huge ones, for MS ms
 *
 * Prints the pages and the nanoseconds that they took, over all tasks. x86-64 only.
 */
typedef unsigned long u64;

#define PAGE 4096UL
#define HUGE (2UL << 20)
#define AREA (64UL << 20)

enum { WRITE = 1, MMAP = 9, MUNMAP = 11, MADVISE = 28, FORK = 57, EXIT = 60, WAIT4 = 61,
       CLOCK_GETTIME = 228 };
enum { READ_WRITE = 3, SHARED_ANONYMOUS = 0x21, PRIVATE_ANONYMOUS = 0x22, HUGEPAGE = 14,
       NOHUGEPAGE = 15, MONOTONIC = 1 };

static long call(long number, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f) {
    register u64 r10 __asm__("r10") = d;
    register u64 r8 __asm__("r8") = e;
    register u64 r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static u64 now(void) {
    u64 time[2];
    call(CLOCK_GETTIME, MONOTONIC, (u64)time, 0, 0, 0, 0);
    return time[0] * 1000000000UL + time[1];
}

static char *map(u64 length, int kind) {
    long address = call(MMAP, 0, length, READ_WRITE, kind, -1UL, 0);
    if (address < 0)
        call(EXIT, 1, 0, 0, 0, 0, 0);
    return (char *)address;
}

static void touch(volatile char *memory, u64 length) {
    for (u64 at = 0; at < length; at += PAGE)
        memory[at] = 1;
}

static void print(u64 value, char end) {
    char text[24];
    int at = sizeof(text);
    text[--at] = end;
    do
        text[--at] = '0' + value % 10;
    while (value /= 10);
    call(WRITE, 1, (u64)(text + at), sizeof(text) - at, 0, 0, 0);
}

static u64 number(const char *text) {
    u64 value = 0;
    while (*text)
        value = value * 10 + *text++ - '0';
    return value;
}

static u64 fault(int advice, u64 until) {
    u64 pages = 0;
    while (now() < until) {
        char *memory = map(AREA + HUGE, PRIVATE_ANONYMOUS);
        char *aligned = (char *)(((u64)memory + HUGE - 1) & -HUGE);
        call(MADVISE, (u64)aligned, AREA, advice, 0, 0, 0);
        touch(aligned, AREA);
        call(MUNMAP, (u64)memory, AREA + HUGE, 0, 0, 0, 0);
        pages += AREA / PAGE;
    }
    return pages;
}

static void run(int advice, u64 tasks, u64 milliseconds) {
    volatile u64 *counts = (u64 *)map(PAGE, SHARED_ANONYMOUS);
    u64 started = now(), pages = 0;
    for (u64 task = 0; task < tasks; task++)
        if (!call(FORK, 0, 0, 0, 0, 0, 0)) {
            counts[task] = fault(advice, started + milliseconds * 1000000UL);
            call(EXIT, 0, 0, 0, 0, 0, 0);
        }
    for (u64 task = 0; task < tasks; task++)
        call(WAIT4, -1UL, 0, 0, 0, 0, 0);
    for (u64 task = 0; task < tasks; task++)
        pages += counts[task];
    print(pages, ' ');
    print(now() - started, '\n');
}

__attribute__((used)) static void start(u64 *stack) {
    char **arguments = (char **)(stack + 1);
    if (*stack == 3) {
        u64 length = number(arguments[2]) << 20, started = now();
        touch(map(length, PRIVATE_ANONYMOUS), length);
        print(length / PAGE, ' ');
        print(now() - started, '\n');
    } else if (*stack == 4) {
        int advice = arguments[1][0] == 'h' ? HUGEPAGE : NOHUGEPAGE;
        run(advice, number(arguments[2]), number(arguments[3]));
    } else {
        call(EXIT, 2, 0, 0, 0, 0, 0);
    }
    call(EXIT, 0, 0, 0, 0, 0, 0);
}

__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call start\n");
