/* The gather test: an advance ends although a worker writes faster than its pipe is read.
 *
 * The coordinator's read() is a lying one: whenever bytes have left the pipe, the worker's next blocks are in it at once,
 * of the generation that is in force, after the rest of one that was cut off.  So the pipe is never empty.
 *
 * usage: gather_test [-advances N] [-limit S]
 * Exit status: 0 fine, 1 a rule is broken, 2 the test could not be done.
 */
#include "actors.h"
#include "coord_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define READS (2 * (PT_PIPE / PT_BLOCK + 2)) /* head and body of each block that a pipe holds, and one cut off at each end */

static struct {
    uint64_t advances;
    uint32_t limit;
} options = {.advances = 200, .limit = 300};

static struct actor actor;
static struct flood {        /* the coordinator's thread's, while it runs */
    uint8_t bytes[sizeof(struct block_head) + PT_BLOCK], *at, *end; /* the block that is being written */
    uint32_t gen, block;   /* of the next one */
    uint64_t blocks, reads, most; /* written; reads in this advance; in the longest one */
} flood;

/* As trunk_block writes it; of no event, only times. */
static void next_block(void) {
    uint32_t gen = word_gen(LOAD(&registry.head->gen));
    if (gen != flood.gen) flood.gen = gen, flood.block = 0;
    uint8_t *data = flood.bytes + sizeof(struct block_head);
    flood.at = flood.bytes;
    for (flood.end = data; flood.end - data < PT_BLOCK - 16; ) {
        *flood.end++ = OP_TIME;
        flood.end = put_varint(flood.end, now_ns());
    }
    struct block_head head = {PT_BLOCK_MAGIC, (uint32_t)actor.index, gen, flood.block++, (uint32_t)(flood.end - data)};
    memcpy(flood.bytes, &head, sizeof head);
    flood.blocks++;
}

static void fill_pipe(void) {
    ssize_t n;
    do {
        if (flood.at == flood.end) next_block();
        n = write(actor.pipe, flood.at, (size_t)(flood.end - flood.at));
        if (n > 0) flood.at += n;
    } while (n > 0);
    if (errno != EAGAIN) die("write");
}

ssize_t __real_read(int fd, void *buffer, size_t len);
ssize_t __wrap_read(int fd, void *buffer, size_t len);
ssize_t __wrap_read(int fd, void *buffer, size_t len) {
    ssize_t n = __real_read(fd, buffer, len);
    if (fd != actor.slot->pipe || n <= 0) return n;
    flood.reads = c.switched ? flood.reads + 1 : 0;
    if (flood.reads > flood.most) flood.most = flood.reads;
    if (flood.reads < 10 * READS) fill_pipe(); /* where the rule is broken, it shall end all the same */
    return n;
}

static void read_file(void) {
    size_t len;
    while (coord_wait(&len, 0) == READ_DATA) {
        uint8_t *bytes = malloc(len);
        if (!bytes || !coord_read(bytes, len)) die("coord_read");
        free(bytes);
    }
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i += 2) {
        uint64_t value = i + 1 < argc ? strtoull(argv[i + 1], NULL, 10) : 0;
        if (i + 1 < argc && !strcmp(argv[i], "-advances")) options.advances = value;
        else if (i + 1 < argc && !strcmp(argv[i], "-limit")) options.limit = (uint32_t)value;
        else {
            fputs("usage: gather_test [-advances N] [-limit S]\n", stderr);
            return 2;
        }
    }
    alarm(options.limit);
    char path[64];
    if ((errno = arena_open_temp(path, sizeof path))) die(path);
    unlink(path);
    worker_open(&actor, p_alloc());
    if (fcntl(actor.pipe, F_SETFL, O_NONBLOCK) < 0) die("fcntl");
    STORE(&actor.slot->entry->m, 1ull << 40); /* no process has it */
    fill_pipe(); /* the first read writes the next ones */
    gil_take();
    start_trace(26, 3600000000000u);
    gil_drop();
    uint64_t advances = 0;
    while (advances < options.advances) {
        advances += coord_advance(1000000);
        read_file();
    }
    coord_stop_request();
    uint8_t *bytes;
    size_t len;
    while ((bytes = next_piece(&len))) free(bytes);
    coord_join();
    uint64_t errors = coord_merge()->failed + coord_merge()->lost_events + (flood.most > READS);
    printf("gather_test: %llu advances, %llu blocks, at most %llu reads in one advance, %llu errors\n", (unsigned long long)advances,
           (unsigned long long)flood.blocks, (unsigned long long)flood.most, (unsigned long long)errors);
    return errors != 0;
}
