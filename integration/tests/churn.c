// A program whose memory must be right page by page: it fills pages with what can be told afterwards; on SIGUSR1 it forks,
// discards, unmaps and moves mappings, and says whether everything it reads is what it wrote.
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, COUNT = 8192, CHILDREN = 4 };

static char *map(void) {
    return mmap(NULL, (size_t)PAGE * COUNT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static int wrong(const char *memory, int step) {
    int n = 0;
    for (int page = COUNT - 1; page >= 0; page -= step) {
        int found;
        memcpy(&found, memory + (size_t)page * PAGE, sizeof found);
        n += found != page;
    }
    return n;
}

static void on_signal(int number) { (void)number; }

int main(void) {
    char *memory = map(), *gone = map(), *kept = map();
    for (int page = 0; page < COUNT; page++) {
        memcpy(memory + (size_t)page * PAGE, &page, sizeof page);
        memcpy(kept + (size_t)page * PAGE, &page, sizeof page);
    }
    memset(gone, 'x', (size_t)PAGE * COUNT);
    signal(SIGUSR1, on_signal);
    puts("ready");
    fflush(stdout);
    pause();
    for (int child = 0; child < CHILDREN; child++) {
        if (fork() == 0) {
            _exit(wrong(memory, child + 1) || wrong(kept, child + 1));
        }
    }
    int stale = 0, failed = 0, status;
    madvise(gone, (size_t)PAGE * COUNT, MADV_DONTNEED);
    for (int page = 0; page < COUNT; page += 3) {
        stale += gone[(size_t)page * PAGE] != 0;
    }
    munmap(gone, (size_t)PAGE * COUNT);
    char *moved = mremap(kept, (size_t)PAGE * COUNT, (size_t)PAGE * COUNT * 2, MREMAP_MAYMOVE);
    failed += moved == MAP_FAILED || moved[(size_t)PAGE * COUNT] != 0 || wrong(moved, 1);
    failed += wrong(memory, 1);
    for (int child = 0; child < CHILDREN; child++) {
        wait(&status);
        failed += status != 0;
    }
    printf("verdict: %d stale, %d wrong\n", stale, failed);
    fflush(stdout);
    for (;;) {
        pause();
    }
}
