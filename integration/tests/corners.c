/* Large mappings that a lazy dump leaves in their task, in every state that their pages can be in. On SIGUSR1 each is looked at. */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

enum { PAGE = 4096, PAGES = 4096, STACK = 32 << 20, DEEP = 12 << 20 };

static unsigned char *scattered, *guarded, *dropped, *shared, *locked_beside;
static int has_guard;
static int wrong;
static sigjmp_buf out;
static volatile sig_atomic_t asked;
static int deep_is_right;
static pthread_barrier_t met;

static void ask(int number) { (void)number, asked = 1; }
static void fault(int number) { (void)number, siglongjmp(out, 1); }

static unsigned char *map(void)
{
    unsigned char *start = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED)
        exit(2);
    /* A mapping of its own, not a part of its neighbour. */
    if (mprotect(start, PAGE, PROT_NONE) || mprotect(start + (size_t)(PAGES - 1) * PAGE, PAGE, PROT_NONE))
        exit(2);
    return start;
}

static int expected(int page, int step) { return page % step ? 0 : 1 + page % 250; }

static void write_every(unsigned char *start, int step)
{
    for (int page = 1; page < PAGES - 1; page++)
        if (page % step == 0)
            memset(start + (size_t)page * PAGE, expected(page, step), PAGE);
}

static void check(const char *what, const unsigned char *start, int first, int last, int step)
{
    for (int page = first; page < last; page++)
        for (int at = 0; at < PAGE; at += 509)
            if (start[(size_t)page * PAGE + at] != expected(page, step)) {
                printf("%s: page %d has %d\n", what, page, start[(size_t)page * PAGE + at]);
                wrong++;
                return;
            }
}

/* Waits deep in a stack that is as large as any other mapping. */
static void *dive(void *nothing)
{
    volatile unsigned char deep[DEEP];
    for (int at = 0; at < DEEP; at += PAGE)
        deep[at] = (unsigned char)(at / PAGE % 251);
    pthread_barrier_wait(&met);
    pthread_barrier_wait(&met);
    deep_is_right = 1;
    for (int at = 0; at < DEEP; at += PAGE)
        deep_is_right &= deep[at] == at / PAGE % 251;
    pthread_barrier_wait(&met);
    return nothing;
}

static void look(void)
{
    check("scattered", scattered, 1, PAGES - 1, 3);
    check("dropped", dropped, 1, PAGES / 2, PAGES);
    check("dropped", dropped, PAGES / 2, PAGES - 1, 1);
    check("beside what is locked", locked_beside, 1, PAGES - 1, 2);
    check("before the guard", guarded, 1, 100, 1);
    check("behind the guard", guarded, 200, PAGES - 1, 1);
    if (has_guard) {
        signal(SIGSEGV, fault);
        if (!sigsetjmp(out, 1)) {
            *(volatile unsigned char *)(guarded + 150 * PAGE);
            printf("the guard is gone\n");
            wrong++;
        }
    }
}

int main(void)
{
    pthread_t diver;
    pthread_attr_t large;
    setvbuf(stdout, NULL, _IONBF, 0);
    signal(SIGUSR1, ask);
    scattered = map(), guarded = map(), dropped = map(), shared = map(), locked_beside = map();
    write_every(scattered, 3);
    write_every(guarded, 1);
    write_every(dropped, 1);
    write_every(shared, 1);
    write_every(locked_beside, 2);
    has_guard = !madvise(guarded + 100 * PAGE, 100 * PAGE, MADV_GUARD_INSTALL);
    if (!has_guard)
        printf("this kernel has no guards\n");
    if (madvise(dropped, (size_t)PAGES / 2 * PAGE, MADV_DONTNEED))
        return 2;
    pthread_barrier_init(&met, NULL, 2);
    pthread_attr_init(&large);
    pthread_attr_setstacksize(&large, STACK);
    pid_t child = fork(); /* before the thread: it has memory that is locked, and pages in common with its parent */
    if (child == 0) {
        if (mlock(locked_beside + PAGE, 8 * PAGE))
            printf("nothing can be locked here\n");
        for (int page = 1; page < PAGES - 1; page += 2)
            memset(shared + (size_t)page * PAGE, 77, PAGE);
        while (!asked)
            pause();
        look();
        for (int page = 1; page < PAGES - 1; page++)
            if (shared[(size_t)page * PAGE] != (page % 2 ? 77 : expected(page, 1)))
                wrong++;
        return wrong ? 1 : 0;
    }
    if (pthread_create(&diver, &large, dive, NULL))
        return 2;
    pthread_barrier_wait(&met);
    printf("ready\n");
    while (!asked)
        pause();
    look();
    check("shared with a child", shared, 1, PAGES - 1, 1);
    pthread_barrier_wait(&met);
    pthread_barrier_wait(&met);
    int status = 1;
    kill(child, SIGUSR1);
    waitpid(child, &status, 0);
    printf("verdict: %d wrong, the child %s, the stack %s\n", wrong, status ? "wrong" : "right", deep_is_right ? "right" : "wrong");
    while (1)
        pause();
}
