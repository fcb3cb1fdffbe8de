/* Frames as bytes of a socket.
 *
 * In: what fits into the receiver's buffer is taken from there; a larger frame, or one with buffers, is received into
 * memory of its own, so that large payloads are copied once.  Each buffer has its own memory: it is aligned as if it had
 * been allocated here, and who keeps one array does not keep those that came with it.
 * Out: small parts are put together, large ones are referred to until they are sent.
 */
#include "channel.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>

#define HUGE (4u << 20)   /* bytes from which memory is asked for in huge pages */
#define PARTS 64          /* of one sendmsg; far below every IOV_MAX */
#define TOGETHER 65536u   /* small parts are put together up to this */
#define QUICK 65536u      /* bytes up to which a call that cannot wait keeps the GIL */

void frame_free(struct frame *f) {
    Py_CLEAR(f->function);
    Py_CLEAR(f->payload);
    Py_CLEAR(f->buffers);
}

static int nonsense(void) {
    errno = EPROTO;
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

/* ---- in ---- */
bool receiver_init(struct receiver *r, int fd) {
    *r = (struct receiver){.fd = fd};
    if (!(r->data = PyMem_RawMalloc(ROOM))) {
        PyErr_NoMemory();
        return false;
    }
    return true;
}

static void large_free(struct large *l) {
    Py_CLEAR(l->front);
    Py_CLEAR(l->buffers);
    l->on = false;
}

void receiver_free(struct receiver *r) {
    large_free(&r->large);
    PyMem_RawFree(r->data);
    r->data = NULL;
}

/* The piece that comes now; NULL when all is here. */
static PyObject *large_piece(const struct large *l) {
    if (l->index < 0) return l->front;
    return l->buffers && l->index < PyList_GET_SIZE(l->buffers) ? PyList_GET_ITEM(l->buffers, l->index) : NULL;
}

/* There is no memory for the rest of the frame: it is received to nowhere.  Clears the exception, MemoryError. */
static void large_lose(struct large *l, uint64_t rest) {
    PyErr_Clear();
    Py_CLEAR(l->front);
    Py_CLEAR(l->buffers);
    l->lost = true;
    l->skip = rest;
}

/* Memory of a large buffer, not written yet: in huge pages if the system has them, which saves most page faults. */
static void prepare(PyObject *buffer) {
#ifdef MADV_HUGEPAGE
    uintptr_t begin = (uintptr_t)PyByteArray_AS_STRING(buffer), end = begin + (uintptr_t)PyByteArray_GET_SIZE(buffer);
    begin = (begin + 4095) & ~(uintptr_t)4095;
    end &= ~(uintptr_t)4095;
    if (end > begin && end - begin >= HUGE) madvise((void *)begin, end - begin, MADV_HUGEPAGE); /* only advice */
#else
    (void)buffer;
#endif
}

/* The front is here: makes the buffers.  -1 with an exception: the lengths make no sense. */
static int large_buffers(struct large *l) {
    uint64_t rest = l->head.total - (uint64_t)PyByteArray_GET_SIZE(l->front), sum = 0;
    const char *lengths = PyByteArray_AS_STRING(l->front);
    for (int i = 0; i < l->head.buffers; i++) {
        uint64_t length;
        memcpy(&length, lengths + 8 * i, 8);
        if (length > rest - sum) return nonsense();
        sum += length;
    }
    if (sum != rest) return nonsense();
    l->buffers = PyList_New(l->head.buffers);
    for (int i = 0; l->buffers && i < l->head.buffers; i++) {
        uint64_t length;
        memcpy(&length, lengths + 8 * i, 8);
        PyObject *buffer = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)length);
        if (!buffer) Py_CLEAR(l->buffers);
        else {
            prepare(buffer);
            PyList_SET_ITEM(l->buffers, i, buffer);
        }
    }
    if (!l->buffers) large_lose(l, rest);
    return 0;
}

/* Goes on to the next piece while the one that came last is whole. */
static int large_next(struct large *l) {
    PyObject *piece;
    while (!l->lost && (piece = large_piece(l)) && l->at == (size_t)PyByteArray_GET_SIZE(piece)) {
        l->index++;
        l->at = 0;
        if (l->index == 0 && large_buffers(l) < 0) return -1;
    }
    return 0;
}

static int large_begin(struct large *l, const struct frame_head *head) {
    *l = (struct large){.on = true, .head = *head, .index = -1};
    uint64_t size = 8 * (uint64_t)head->buffers + head->function + head->payload;
    l->front = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (!l->front) large_lose(l, head->total);
    return large_next(l);
}

/* Takes up to n bytes that were received already; how many, or -1. */
static Py_ssize_t large_copy(struct large *l, const uint8_t *data, size_t n) {
    size_t done = 0;
    PyObject *piece;
    while (done < n) {
        size_t some;
        if (l->lost) {
            some = n - done < l->skip ? n - done : (size_t)l->skip;
            l->skip -= some;
            return (Py_ssize_t)(done + some);
        }
        if (!(piece = large_piece(l))) break;
        some = (size_t)PyByteArray_GET_SIZE(piece) - l->at;
        if (some > n - done) some = n - done;
        memcpy(PyByteArray_AS_STRING(piece) + l->at, data + done, some);
        l->at += some;
        done += some;
        if (large_next(l) < 0) return -1;
    }
    return (Py_ssize_t)done;
}

static bool large_done(const struct large *l) { return l->lost ? l->skip == 0 : !large_piece(l); }

/* Where the next bytes go. */
static uint8_t *target(struct receiver *r, size_t *room) {
    struct large *l = &r->large;
    if (l->on && !l->lost && !large_done(l)) {
        PyObject *piece = large_piece(l);
        *room = (size_t)PyByteArray_GET_SIZE(piece) - l->at;
        return (uint8_t *)PyByteArray_AS_STRING(piece) + l->at;
    }
    if (r->start == r->end) r->start = r->end = 0;
    if (r->end == ROOM && r->start > 0) {
        memmove(r->data, r->data + r->start, r->end - r->start);
        r->end -= r->start;
        r->start = 0;
    }
    *room = ROOM - r->end;
    return r->data + r->end;
}

int receiver_fill(struct receiver *r, bool wait) {
    for (;;) {
        size_t room;
        uint8_t *to = target(r, &room);
        if (room == 0) return 1; /* frames have to be taken first */
        ssize_t n;
        if (wait || room > QUICK * 4) { /* a large piece: the memory is nobody else's */
            Py_BEGIN_ALLOW_THREADS
            n = recv(r->fd, to, room, wait ? 0 : MSG_DONTWAIT);
            Py_END_ALLOW_THREADS
        } else n = recv(r->fd, to, room, MSG_DONTWAIT);
        if (n < 0) {
            if (errno == EINTR) {
                if (PyErr_CheckSignals() < 0) return -1;
                continue;
            }
            if (errno == EAGAIN || errno == EWOULDBLOCK) return -2;
            if (errno == ECONNRESET) return 0; /* the other end has left something unread; all that it sent is here */
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
        if (n == 0) return 0;
        struct large *l = &r->large;
        if (to >= r->data && to < r->data + ROOM) r->end += (size_t)n;
        else {
            l->at += (size_t)n;
            if (large_next(l) < 0) return large_free(l), -1;
        }
        return 1;
    }
}

/* A part of the front as an object of its own. */
static PyObject *part(PyObject *front, Py_ssize_t at, Py_ssize_t n) {
    if (n <= (Py_ssize_t)SMALL) return PyBytes_FromStringAndSize(PyByteArray_AS_STRING(front) + at, n);
    if (at == 0 && n == PyByteArray_GET_SIZE(front)) return Py_NewRef(front);
    PyObject *view = PyMemoryView_FromObject(front), *slice = view ? PySequence_GetSlice(view, at, at + n) : NULL;
    Py_XDECREF(view);
    return slice;
}

/* There is no memory for what it holds: only that it came is told.  Clears the exception, MemoryError. */
static int frame_lost(struct frame *f) {
    PyErr_Clear();
    frame_free(f);
    f->function = PyBytes_FromStringAndSize(NULL, 0); /* there is one for all, it does not fail */
    f->payload = Py_NewRef(Py_None);
    return 1;
}

static int large_take(struct large *l, struct frame *f) {
    *f = (struct frame){.head = l->head};
    if (!l->lost) {
        Py_ssize_t at = 8 * (Py_ssize_t)l->head.buffers, function = (Py_ssize_t)l->head.function;
        f->function = part(l->front, at, function);
        f->payload = part(l->front, at + function, (Py_ssize_t)l->head.payload);
        if (l->head.buffers) f->buffers = Py_NewRef(l->buffers);
    }
    large_free(l);
    return f->function && f->payload ? 1 : frame_lost(f);
}

int receiver_take(struct receiver *r, struct frame *f) {
    struct large *l = &r->large;
    if (!l->on) {
        size_t have = r->end - r->start;
        struct frame_head head;
        if (have < sizeof head) return 0;
        memcpy(&head, r->data + r->start, sizeof head);
        uint64_t front = 8 * (uint64_t)head.buffers, most = (uint64_t)PY_SSIZE_T_MAX - front;
        if (head.function > most || head.payload > most - head.function || head.total > (uint64_t)PY_SSIZE_T_MAX) return nonsense();
        front += head.function + head.payload;
        if (front > head.total || (head.buffers == 0 && front != head.total)) return nonsense();
        have -= sizeof head;
        if (head.buffers == 0 && head.total <= ROOM - sizeof head) {
            if (have < head.total) return 0;
            const char *at = (const char *)r->data + r->start + sizeof head;
            *f = (struct frame){.head = head};
            f->function = PyBytes_FromStringAndSize(at, (Py_ssize_t)head.function);
            f->payload = PyBytes_FromStringAndSize(at + head.function, (Py_ssize_t)head.payload);
            r->start += sizeof head + (size_t)head.total;
            return f->function && f->payload ? 1 : frame_lost(f);
        }
        r->start += sizeof head;
        if (large_begin(l, &head) < 0) return large_free(l), -1;
    }
    if (!large_done(l) && r->end > r->start) {
        Py_ssize_t n = large_copy(l, r->data + r->start, r->end - r->start);
        if (n < 0) return large_free(l), -1;
        r->start += (size_t)n;
    }
    return large_done(l) ? large_take(l, f) : 0;
}

/* ---- out ---- */
static struct piece *piece_new(struct sender *s) {
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 16;
        struct piece *grown = PyMem_RawRealloc(s->pieces, cap * sizeof *grown);
        if (!grown) {
            PyErr_NoMemory();
            return NULL;
        }
        s->pieces = grown;
        s->cap = cap;
    }
    struct piece *p = &s->pieces[s->n];
    memset(p, 0, sizeof *p);
    s->n++;
    return p;
}

static void piece_free(struct piece *p) {
    if (p->view.obj) PyBuffer_Release(&p->view);
    PyMem_RawFree(p->own);
    memset(p, 0, sizeof *p);
}

static bool add_small(struct sender *s, const void *data, size_t n) {
    struct piece *p = s->n > s->first ? &s->pieces[s->n - 1] : NULL;
    if (!p || !p->own || p->len + n > TOGETHER) {
        if (!(p = piece_new(s))) return false;
    }
    if (p->len + n > p->cap) {
        size_t cap = p->cap ? 2 * p->cap : 1024;
        while (cap < p->len + n) cap *= 2;
        uint8_t *grown = PyMem_RawRealloc(p->own, cap);
        if (!grown) {
            PyErr_NoMemory();
            return false;
        }
        p->own = grown;
        p->cap = cap;
    }
    memcpy(p->own + p->len, data, n);
    p->len += n;
    return true;
}

static bool add_part(struct sender *s, Py_buffer *view) {
    if (view->len <= (Py_ssize_t)SMALL) {
        bool added = add_small(s, view->buf, (size_t)view->len);
        PyBuffer_Release(view);
        return added;
    }
    struct piece *p = piece_new(s);
    if (!p) {
        PyBuffer_Release(view);
        return false;
    }
    p->view = *view;
    p->len = (size_t)view->len;
    return true;
}

/* What was added since: takes it away again. */
static void sender_undo(struct sender *s, size_t n, size_t len) {
    while (s->n > s->first && s->n > n) piece_free(&s->pieces[--s->n]);
    if (s->n > s->first && s->pieces[s->n - 1].own) s->pieces[s->n - 1].len = len;
}

bool sender_add(struct sender *s, struct frame_head *head, PyObject *function, PyObject *payload, PyObject *buffers) {
    Py_ssize_t count = buffers ? PyList_GET_SIZE(buffers) : 0, got = 0;
    if (count > UINT16_MAX) {
        PyErr_SetString(PyExc_ValueError, "too many buffers in one frame");
        return false;
    }
    Py_buffer few[2] = {0}, *views = count ? PyMem_RawCalloc((size_t)count + 2, sizeof *views) : few;
    if (!views) {
        PyErr_NoMemory();
        return false;
    }
    PyObject *parts[2] = {function, payload};
    for (; got < count + 2; got++) {
        PyObject *o = got < 2 ? parts[got] : PyList_GET_ITEM(buffers, got - 2);
        if (o && PyObject_GetBuffer(o, &views[got], PyBUF_SIMPLE) < 0) break;
    }
    bool added = got == count + 2;
    if (s->first > 0) { /* now, and not while we remember where we were */
        memmove(s->pieces, s->pieces + s->first, (s->n - s->first) * sizeof *s->pieces);
        s->n -= s->first;
        s->first = 0;
    }
    size_t n = s->n, len = n > s->first ? s->pieces[n - 1].len : 0;
    Py_ssize_t next = 0;
    if (added) {
        head->buffers = (uint16_t)count;
        head->function = (uint64_t)views[0].len;
        head->payload = (uint64_t)views[1].len;
        head->total = 8 * (uint64_t)count + head->function + head->payload;
        for (Py_ssize_t i = 2; i < count + 2; i++) head->total += (uint64_t)views[i].len;
        added = add_small(s, head, sizeof *head);
        for (Py_ssize_t i = 2; added && i < count + 2; i++) {
            uint64_t length = (uint64_t)views[i].len;
            added = add_small(s, &length, sizeof length);
        }
        for (; added && next < count + 2; next++)
            if (views[next].obj) added = add_part(s, &views[next]);
        if (!added) sender_undo(s, n, len);
    }
    for (; next < got; next++)
        if (views[next].obj) PyBuffer_Release(&views[next]);
    if (views != few) PyMem_RawFree(views);
    return added;
}

bool sender_begun(const struct sender *s) { return s->first < s->n && s->pieces[s->first].at > 0; }

static void sent(struct sender *s, size_t n) {
    while (n > 0) {
        struct piece *p = &s->pieces[s->first];
        size_t rest = p->len - p->at;
        if (rest > n) {
            p->at += n;
            return;
        }
        n -= rest;
        piece_free(p);
        s->first++;
    }
}

int sender_flush(struct sender *s, bool wait) {
    for (;;) {
        struct iovec parts[PARTS];
        struct msghdr msg = {.msg_iov = parts};
        size_t total = 0;
        while (s->first < s->n && s->pieces[s->first].len == s->pieces[s->first].at) piece_free(&s->pieces[s->first++]);
        for (size_t i = s->first; i < s->n && msg.msg_iovlen < PARTS; i++) {
            struct piece *p = &s->pieces[i];
            uint8_t *data = p->own ? p->own : p->view.buf;
            parts[msg.msg_iovlen++] = (struct iovec){.iov_base = data + p->at, .iov_len = p->len - p->at};
            total += p->len - p->at;
        }
        if (total == 0) {
            s->first = s->n = 0;
            return 1;
        }
        ssize_t n;
        int flags = MSG_NOSIGNAL | (wait ? 0 : MSG_DONTWAIT);
        if (wait || total > QUICK) {
            Py_BEGIN_ALLOW_THREADS
            n = sendmsg(s->fd, &msg, flags);
            Py_END_ALLOW_THREADS
        } else n = sendmsg(s->fd, &msg, flags);
        if (n >= 0) sent(s, (size_t)n);
        else if (errno == EINTR) {
            if (PyErr_CheckSignals() < 0) return -1;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) return 0;
        else {
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
    }
}

void sender_clear(struct sender *s) {
    for (size_t i = s->first; i < s->n; i++) piece_free(&s->pieces[i]);
    PyMem_RawFree(s->pieces);
    *s = (struct sender){.fd = s->fd};
}

/* ---- the page ---- */
struct page *page_map(int fd) {
    struct stat st;
    if (fstat(fd, &st) == 0) {
        void *p = MAP_FAILED;
        if (st.st_size < (off_t)sizeof(struct page)) errno = EINVAL; /* what is behind the end would be a SIGBUS */
        else p = mmap(NULL, sizeof(struct page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (p != MAP_FAILED) return p;
    }
    PyErr_SetFromErrno(PyExc_OSError);
    return NULL;
}

void page_unmap(struct page *page) {
    if (page) munmap(page, sizeof *page);
}
