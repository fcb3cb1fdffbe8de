/* What a unit cost: read at its begin and its end, told as logs of it, one for each figure that changed.
 *
 *   at each end       getrusage of the thread: 0.2 us.  It serves as the next begin, if that comes at once
 *   slow sources      /proc (run queue, memory), the process's CPU time, the cgroup: at the end of a unit of at least
 *                     SHORT, and at a begin only if the thread has waited or touched memory since the last reading: else
 *                     they cannot have changed.  So what a unit of SHORT or more is told to have cost is its own
 *   shorter units     share theirs: told once a SHORT, with how many units they are of ("short units")
 *
 * What the collector did between two units is told with the later one.
 */
#include "emit.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#define SHORT 1000000u /* ns */
#define AT_ONCE 20000u /* ns from one unit to the next in which nothing was waited for */
#define THROTTLED_EACH 10000000u /* ns between looks at the cgroup, whose file is slow */

enum figure { CPU, PROCESS_CPU, VOLUNTARY, INVOLUNTARY, RUN_DELAY, MINOR, MAJOR, READ, WRITTEN, THROTTLED, GC_PAUSES, GC_TIME, GC_FREED,
              ARGUMENTS, RESULT, SUMS, RSS_BEFORE = SUMS, RSS_AFTER, RSS_PEAK, UNITS, ITEM_CPU, ITEM_RSS, FIGURES };
static const char *const names[FIGURES] = {
    [CPU] = "cpu us", [PROCESS_CPU] = "process cpu us", [VOLUNTARY] = "voluntary switches", [INVOLUNTARY] = "involuntary switches",
    [RUN_DELAY] = "run delay us", [MINOR] = "minor faults", [MAJOR] = "major faults", [READ] = "blocks read", [WRITTEN] = "blocks written",
    [THROTTLED] = "throttled us", [GC_PAUSES] = "gc pauses", [GC_TIME] = "gc us", [GC_FREED] = "gc freed",
    [ARGUMENTS] = "argument bytes", [RESULT] = "result bytes", [RSS_BEFORE] = "rss before", [RSS_AFTER] = "rss after",
    [RSS_PEAK] = "rss peak", [UNITS] = "short units", [ITEM_CPU] = "item cpu us", [ITEM_RSS] = "item rss",
};

struct quick { uint64_t cpu, voluntary, involuntary, minor, major, read, written, peak; };
struct slow { uint64_t at, delay, process, rss, throttled, throttled_at; };

static struct {                  /* all of the worker's main thread, with the GIL */
    uint64_t trace;              /* the trace that the rest is of: first generation */
    struct quick begin, end;     /* of the unit that runs; of the last one */
    struct quick seen;           /* as the slow sources were read */
    struct slow slow, slow_begin; /* as read last; as at the begin of the unit that runs */
    uint64_t began, ended;       /* ns */
    uint64_t told;               /* when figures were told last, ns */
    struct pauses pauses;        /* that were told */
    uint64_t units, sum[SUMS];   /* short ones that were not told */
    bool open;                   /* `begin` is of the unit that runs */
    int schedstat, statm, throttle; /* owned descriptors; -1: there is none */
    char throttle_key[32];
    uint64_t throttle_unit;      /* how many of that file's are 1 us */
    enum { DETAIL_NONE, DETAIL_UNIT, DETAIL_ITEM } detail; /* what is told of */
    struct string *key[FIGURES], *short_key[FIGURES]; /* owned */
} f = {.detail = DETAIL_UNIT, .schedstat = -1, .statm = -1, .throttle = -1};

/* ---- reading ---- */
static void read_quick(struct quick *q) {
    struct rusage u;
    if (getrusage(RUSAGE_THREAD, &u) != 0) return;
    *q = (struct quick){
        .cpu = (uint64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000u + (uint64_t)(u.ru_utime.tv_usec + u.ru_stime.tv_usec),
        .voluntary = (uint64_t)u.ru_nvcsw, .involuntary = (uint64_t)u.ru_nivcsw, .minor = (uint64_t)u.ru_minflt,
        .major = (uint64_t)u.ru_majflt, .read = (uint64_t)u.ru_inblock, .written = (uint64_t)u.ru_oublock, .peak = (uint64_t)u.ru_maxrss * 1024};
}

/* The file's text, or false.  The program may have closed the descriptor, even opened another: nothing is believed. */
static bool text_of(int fd, char *text, size_t size) {
    ssize_t n = fd >= 0 ? pread(fd, text, size - 1, 0) : -1;
    if (n <= 0) return false;
    text[n] = 0;
    return true;
}

static uint64_t rss_now(void) {
    char text[128];
    unsigned long long size, rss;
    if (!text_of(f.statm, text, sizeof text) || sscanf(text, "%llu %llu", &size, &rss) != 2) return f.slow.rss;
    return rss * (uint64_t)sysconf(_SC_PAGESIZE);
}

static uint64_t throttled_now(void) {
    char text[1024], *at;
    if (!text_of(f.throttle, text, sizeof text) || !(at = strstr(text, f.throttle_key))) return f.slow.throttled;
    unsigned long long value = strtoull(at + strlen(f.throttle_key), NULL, 10);
    return value / f.throttle_unit;
}

static void read_slow(const struct quick *q, uint64_t now) {
    char text[128];
    unsigned long long ran, delay;
    struct timespec t;
    if (text_of(f.schedstat, text, sizeof text) && sscanf(text, "%llu %llu", &ran, &delay) == 2) f.slow.delay = delay / 1000;
    if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t) == 0)
        f.slow.process = (uint64_t)t.tv_sec * 1000000u + (uint64_t)t.tv_nsec / 1000;
    f.slow.rss = rss_now();
    if (f.throttle >= 0 && now - f.slow.throttled_at >= THROTTLED_EACH) {
        f.slow.throttled = throttled_now();
        f.slow.throttled_at = now;
    }
    f.slow.at = now;
    f.seen = *q;
}

static bool may_have_changed(const struct quick *q) {
    return q->voluntary != f.seen.voluntary || q->involuntary != f.seen.involuntary || q->minor != f.seen.minor || q->major != f.seen.major;
}

/* ---- telling ---- */
static struct string *key_of(enum figure what, bool is_short) {
    struct string **key = is_short ? &f.short_key[what] : &f.key[what];
    if (*key) return *key;
    PyObject *text = PyUnicode_FromFormat(is_short && what != UNITS ? "short units: %s" : "%s", names[what]);
    if (text) *key = string_of(text);
    Py_XDECREF(text);
    if (!*key) PyErr_Clear(); /* no memory: it is not told */
    return *key;
}

static void tell(struct writer *w, enum figure what, bool is_short, uint64_t value) {
    char text[24];
    int len = snprintf(text, sizeof text, "%llu", (unsigned long long)value);
    emit_begin();
    struct string *key = key_of(what, is_short);
    if (key) emit_text(w, 0, key, text, (uint32_t)len);
    emit_end();
}

static void tell_sums(struct writer *w, const uint64_t *sum, bool is_short) {
    for (enum figure i = 0; i < SUMS; i++)
        if (sum[i]) tell(w, i, is_short, sum[i]);
}

static uint64_t since(uint64_t now, uint64_t then) { return now > then ? now - then : 0; }

static void add_quick(uint64_t *sum, const struct quick *from, const struct quick *to) {
    sum[CPU] += since(to->cpu, from->cpu);
    sum[VOLUNTARY] += since(to->voluntary, from->voluntary);
    sum[INVOLUNTARY] += since(to->involuntary, from->involuntary);
    sum[MINOR] += since(to->minor, from->minor);
    sum[MAJOR] += since(to->major, from->major);
    sum[READ] += since(to->read, from->read);
    sum[WRITTEN] += since(to->written, from->written);
}

/* What is told with slow sources: their growth from `from`, and the collector's work since it was told last. */
static void add_slow(uint64_t *sum, const struct slow *from) {
    uint64_t process = since(f.slow.process, from->process);
    if (process > sum[CPU] + sum[CPU] / 64 + 100) sum[PROCESS_CPU] = process; /* other threads of the process, too */
    sum[RUN_DELAY] = since(f.slow.delay, from->delay);
    sum[THROTTLED] = since(f.slow.throttled, from->throttled);
    sum[GC_PAUSES] = pauses.count - f.pauses.count;
    sum[GC_TIME] = (pauses.ns - f.pauses.ns) / 1000;
    sum[GC_FREED] = pauses.freed - f.pauses.freed;
    f.pauses = pauses;
}

static void tell_short(struct writer *w) {
    tell(w, UNITS, true, f.units);
    tell_sums(w, f.sum, true);
    memset(f.sum, 0, sizeof f.sum);
    f.units = 0;
}

static void tell_memory(struct writer *w, const struct slow *from, const struct quick *begin, const struct quick *end, bool is_short) {
    if (f.slow.rss != from->rss) {
        tell(w, RSS_BEFORE, is_short, from->rss);
        tell(w, RSS_AFTER, is_short, f.slow.rss);
    }
    if (end->peak > begin->peak) tell(w, RSS_PEAK, is_short, end->peak);
}

/* ---- at a unit's begin and end: only while a trace is on ---- */
static void begin_trace(struct writer *w, uint64_t now) {
    f.trace = LOAD(&w->head->first_gen);
    f.units = 0;
    memset(f.sum, 0, sizeof f.sum);
    f.pauses = pauses;
    f.told = now;
    if (f.schedstat < 0) f.schedstat = open("/proc/self/schedstat", O_RDONLY | O_CLOEXEC);
    if (f.statm < 0) f.statm = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
}

void figures_begin(struct writer *w) {
    if (f.detail == DETAIL_NONE) return;
    uint64_t now = w->last_time; /* it has just said that it begins */
    bool fresh = f.trace != LOAD(&w->head->first_gen);
    if (fresh) begin_trace(w, now);
    if (fresh || now - f.ended > AT_ONCE) read_quick(&f.begin);
    else f.begin = f.end;
    if (fresh || may_have_changed(&f.begin)) read_slow(&f.begin, now);
    f.slow_begin = f.slow;
    f.began = now;
    f.open = true;
}

void figures_end(struct writer *w, uint64_t arguments, uint64_t result) {
    if (!f.open || f.trace != LOAD(&w->head->first_gen)) return; /* its begin was not in this trace */
    f.open = false;
    uint64_t now = w->last_time, own[SUMS] = {[ARGUMENTS] = arguments, [RESULT] = result};
    read_quick(&f.end);
    f.ended = now;
    add_quick(own, &f.begin, &f.end);
    if (now - f.began >= SHORT) {
        if (f.units) tell_short(w);
        read_slow(&f.end, now);
        add_slow(own, &f.slow_begin);
        tell_sums(w, own, false);
        tell_memory(w, &f.slow_begin, &f.begin, &f.end, false);
        f.told = now;
        return;
    }
    for (enum figure i = 0; i < SUMS; i++) f.sum[i] += own[i];
    f.units++;
    if (now - f.told < SHORT) return;
    struct slow from = f.slow;
    struct quick seen = f.seen;
    if (may_have_changed(&f.end)) read_slow(&f.end, now);
    add_slow(f.sum, &from);
    tell_short(w);
    tell_memory(w, &from, &seen, &f.end, true);
    f.told = now;
}

/* ---- of each item, if that is wanted ---- */
bool figures_of_items(void) { return f.detail == DETAIL_ITEM; }

uint64_t figures_item_begin(void) {
    struct quick q = {0};
    read_quick(&q);
    return q.cpu;
}

void figures_item_end(struct writer *w, uint64_t cpu_begin) {
    struct quick q = {0};
    read_quick(&q);
    tell(w, ITEM_CPU, false, since(q.cpu, cpu_begin));
    tell(w, ITEM_RSS, false, rss_now());
}

static PyObject *figures_prepare(PyObject *m, PyObject *args) {
    (void)m;
    int detail;
    const char *path, *key;
    unsigned long long unit;
    if (!PyArg_ParseTuple(args, "issK", &detail, &path, &key, &unit)) return NULL;
    if (detail < DETAIL_NONE || detail > DETAIL_ITEM) return PyErr_Format(PyExc_ValueError, "there is no detail %d", detail);
    f.detail = (unsigned)detail;
    if (*path && f.throttle < 0) f.throttle = open(path, O_RDONLY | O_CLOEXEC);
    snprintf(f.throttle_key, sizeof f.throttle_key, "%s", key);
    f.throttle_unit = unit ? unit : 1;
    Py_RETURN_NONE;
}

PyMethodDef figures_methods[] = {
    {"figures_prepare", figures_prepare, METH_VARARGS,
     "figures_prepare(detail, path, key, unit): 0: of nothing, 1: of units, 2: and of items; the cgroup's file, which of its lines says how long it was throttled, and how many of it are 1 us."},
    {NULL, NULL, 0, NULL},
};
