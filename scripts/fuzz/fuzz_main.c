/* The engine of the fuzz targets where there is no libFuzzer: mutates what led to new code, keeps what does so again.
 *
 * usage: TARGET PATH...                                     runs each input once (files, directories of them)
 *        TARGET -seconds S [-runs N] [-seed N] [-keep DIR] PATH...
 *   -keep   where an input that fails is written (.), as crash-SEED-NUMBER; there is one line on standard output at the end
 *
 * Coverage comes from gcc's or clang's -fsanitize-coverage=trace-pc; without it, inputs are mutated blindly.
 */
#include "fuzz.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define INPUT_MAX 16384
#define CORPUS_MAX 20000
#define HANG_SECONDS 20  /* of the processor's time: on a busy machine waiting is no hang, */
#define STUCK_SECONDS 600 /* unless it is this long */

struct one {
    uint8_t *bytes; /* owned */
    size_t len;
};
static struct one corpus[CORPUS_MAX];
static uint32_t n_corpus;
static uint64_t random_state = 1, seed = 1, executions;
static const char *keep_dir = ".";

/* ---- coverage: edges by how often, as in AFL ---- */
#define MAP (1u << 14)
static uint8_t now[MAP], seen[MAP];
static __thread uintptr_t before; /* the coordinator may have a thread */

void __sanitizer_cov_trace_pc(void);
void __sanitizer_cov_trace_pc(void) {
    uintptr_t pc = (uintptr_t)__builtin_return_address(0);
    uintptr_t at = (pc * 0x9e3779b97f4a7c15ull) >> 48;
    uint8_t *count = &now[(at ^ before) & (MAP - 1)];
    if (*count < 255) ++*count;
    before = at >> 1;
}

static uint8_t class_of(uint8_t n) {
    static const uint8_t small[] = {0, 1, 2, 4};
    return n < 4 ? small[n] : n < 8 ? 8 : n < 16 ? 16 : n < 32 ? 32 : n < 128 ? 64 : 128;
}

static bool news(void) {
    bool found = false;
    for (uint32_t i = 0; i < MAP; i += 8) {
        uint64_t eight;
        memcpy(&eight, now + i, 8);
        if (!eight) continue;
        for (uint32_t k = i; k < i + 8; k++) {
            uint8_t c = class_of(now[k]);
            if (!(c & ~seen[k])) continue;
            seen[k] |= c;
            found = true;
        }
    }
    return found;
}

/* ---- what fails is kept ---- */
static struct one current;

static void keep(void) {
    char path[512];
    snprintf(path, sizeof path, "%s/crash-%llu-%llu", keep_dir, (unsigned long long)seed, (unsigned long long)executions);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (fd < 0 || write(fd, current.bytes, current.len) < 0) return;
    close(fd);
    fprintf(stderr, "input kept: %s\n", path);
}

static void on_signal(int number) {
    fprintf(stderr, "signal %d after %llu executions\n", number, (unsigned long long)executions);
    keep();
    _exit(77);
}

void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

/* ---- mutation ---- */
static uint32_t below(uint32_t n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32) % n;
}

static const uint64_t values[] = {0,      1,      2,       3,        4,        0x7f,       0x80,       0xff,      0x3ff,      0x400,
                                  0x401,  0x7fff, 0xffff,  60000,    60001,    0x1fffff,   0x200000,   0xffffff,  0x3fffffff, 0x40000000,
                                  0x7fffffff, 0x80000000, 0xffffffff, 1ull << 32, 1ull << 62, 1ull << 63, UINT64_MAX - 1, UINT64_MAX};

static size_t insert(uint8_t *b, size_t len, size_t at, const uint8_t *from, size_t n) {
    if (len + n > INPUT_MAX) return len;
    memmove(b + at + n, b + at, len - at);
    memmove(b + at, from, n);
    return len + n;
}

static size_t mutate_once(uint8_t *b, size_t len) {
    size_t at = len ? below((uint32_t)len) : 0, n;
    uint8_t piece[256];
    uint64_t value = values[below(sizeof values / sizeof *values)];
    switch (below(10)) {
    case 0:
        if (len) b[at] ^= (uint8_t)(1u << below(8));
        return len;
    case 1:
        if (len) b[at] = (uint8_t)below(256);
        return len;
    case 2:
        if (len) b[at] = (uint8_t)(b[at] + below(9) - 4);
        return len;
    case 3: /* a small number: opcodes and ids are */
        if (len) b[at] = (uint8_t)below(32);
        return len;
    case 4: /* a varint */
        for (n = 0; value >= 0x80; value >>= 7) piece[n++] = (uint8_t)value | 0x80;
        piece[n++] = (uint8_t)value;
        return insert(b, len, at, piece, n);
    case 5: /* a number of fixed size */
        n = (size_t)1 << below(4);
        if (at + n <= len) memcpy(b + at, &value, n);
        return len;
    case 6: /* a piece goes */
        n = len - at < 64 ? len - at : 1 + below(64);
        memmove(b + at, b + at + n, len - at - n);
        return len - n;
    case 7: /* a piece comes again */
        n = len - at < sizeof piece ? len - at : 1 + below(sizeof piece);
        memcpy(piece, b + at, n);
        return insert(b, len, below((uint32_t)len + 1), piece, n);
    case 8: { /* a piece of another input */
        struct one *other = &corpus[below(n_corpus)];
        if (!other->len) return len;
        size_t from = below((uint32_t)other->len);
        n = other->len - from < 512 ? other->len - from : 1 + below(512);
        return insert(b, len, at, other->bytes + from, n);
    }
    default:
        for (n = 0; n < 1 + below(16); n++) piece[n] = (uint8_t)below(256);
        return insert(b, len, at, piece, n);
    }
}

/* ---- running ---- */
static void run(const uint8_t *bytes, size_t len) {
    current.bytes = malloc(len ? len : 1); /* of its own size, so that a read beyond it is seen */
    if (!current.bytes) abort();
    if (len) memcpy(current.bytes, bytes, len);
    current.len = len;
    executions++;
    before = 0;
    LLVMFuzzerTestOneInput(current.bytes, len);
    free(current.bytes);
    current.bytes = NULL;
}

static void add(const uint8_t *bytes, size_t len) {
    if (n_corpus == CORPUS_MAX) return;
    uint8_t *copy = malloc(len ? len : 1);
    if (!copy) abort();
    if (len) memcpy(copy, bytes, len);
    corpus[n_corpus++] = (struct one){copy, len};
}

static void load(const char *path) {
    struct stat st;
    if (stat(path, &st) != 0) {
        perror(path);
        exit(2);
    }
    if (S_ISDIR(st.st_mode)) {
        struct dirent **names;
        int n = scandir(path, &names, NULL, alphasort);
        for (int i = 0; i < n; i++) {
            char inside[4096];
            snprintf(inside, sizeof inside, "%s/%s", path, names[i]->d_name);
            if (names[i]->d_name[0] != '.') load(inside);
            free(names[i]);
        }
        if (n >= 0) free(names);
        return;
    }
    static uint8_t bytes[1 << 20];
    int fd = open(path, O_RDONLY);
    ssize_t n = fd < 0 ? -1 : read(fd, bytes, sizeof bytes);
    if (n < 0) {
        perror(path);
        exit(2);
    }
    close(fd);
    add(bytes, (size_t)n);
}

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void watch(int seconds, unsigned stuck) {
    struct itimerval left = {.it_value = {.tv_sec = seconds}};
    setitimer(ITIMER_PROF, &left, NULL);
    alarm(stuck);
}

static void fuzz(double seconds, uint64_t runs) {
    static uint8_t bytes[INPUT_MAX];
    double end = seconds_now() + seconds;
    while (executions < runs && seconds_now() < end)
        for (int k = 0; k < 64; k++) {
            /* the newest half as often as all the others */
            uint32_t pick = below(2) ? below(n_corpus) : n_corpus / 2 + below(n_corpus - n_corpus / 2);
            struct one *from = &corpus[pick];
            size_t len = from->len < INPUT_MAX ? from->len : INPUT_MAX;
            if (len) memcpy(bytes, from->bytes, len);
            for (uint32_t n = 1u << below(5); n > 0; n--) len = mutate_once(bytes, len);
            memset(now, 0, sizeof now);
            watch(HANG_SECONDS, STUCK_SECONDS);
            run(bytes, len);
            if (news()) add(bytes, len);
        }
    watch(0, 0);
}

int main(int argc, char **argv) {
    double seconds = 0;
    uint64_t runs = 0;
    if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(keep);
    signal(SIGABRT, on_signal);
    signal(SIGALRM, on_signal);
    signal(SIGPROF, on_signal);
    int i = 1;
    for (; i + 1 < argc && argv[i][0] == '-'; i += 2) {
        if (!strcmp(argv[i], "-seconds")) seconds = atof(argv[i + 1]);
        else if (!strcmp(argv[i], "-runs")) runs = strtoull(argv[i + 1], NULL, 10);
        else if (!strcmp(argv[i], "-seed")) seed = strtoull(argv[i + 1], NULL, 10);
        else if (!strcmp(argv[i], "-keep")) keep_dir = argv[i + 1];
        else break;
    }
    if (i >= argc || argv[i][0] == '-') {
        fprintf(stderr, "usage: %s [-seconds S] [-runs N] [-seed N] [-keep DIR] PATH...\n", argv[0]);
        return 2;
    }
    random_state = seed * 0x9e3779b97f4a7c15ull | 1;
    for (; i < argc; i++) load(argv[i]);
    uint32_t given = n_corpus;
    for (uint32_t k = 0; k < given; k++) {
        memset(now, 0, sizeof now);
        watch(HANG_SECONDS, STUCK_SECONDS);
        run(corpus[k].bytes, corpus[k].len);
        news();
    }
    watch(0, 0);
    if (!n_corpus) add((const uint8_t *)"", 0);
    if (seconds > 0 || runs) fuzz(seconds > 0 ? seconds : 1e9, runs ? runs : UINT64_MAX);
    const char *name = strrchr(argv[0], '/');
    printf("%s: %llu executions, %u seeds, %u inputs found, seed %llu: nothing wrong\n", name ? name + 1 : argv[0],
           (unsigned long long)executions, given, n_corpus - given, (unsigned long long)seed);
    for (uint32_t k = 0; k < n_corpus; k++) free(corpus[k].bytes);
    return 0;
}
