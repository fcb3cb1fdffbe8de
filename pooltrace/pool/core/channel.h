/* The channel between the parent and one worker: a socket for frames, and a shared page for claims and small results.
 *
 *   page.h     the shared page: who has a unit, and the ring of results; no Python
 *   stream.c   frames as bytes of the socket, in and out
 *   parent.c   the parent's end: has units in flight, receives answers
 *   post.c     how they come there
 *   call.c     and a call, by which another thread does that for one unit
 *   worker.c   the worker's end: claims units, answers them
 *   unit.c     units, and rows of them that are not made yet
 *   plain.c    small plain values as bytes
 *   parts.c    which part of a pickle each argument is; sizes.c says so to Python
 *
 * Nothing else here knows what a unit means, or of pickles or tracing, and nothing decides which goes where.  All with
 * the GIL, except where a function says that it waits.  A worker's end belongs to one thread at a time; who has the
 * parent's is there.
 */
#ifndef POOLTRACE_CHANNEL_H
#define POOLTRACE_CHANNEL_H

#include <Python.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "page.h"

/* Kinds of frames.  From the parent: */
enum { FRAME_APPLY = 1, FRAME_MAP, FRAME_STARMAP, FRAME_STOP };
/* From the worker (BELL: look at the page): */
enum { FRAME_READY = 16, FRAME_START_FAILED, FRAME_RESULT, FRAME_BELL };
enum { FRAME_RESULTS = 32 }; /* of no frame: an answer for several units */
enum { FLAG_FAILED = 1, FLAG_FRESH = 2, FLAG_ONCE = 4 };

/*  head | length of each buffer | function | payload | buffers ...     `total` counts what is behind the head */
struct frame_head {
    uint8_t kind, flags;
    uint16_t buffers;    /* how many */
    uint32_t generation; /* of the unit's creation; 0 of none */
    uint64_t seq;        /* of this worker's units, from 0 */
    uint64_t unit;       /* its G */
    uint64_t job;        /* its job; of a RESULT: how long the unit took, ns */
    uint64_t function, payload, total; /* bytes */
};

#define SMALL 4096u         /* bytes up to which a part is copied rather than referred to */
#define ROOM (256u * 1024u) /* of a receiver's buffer; a larger frame gets memory of its own */

/* A frame as it came. */
struct frame {
    struct frame_head head;
    PyObject *function; /* owned: bytes or memoryview */
    PyObject *payload;  /* owned: bytes, bytearray or memoryview; None: there was no memory for it */
    PyObject *buffers;  /* owned: list of bytearrays, each with memory of its own; NULL for none */
};
void frame_free(struct frame *f);

/* ---- stream.c ---- */
struct large {           /* a frame on its way into memory of its own */
    bool on;
    struct frame_head head;
    PyObject *front;     /* owned: bytearray of all that is before the buffers */
    PyObject *buffers;   /* owned list; NULL until the front is here */
    Py_ssize_t index;    /* which of them comes now; -1: the front */
    size_t at;           /* bytes of that that are here */
    uint64_t skip;       /* bytes that are thrown away: there was no memory */
    bool lost;
};
struct receiver {
    int fd;              /* borrowed */
    uint8_t *data;       /* owned, ROOM bytes */
    size_t start, end;   /* of what is there */
    struct large large;
};
bool receiver_init(struct receiver *r, int fd); /* false with an exception set */
void receiver_free(struct receiver *r);
/* Receives once.  1: something came; 0: the end of the stream; -1 with an exception; -2: nothing is there now.
 * `wait`: blocks, without the GIL. */
int receiver_fill(struct receiver *r, bool wait);
/* 1: a whole frame in *f, which the caller frees; 0: there is none; -1 with an exception. */
int receiver_take(struct receiver *r, struct frame *f);

struct piece {
    Py_buffer view;      /* owned if obj is set */
    uint8_t *own;        /* owned: small parts, put together */
    size_t len, cap, at; /* at: what was sent */
};
struct sender {
    int fd;              /* borrowed */
    struct piece *pieces; /* owned */
    size_t first, n, cap; /* pieces[first .. n) wait */
};
/* Puts a frame behind what waits; parts of more than SMALL bytes are referred to.  false with an exception set. */
bool sender_add(struct sender *s, struct frame_head *head, PyObject *function, PyObject *payload, PyObject *buffers);
/* 1: all is sent; 0: the channel takes no more now; -1 with an exception.  `wait`: blocks, without the GIL. */
int sender_flush(struct sender *s, bool wait);
void sender_clear(struct sender *s);
bool sender_begun(const struct sender *s); /* a part of a piece is sent, the rest is not */

static inline uint64_t channel_now(void) { /* ns, by the clock that both ends have */
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

struct page *page_map(int fd); /* NULL with an exception set */
void page_unmap(struct page *page);

extern PyTypeObject ParentEndType, WorkerEndType;
extern PyTypeObject *AnswerType, *FrameType; /* struct sequences, made once */
extern PyObject *no_buffers;                 /* an empty tuple */

#endif
