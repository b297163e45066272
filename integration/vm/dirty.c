// What the test moves: two processes that write to private memory all the time and can tell whether any of it is wrong.
//
// dirty MIB HOT_MIB PAGES_PER_SECOND. Every page holds a pattern made of its number and of how often it was written; how
// often that was stands in shared memory, which travels in the freeze whatever the mode: so a page that is older than it
// should be is found. Some pages are given back to the kernel and must be zeros then, or are mapped anew elsewhere in the
// same place. Half of them are noise that nothing compresses. SIGUSR1: both look at all pages and print a verdict.
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define WORDS 512
#define TICKS 100

static volatile sig_atomic_t asked;
static uint64_t *memory;
static volatile uint32_t *counts;
static long n_pages;

static void ask(int signal) { (void)signal; asked = 1; }

static uint64_t word(long page, uint32_t count, int index)
{
    uint64_t seed = (uint64_t)page * 0x9e3779b97f4a7c15u + (uint64_t)count * 0xbf58476d1ce4e5b9u;
    return page % 2 ? seed : (seed ^ (uint64_t)index * 0x94d049bb133111ebu) * 0xd6e8feb86659fd93u;
}

static void write_page(long page)
{
    uint32_t count = counts[page] + 1;
    if (!count) count = 1;
    for (int index = 0; index < WORDS; index++) memory[page * WORDS + index] = word(page, count, index);
    counts[page] = count;
}

static void *at(long page) { return memory + page * WORDS; }

// Given back, or mapped anew: zeros either way. The mapping is made before the note, and both before anything is asked.
static void drop_page(long page, int how)
{
    if (how == 0) {
        madvise(at(page), 4096, MADV_DONTNEED);
    } else if (mmap(at(page), 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    counts[page] = 0;
    if (how == 0 && page % 3 == 0 && *(volatile uint64_t *)at(page) != 0) exit(2);  // a page of zeros that was read
}

static void verdict(const char *who, uint64_t n_written)
{
    long wrong = 0, zeros = 0;
    for (long page = 0; page < n_pages; page++) {
        uint32_t count = counts[page];
        int is_wrong = 0;
        zeros += count == 0;
        for (int index = 0; index < WORDS && !is_wrong; index++)
            is_wrong = memory[page * WORDS + index] != (count ? word(page, count, index) : 0);
        wrong += is_wrong;
    }
    printf("%s: %ld wrong of %ld, %ld zeros, %llu written\n", who, wrong, n_pages, zeros, (unsigned long long)n_written);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc != 4) return 64;
    n_pages = atol(argv[1]) * 256;
    long n_hot = atol(argv[2]) * 256, rate = atol(argv[3]);
    memory = mmap(NULL, n_pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint32_t *shared = mmap(NULL, 2 * n_pages * sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || shared == MAP_FAILED) return 1;
    madvise(memory, n_pages * 4096, MADV_NOHUGEPAGE);  // of a huge page the kernel marks two megabytes at once
    signal(SIGUSR1, ask);
    counts = shared;
    for (long page = 0; page < n_pages; page++) write_page(page);
    memcpy(shared + n_pages, shared, n_pages * sizeof *shared);
    // The child begins with its parent's pages, which both share until one of them writes.
    pid_t child = fork();
    const char *who = child ? "parent" : "child";
    if (!child) {
        counts = shared + n_pages;
        rate /= 8;
    }
    srandom(child ? 1 : 2);
    if (child) {
        printf("ready\n");
        fflush(stdout);
    }
    uint64_t n_written = 0;
    double owed = 0;
    for (;;) {
        struct timespec tick = {0, 1000000000 / TICKS};
        nanosleep(&tick, NULL);
        for (owed += (double)rate / TICKS; owed >= 1; owed--) {
            long page = random() % n_hot;
            int dice = random() % 64;
            if (dice < 2) drop_page(page, dice);
            else write_page(page);
            n_written++;
        }
        if (asked) {
            asked = 0;
            if (child) kill(child, SIGUSR1);
            verdict(who, n_written);
        }
    }
}
