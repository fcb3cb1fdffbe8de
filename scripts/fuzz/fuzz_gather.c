/* Fuzz target: gathering, with pipes and an arena that hold whatever they like; the coordinator's real loop.
 *
 * coord.c is included, and its thread is a call: where it polls, the next command of the input is carried out.  The
 * input's first byte chooses the header, its next three what the words say before the trace starts; then come commands:
 *
 *   which:2 what:6         one of two workers (0, 1; 2 is the second again), or 3, a thread of the parent
 *   what 0  to the pipe     length:8, bytes
 *        1  a block         generation (from the one in force):8 signed, block:16, length:16, bytes to come:16, bytes
 *        2  the word        generation:8 signed, on:1 and block:15, position:16
 *        3  left behind     which:8, generation:8 signed, on:1 and block:15, position:16
 *        4  the buffer      parity:8, at:16, length:16, bytes
 *        5  an advance
 *        6  it is gone      how:8 (bit 0: lost; bit 1: with a claim)
 *        7  to the queue    generation:8 signed, block:16, length:16, bytes
 *        8  a thread ends   generation:8 signed
 *        9  its id, counts  value:64
 *        10 a raw word      value:64
 *        11 a raw left      which:8, value:64
 *        12 the writer's end of the pipe is closed
 *        13 who has an entry  entry:8, value:32
 *        14 a guest comes     as a thread of that worker would; its entry stands for "another" in 15
 *        15 its block         as 1
 */
#include "fuzz.h"
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

static int script_poll(struct pollfd *fds, nfds_t n);
static int script_thread(void *(*function)(void *));
#define poll(fds, n, timeout) ((void)(timeout), script_poll(fds, n))
#define pthread_create(thread, attributes, function, arg) ((void)(thread), script_thread(function))
#include "../../pooltrace/tracer/core/coord.c"
#undef poll

#define MS 4 /* two workers, a thread, and the one that starts the trace */
static struct script {
    struct input in;
    struct wire wire;
    FILE *out;             /* $POOLTRACE_FUZZ_OUT, for a look at what one input makes */
    struct slot *slots[MS];
    int pipes[MS];         /* write ends */
    uint32_t guest;        /* the newest guest's entry */
    struct gone gone;
    struct named_unit claimed;
    void *(*coordinator)(void *);
} s;

static int script_thread(void *(*function)(void *)) {
    s.coordinator = function;
    return 0;
}

static uint32_t near(void) { /* a generation not far from the one in force; 127: as far as it can be */
    int8_t by = (int8_t)input_number(&s.in, 1);
    uint32_t g = word_gen(LOAD(&registry.head->gen)) + (by == 127 ? 0x3fffffffu : by == -128 ? 0x40000000u : (uint32_t)(int32_t)by);
    return g & PT_GEN_MAX;
}

static void guest_comes(uint32_t i) {
    struct entry *e;
    uint32_t owner = OWNER_GUEST | s.slots[i]->index;
    if (entry_take(registry.head, registry.fd, owner, &s.guest, &e) != 0) return;
    entry_init(e, registry.head, KIND_GUEST, 0);
    STORE(&e->m, 2ull << 40 | s.guest);
    STORE(&e->since, now_ns());
    STORE(&registry.head->owner[s.guest], owner | OWNER_LISTED);
    munmap(e, PT_STRIDE);
}

static uint64_t word(void) {
    uint32_t gen = near(), block = (uint32_t)input_number(&s.in, 2), pos = (uint32_t)input_number(&s.in, 2);
    return make_word(gen, block & 1, (block >> 1) << 16 | pos);
}

static void to_pipe(uint32_t i, const void *bytes, size_t len) {
    if (s.pipes[i] >= 0 && write(s.pipes[i], bytes, len) < 0) return; /* full, or nobody reads any more */
}

static void open_slot(uint32_t i) {
    int ends[2] = {-1, -1}, index, err;
    if (i < 2 && (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0)) abort();
    s.slots[i] = slot_open(i < 2 ? KIND_WORKER : KIND_THREAD, i < 2 ? i + 1 : i == 2 ? 3 : 0, ends[0], &index, &err);
    if (!s.slots[i]) abort();
    s.pipes[i] = ends[1];
    STORE(&s.slots[i]->entry->m, 1ull << 40 | i); /* no process has it */
}

static void close_pipe(uint32_t i) {
    if (s.pipes[i] >= 0) close(s.pipes[i]);
    s.pipes[i] = -1;
}

static void ask_gone(uint32_t i, uint8_t how) {
    if (s.gone.slot || i >= 2) return;
    s.claimed = (struct named_unit){.g = 77, .function = "f", .function_len = 1, .file = "f.c", .file_len = 3};
    s.gone = (struct gone){.slot = s.slots[i], .lost = how & 1 ? "was killed" : NULL, .claimed = how & 2 ? &s.claimed : NULL};
    c.gone = &s.gone;
}

/* What coord_gone's caller does when it is done. */
static void after_gone(void) {
    if (!s.gone.slot || !s.gone.done) return;
    uint32_t i = s.gone.slot == s.slots[1];
    s.gone.slot = NULL;
    close_pipe(i);
    open_slot(i);
}

static void thread_ends(void) {
    struct block *notice = block_make(NULL, 0);
    if (!notice) return;
    notice->close = true;
    if (!coord_push(notice, s.slots[2], near(), 0)) return;
    s.slots[2] = NULL; /* freed when that is taken */
}

static void command(void) {
    uint8_t what = (uint8_t)input_number(&s.in, 1);
    uint32_t i = (what & 3) == 3 ? 2 : what & 1, len, at;
    uint64_t value;
    const uint8_t *bytes;
    if (i == 2 && !s.slots[2]) open_slot(2);
    struct entry *e = s.slots[i]->entry;
    struct block_head head = {.magic = PT_BLOCK_MAGIC};
    switch (what >> 2) {
    case 0:
        bytes = input_bytes(&s.in, input_number(&s.in, 1), &len);
        to_pipe(i, bytes, len);
        return;
    case 1:
    case 15:
        head.entry = what >> 2 == 1 ? s.slots[i]->index : s.guest;
        head.gen = near();
        head.block = (uint32_t)input_number(&s.in, 2);
        head.len = (uint32_t)input_number(&s.in, 2);
        bytes = input_bytes(&s.in, input_number(&s.in, 2), &len);
        to_pipe(i, &head, sizeof head);
        to_pipe(i, bytes, len);
        return;
    case 2: STORE(&e->word, word()); return;
    case 3:
        value = input_number(&s.in, 1);
        STORE(value < 2 ? &e->left[value] : &e->left_off, word());
        return;
    case 4:
        value = input_number(&s.in, 1) & 1;
        at = (uint32_t)input_number(&s.in, 2);
        bytes = input_bytes(&s.in, input_number(&s.in, 2), &len);
        if (len > PT_BUFFER - at) len = PT_BUFFER - at;
        memcpy(e->buffer[value] + at, bytes, len);
        return;
    case 5: c.advances_wanted = c.advances + 1; return;
    case 6: ask_gone(i, (uint8_t)input_number(&s.in, 1)); return;
    case 7: {
        uint32_t gen = near(), block = (uint32_t)input_number(&s.in, 2);
        bytes = input_bytes(&s.in, input_number(&s.in, 2), &len);
        struct block *b = i == 2 && len <= PT_BLOCK ? block_make(bytes, len) : NULL;
        if (b) coord_push(b, s.slots[2], gen, block);
        return;
    }
    case 8:
        if (i == 2) thread_ends();
        return;
    case 9:
        value = input_number(&s.in, 8);
        STORE(&e->m, value);
        STORE(&e->unit, value);
        STORE(&e->lost, value);
        return;
    case 10: STORE(&e->word, input_number(&s.in, 8)); return;
    case 11:
        value = input_number(&s.in, 1);
        STORE(value < 2 ? &e->left[value] : &e->left_off, input_number(&s.in, 8));
        return;
    case 12: close_pipe(i); return;
    case 13:
        value = input_number(&s.in, 1);
        STORE(&registry.head->owner[value], (uint32_t)input_number(&s.in, 4));
        STORE(&registry.head->entries, 256);
        return;
    case 14: guest_comes(i); return;
    default: return;
    }
}

static void read_file(void) {
    size_t len;
    while (c.out && coord_wait(&len, 0) == READ_DATA) {
        uint8_t *bytes = malloc(len);
        if (!bytes || !coord_read(bytes, len)) abort();
        wire_feed(&s.wire, bytes, len);
        if (s.out) fwrite(bytes, 1, len, s.out);
        free(bytes);
    }
}

static int script_poll(struct pollfd *fds, nfds_t n) {
    after_gone();
    read_file();
    if (s.in.p < s.in.end) command();
    else c.stop = true;
    return (poll)(fds, n, 0);
}

static void once(void) {
    static char path[64];
    signal(SIGPIPE, SIG_IGN);
    snprintf(path, sizeof path, "%s/pooltrace-fuzz-%d", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp", (int)getpid());
    unlink(path);
    if (arena_create(path) != 0) abort();
    unlink(path);
    for (uint32_t i = 1; i < MS; i++)
        if (p_alloc() != i) abort(); /* 1 to 3 are the slots' and the thread's */
}

static void begin(void) {
    STORE(&registry.head->gen, make_word(4, false, 0));
    STORE(&counters->g, 1000);
    for (uint32_t i = 0; i < 256; i++) STORE(&registry.head->owner[i], OWNER_FREE);
    for (uint32_t i = 0; i < MS; i++) open_slot(i);
    for (uint32_t i = 0; i < MS; i++) memset(s.slots[i]->entry->buffer, 0, sizeof s.slots[i]->entry->buffer);
    for (uint32_t i = 0; i < 2; i++) {
        uint64_t state = input_number(&s.in, 1);
        STORE(&s.slots[i]->entry->word, make_word(4, state & 1, state & 2 ? PT_STATE_RUN | (uint32_t)state : (uint32_t)state >> 2));
    }
}

static void finish(void) {
    after_gone();
    for (uint32_t i = 0; i < registry.n; i++)
        if (registry.slots[i]->state == SLOT_USED && registry.slots[i]->kind == KIND_GUEST) slot_free(registry.slots[i]);
    for (uint32_t i = 0; i < MS; i++) {
        close_pipe(i);
        if (s.slots[i] && s.slots[i]->state == SLOT_USED) {
            s.slots[i]->kind = KIND_WORKER; /* its P stays ours */
            slot_free(s.slots[i]);
        }
        s.slots[i] = NULL;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const int headers[] = {22, 23, 25, 26};
    if (!registry.head) once();
    memset(&s, 0, sizeof s);
    s.in = (struct input){data, data + size};
    struct coord_options o = {.header = headers[input_number(&s.in, 1) & 3], .period = 3600000000000u, .starter_g = 900};
    o.start = (struct named_unit){.g = 900, .function = "main", .file = "main.c", .function_len = 4, .file_len = 6};
    begin();
    o.starter = s.slots[3];
    const char *out = getenv("POOLTRACE_FUZZ_OUT");
    s.out = out ? fopen(out, "wb") : NULL;
    wire_init(&s.wire, o.header);
    s.wire.overlap = true; /* times come from the streams */
    if (coord_start(&o) != 0) abort();
    s.coordinator(NULL);
    read_file();
    wire_end(&s.wire);
    p_free(c.merge.coord_p);
    finish();
    if (s.out) fclose(s.out);
    if (s.wire.errors) {
        fprintf(stderr, "the file is wrong: %s\n", s.wire.error);
        abort();
    }
    if (c.merge.failed) {
        fputs("the merge failed, with memory at hand\n", stderr);
        abort();
    }
    wire_free(&s.wire);
    return 0;
}
