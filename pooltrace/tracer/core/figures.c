/* What a unit cost: read at its begin and its end, told as logs of it, one for each figure that changed.
 *
 *   at each end   getrusage of the thread: 0.3 us.  It serves as the next begin, if that comes at once
 *   CPU time      as long as the thread was not switched, it has computed all the time: the clock of its CPU time (0.6 us)
 *                 is read when it was, and once a SHORT.  (getrusage's own moves with the kernel's ticks only.)
 *   others        the run queue, memory, other threads, the cgroup: at the end of a unit of at least SHORT; at a begin those
 *                 that may have changed since: the run queue only with a switch, memory with a fault or after something
 *                 large.  So what a unit of SHORT or more is told to have cost is its own
 *   shorter units share theirs: told once in EACH, with how many units they are of ("short units")
 *
 * What the collector did between two units is told with the later one, by keys of its own.
 */
#include "emit.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define SHORT 1000000 /* ns */
#define EACH 10000000 /* ns for which short units are told of together */
#define LARGE 65536   /* bytes of arguments and result after which memory may have been given back */
#define AT_ONCE 5000u /* ns from one unit to the next in which nothing was waited for */
#define THROTTLED_EACH 10000000u /* ns between looks at the cgroup, whose file is slow */

enum figure { CPU, PROCESS_CPU, VOLUNTARY, INVOLUNTARY, RUN_DELAY, MINOR, MAJOR, READ, WRITTEN, THROTTLED, GC_PAUSES, GC_TIME, GC_FREED,
              ARGUMENTS, RESULT, SUMS, RSS_BEFORE = SUMS, RSS_AFTER, RSS_PEAK, UNITS, ITEM_CPU, ITEM_RSS, GC_PAUSES_BEFORE, GC_TIME_BEFORE,
              GC_FREED_BEFORE, FIGURES };
static const char *const names[FIGURES] = {
    [CPU] = "cpu us", [PROCESS_CPU] = "process cpu us", [VOLUNTARY] = "voluntary switches", [INVOLUNTARY] = "involuntary switches",
    [RUN_DELAY] = "run delay us", [MINOR] = "minor faults", [MAJOR] = "major faults", [READ] = "blocks read", [WRITTEN] = "blocks written",
    [THROTTLED] = "throttled us", [GC_PAUSES] = "gc pauses", [GC_TIME] = "gc us", [GC_FREED] = "gc freed",
    [ARGUMENTS] = "argument bytes", [RESULT] = "result bytes", [RSS_BEFORE] = "rss before", [RSS_AFTER] = "rss after",
    [RSS_PEAK] = "rss peak", [UNITS] = "short units", [ITEM_CPU] = "item cpu us", [ITEM_RSS] = "item rss",
    [GC_PAUSES_BEFORE] = "gc pauses before", [GC_TIME_BEFORE] = "gc us before", [GC_FREED_BEFORE] = "gc freed before",
};

struct quick { uint64_t cpu, voluntary, involuntary, minor, major, read, written, peak; }; /* cpu in ns */
struct slow { uint64_t delay, others, rss, throttled, throttled_at; }; /* us, ns of other threads, bytes, us, ns */

static struct {                  /* all of the worker's main thread, with the GIL */
    uint64_t trace;              /* the trace that the rest is of: first generation */
    struct quick begin, end;     /* of the unit that runs; of the last one */
    struct { uint64_t at, cpu, switches; } clock; /* of the thread's CPU time, as read last: when, ns, with how many switches */
    uint64_t switches, faults;   /* with which the run queue, and memory, were read last */
    struct slow slow, slow_begin, slow_told; /* as read last; at the begin of the unit that runs; when last told of */
    bool has_others;             /* other threads of the process have computed */
    bool was_large;              /* memory may have been given back since it was read */
    uint64_t began, ended;       /* ns */
    uint64_t told, peak_told;    /* when units were told of last, ns; the highest memory then */
    struct pauses pauses, pauses_begin; /* as at the end of the last unit; at the begin of the one that runs */
    uint64_t units, sum[SUMS];   /* short ones that were not told; CPU in ns */
    bool open;                   /* `begin` is of the unit that runs */
    enum { DETAIL_NONE, DETAIL_UNIT, DETAIL_ITEM } detail; /* what is told of */
    struct source { int fd; dev_t dev; ino_t ino; } schedstat, statm, throttle; /* fd owned; -1: there is none */
    char throttle_key[32];
    uint64_t throttle_unit;      /* how many of that file's are 1 us */
    struct string *key[FIGURES], *short_key[FIGURES]; /* owned */
} f = {.detail = DETAIL_UNIT, .schedstat = {.fd = -1}, .statm = {.fd = -1}, .throttle = {.fd = -1}};

/* ---- reading ---- */
static uint64_t read_clock(uint64_t switches) {
    f.clock.cpu = ticks_cpu();
    f.clock.at = now_ns();
    f.clock.switches = switches;
    return f.clock.cpu;
}

/* It has computed all the time, if it was not switched. */
static uint64_t cpu_at(const struct quick *q, uint64_t now) {
    int64_t past = (int64_t)(now - f.clock.at);
    uint64_t switches = q->voluntary + q->involuntary;
    return switches == f.clock.switches && past < SHORT ? f.clock.cpu + (uint64_t)past : read_clock(switches);
}

static void read_quick(struct quick *q, uint64_t now) {
    struct rusage u;
    if (getrusage(RUSAGE_THREAD, &u) != 0) return;
    *q = (struct quick){.voluntary = (uint64_t)u.ru_nvcsw, .involuntary = (uint64_t)u.ru_nivcsw, .minor = (uint64_t)u.ru_minflt,
                        .major = (uint64_t)u.ru_majflt, .read = (uint64_t)u.ru_inblock, .written = (uint64_t)u.ru_oublock,
                        .peak = (uint64_t)u.ru_maxrss * 1024};
    q->cpu = cpu_at(q, now);
}

/* The file's text, or false.  The program may have closed the descriptor, even opened another file in its place. */
static bool text_of(const struct source *s, char *text, size_t size) {
    struct stat status;
    if (s->fd < 0 || fstat(s->fd, &status) != 0 || status.st_ino != s->ino || status.st_dev != s->dev) return false;
    ssize_t n = pread(s->fd, text, size - 1, 0);
    if (n <= 0) return false;
    text[n] = 0;
    return true;
}

/* The second number of a text. */
static bool second_of(const char *text, uint64_t *out) {
    char *end;
    const char *at = strchr(text, ' ');
    if (!at) return false;
    *out = strtoull(at + 1, &end, 10);
    return end != at + 1;
}

static void read_delay(const struct quick *q) {
    char text[128];
    uint64_t ns;
    if (text_of(&f.schedstat, text, sizeof text) && second_of(text, &ns)) f.slow.delay = ns / 1000;
    f.switches = q->voluntary + q->involuntary;
}

static uint64_t rss_now(void) {
    char text[128];
    uint64_t pages;
    if (!text_of(&f.statm, text, sizeof text) || !second_of(text, &pages)) return f.slow.rss;
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void read_rss(const struct quick *q) {
    f.slow.rss = rss_now();
    f.faults = q->minor + q->major;
    f.was_large = false;
}

static void read_others(const struct quick *q) {
    struct timespec t;
    uint64_t own = read_clock(q->voluntary + q->involuntary);
    if (clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t) != 0) return;
    uint64_t process = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
    f.slow.others = process > own ? process - own : 0;
}

static void read_throttled(uint64_t now) {
    char text[1024], *at;
    if (f.throttle.fd < 0 || now - f.slow.throttled_at < THROTTLED_EACH) return;
    f.slow.throttled_at = now;
    if (text_of(&f.throttle, text, sizeof text) && (at = strstr(text, f.throttle_key)))
        f.slow.throttled = strtoull(at + strlen(f.throttle_key), NULL, 10) / f.throttle_unit;
}

static void read_slow(const struct quick *q, uint64_t now) {
    read_delay(q);
    read_rss(q);
    read_others(q);
    read_throttled(now);
}

/* ---- telling ---- */
/* No exception is set, and none is left. */
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
    for (enum figure i = 0; i < SUMS; i++) {
        uint64_t value = i == CPU || i == PROCESS_CPU || i == GC_TIME ? sum[i] / 1000 : sum[i];
        if (value) tell(w, i, is_short, value);
    }
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

static void add_pauses(uint64_t *sum, const struct pauses *from, const struct pauses *to) {
    sum[GC_PAUSES] += to->count - from->count;
    sum[GC_TIME] += to->ns - from->ns;
    sum[GC_FREED] += to->freed - from->freed;
}

/* By how much what is read seldom has grown. */
static void add_slow(uint64_t *sum, const struct slow *from, const struct slow *to) {
    uint64_t others = since(to->others, from->others);
    if (others > 100000 && others > sum[CPU] / 64) {
        sum[PROCESS_CPU] = sum[CPU] + others;
        f.has_others = true;
    }
    sum[RUN_DELAY] = since(to->delay, from->delay);
    sum[THROTTLED] = since(to->throttled, from->throttled);
}

static void tell_memory(struct writer *w, const struct slow *from, const struct slow *to, uint64_t peak, uint64_t peak_now, bool is_short) {
    if (to->rss != from->rss) {
        tell(w, RSS_BEFORE, is_short, from->rss);
        tell(w, RSS_AFTER, is_short, to->rss);
    }
    if (peak_now > peak) tell(w, RSS_PEAK, is_short, peak_now);
}

/* Up to these readings. */
static void tell_short(struct writer *w, const struct slow *to, uint64_t peak) {
    add_slow(f.sum, &f.slow_told, to);
    tell(w, UNITS, true, f.units);
    tell_sums(w, f.sum, true);
    tell_memory(w, &f.slow_told, to, f.peak_told, peak, true);
    memset(f.sum, 0, sizeof f.sum);
    f.units = 0;
}

/* ---- at a unit's begin and end: only while a trace is on ---- */
static void source_open(struct source *s, const char *path) {
    struct stat status;
    int fd = s->fd < 0 ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd >= 0 && fd < 3) { /* the program has closed its standard streams: they are not ours */
        int high = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        close(fd);
        fd = high;
    }
    if (fd < 0 || fstat(fd, &status) != 0) return;
    *s = (struct source){fd, status.st_dev, status.st_ino};
}

static void begin_trace(struct writer *w, uint64_t now) {
    f.trace = LOAD(&w->head->first_gen);
    f.units = 0;
    memset(f.sum, 0, sizeof f.sum);
    f.pauses = pauses;
    f.told = now;
    f.clock.at = 0;
    source_open(&f.schedstat, "/proc/self/schedstat");
    source_open(&f.statm, "/proc/self/statm");
}

void figures_begin(struct writer *w) {
    if (f.detail == DETAIL_NONE) return;
    uint64_t now = w->last_time; /* it has just said that it begins */
    bool fresh = f.trace != LOAD(&w->head->first_gen);
    if (fresh) begin_trace(w, now);
    if (fresh || now - f.ended > AT_ONCE) read_quick(&f.begin, now);
    else f.begin = f.end, f.begin.cpu = cpu_at(&f.end, now);
    const struct quick *q = &f.begin;
    if (fresh) read_slow(q, now);
    if (q->voluntary + q->involuntary != f.switches) read_delay(q);
    if (f.was_large || q->minor + q->major != f.faults) read_rss(q);
    if (f.has_others || now - f.ended >= SHORT) read_others(q); /* they may have computed meanwhile */
    if (f.units && now - f.ended >= SHORT) { /* of those before it waited; their part of what is read seldom is not known */
        tell_short(w, &f.slow_told, f.end.peak);
        f.told = now;
    }
    if (f.units == 0 && now - f.ended > AT_ONCE) f.slow_told = f.slow, f.peak_told = q->peak; /* what was meanwhile is of none */
    f.slow_begin = f.slow;
    f.pauses_begin = pauses;
    f.began = now;
    f.open = true;
}

static void told_now(uint64_t now) {
    f.told = now;
    f.slow_told = f.slow;
    f.peak_told = f.end.peak;
}

static void end_long(struct writer *w, uint64_t *own, uint64_t now) {
    struct pauses before = {f.pauses_begin.count - f.pauses.count, f.pauses_begin.ns - f.pauses.ns, f.pauses_begin.freed - f.pauses.freed};
    if (f.units) tell_short(w, &f.slow_begin, f.begin.peak);
    read_slow(&f.end, now);
    add_slow(own, &f.slow_begin, &f.slow);
    tell_sums(w, own, false);
    tell_memory(w, &f.slow_begin, &f.slow, f.begin.peak, f.end.peak, false);
    if (before.count) {
        tell(w, GC_PAUSES_BEFORE, false, before.count);
        tell(w, GC_TIME_BEFORE, false, before.ns / 1000);
        if (before.freed) tell(w, GC_FREED_BEFORE, false, before.freed);
    }
    told_now(now);
    ticks_check(w, f.clock.cpu);
}

static void end_short(struct writer *w, const uint64_t *own, uint64_t now) {
    for (enum figure i = 0; i < SUMS; i++) f.sum[i] += own[i];
    add_pauses(f.sum, &f.pauses, &f.pauses_begin); /* before it */
    f.units++;
    if (now - f.told < EACH) return;
    read_slow(&f.end, now);
    tell_short(w, &f.slow, f.end.peak);
    told_now(now);
}

void figures_end(struct writer *w, uint64_t arguments, uint64_t result) {
    if (!f.open || f.trace != LOAD(&w->head->first_gen)) return; /* its begin was not in this trace */
    f.open = false;
    uint64_t now = now_ns(), own[SUMS] = {[ARGUMENTS] = arguments, [RESULT] = result};
    read_quick(&f.end, now);
    add_quick(own, &f.begin, &f.end);
    struct pauses to = pauses;
    add_pauses(own, &f.pauses_begin, &to);
    bool is_long = now - f.began >= SHORT;
    if (is_long) end_long(w, own, now);
    else end_short(w, own, now);
    f.was_large |= is_long || arguments + result >= LARGE;
    f.pauses = to;
    f.ended = is_long || f.units == 0 ? now_ns() : now; /* to tell takes its time */
}

void figures_after_fork(void) {
    f.schedstat.fd = f.statm.fd = f.throttle.fd = -1; /* of the parent; not closed: the program may have taken the numbers over */
    f.trace = 0;
    f.open = f.has_others = false;
}

/* ---- of each item, if that is wanted ---- */
bool figures_of_items(void) { return f.detail == DETAIL_ITEM; }

uint64_t figures_item_begin(void) { return ticks_cpu(); }

void figures_item_end(struct writer *w, uint64_t cpu_begin) {
    uint64_t cpu = ticks_cpu();
    tell(w, ITEM_CPU, false, since(cpu, cpu_begin) / 1000);
    tell(w, ITEM_RSS, false, rss_now());
}

static PyObject *figures_prepare(PyObject *m, PyObject *args) {
    (void)m;
    int detail;
    PyObject *path;
    const char *key;
    unsigned long long unit;
    if (!PyArg_ParseTuple(args, "iO&sK", &detail, PyUnicode_FSConverter, &path, &key, &unit)) return NULL;
    if (detail < DETAIL_NONE || detail > DETAIL_ITEM) {
        Py_DECREF(path);
        return PyErr_Format(PyExc_ValueError, "there is no detail %d", detail);
    }
    f.detail = (unsigned)detail;
    if (PyBytes_GET_SIZE(path)) source_open(&f.throttle, PyBytes_AS_STRING(path));
    Py_DECREF(path);
    snprintf(f.throttle_key, sizeof f.throttle_key, "%s", key);
    f.throttle_unit = unit ? unit : 1;
    Py_RETURN_NONE;
}

PyMethodDef figures_methods[] = {
    {"figures_prepare", figures_prepare, METH_VARARGS,
     "figures_prepare(detail, path, key, unit): 0: of nothing, 1: of units, 2: and of items; the cgroup's file, which of its lines says how long it was throttled, and how many of it are 1 us."},
    {NULL, NULL, 0, NULL},
};
