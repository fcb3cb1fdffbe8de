/* A timer of its CPU time for each thread that writes in a trace: it expires once, and a sample is due.
 *
 * A handler that somebody else puts in the place of ours sees one signal of ours at most, since a timer is set anew only
 * when a sample was taken.  The signal is SIGURG, as for Go's preemption: by default it is ignored, so a timer can never
 * end a process; SIGPROF and the interval timers are left to the program.
 */
#include <Python.h>

#include "writer.h"

#include <errno.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

struct tick ticks[TICKS];
static struct {
    int signum;       /* GIL: the handler is ours; 0: it is not, there are no samples */
    bool has_main;    /* GIL: and Python calls ours for it */
} handler;
static struct {
    pthread_mutex_t lock;
    timer_t timer[TICKS]; /* under lock: of those that are used */
    bool made[TICKS];     /* under lock */
} timers = {.lock = PTHREAD_MUTEX_INITIALIZER};
struct ticks_ask ticks_ask;

static void on_tick(int signum, siginfo_t *info, void *context) {
    (void)context;
    int saved = errno, i = info->si_value.sival_int;
    if (info->si_code == SI_TIMER && i > 0 && i < TICKS) {
        STORE(&ticks[i].due, true);
        if (LOAD(&ticks[i].is_main)) PyErr_SetInterruptEx(signum); /* made for this: it only sets flags */
    }
    errno = saved;
}

uint64_t ticks_cpu(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* From half of a period to one and a half: what a program does in step with the clock is not always met at one place. */
static void set_timer(struct writer *w, uint64_t period) {
    w->dice ^= w->dice << 13, w->dice ^= w->dice >> 7, w->dice ^= w->dice << 17;
    uint64_t ns = period / 2 + w->dice % period;
    struct itimerspec once = {.it_value = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)}};
    (void)timer_settime(timers.timer[w->tick], 0, &once, NULL); /* by its thread, which alone deletes it */
}

static bool make_timer(struct writer *w) {
    uint32_t i = 1;
    bool unused = false;
    while (i < TICKS && !atomic_compare_exchange_strong(&ticks[i].used, &unused, true)) unused = false, i++;
    if (i == TICKS) return false;
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = handler.signum, .sigev_value.sival_int = (int)i};
    event.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
    STORE(&ticks[i].due, false);
    STORE(&ticks[i].is_main, event.sigev_notify_thread_id == getpid());
    pthread_mutex_lock(&timers.lock);
    bool made = timers.made[i] = timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timers.timer[i]) == 0;
    pthread_mutex_unlock(&timers.lock);
    if (!made) {
        STORE(&ticks[i].used, false);
        return false;
    }
    w->tick = i;
    w->dice = now_ns() | 1;
    return true;
}

int ticks_install(int signum, bool has_main) {
    struct sigaction action = {.sa_sigaction = on_tick, .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    if (sigaction(signum, &action, NULL) != 0) return errno;
    handler.signum = signum;
    handler.has_main = has_main;
    return 0;
}

bool ticks_are_ours(int signum) {
    struct sigaction now;
    return sigaction(signum, NULL, &now) == 0 && now.sa_sigaction == on_tick;
}

#define ASK_EACH 8 /* samples: a wakeup descriptor holds some hundreds of bytes, and to ask takes longer than all the rest */

/* Why this thread may have no timer now; 0: nothing is against it. */
static uint32_t obstacle(struct writer *w) {
    sigset_t blocked;
    if (!handler.signum) return MISS_HANDLED;
    if (!ticks_are_ours(handler.signum) && !(ticks_ask.is_back && ticks_ask.is_back(handler.signum) && ticks_install(handler.signum, handler.has_main) == 0))
        return MISS_HANDLED;
    if (pthread_sigmask(SIG_BLOCK, NULL, &blocked) == 0 && sigismember(&blocked, handler.signum)) return MISS_BLOCKED;
    if (!w->tick && !make_timer(w)) return MISS_TIMERS;
    bool asks = w->asked++ % ASK_EACH == 0 || w->unsampled;
    if (asks && LOAD(&ticks[w->tick].is_main) && ticks_ask.has_wakeup && ticks_ask.has_wakeup()) return MISS_WAKEUP;
    return 0;
}

#define AGAIN 100000000u /* ns until it is looked again whether what was against samples has gone */

void ticks_again(struct writer *w) {
    if (now_ns() - w->refused >= AGAIN) ticks_arm(w);
}

void ticks_set(struct writer *w) {
    uint64_t period = LOAD(&w->head->cpu_period);
    uint32_t why = period ? obstacle(w) : 0;
    w->unsampled = why != 0;
    if (why) w->refused = now_ns(), atomic_fetch_or(&w->head->unsampled, why);
    else if (period) set_timer(w, period);
}

/* At this CPU time: a sample should have been due for long.  The signal is blocked, or somebody else has had it. */
void ticks_check(struct writer *w, uint64_t cpu) {
    uint64_t period = LOAD(&w->head->cpu_period);
    if (period && w->tick && !w->unsampled && !LOAD(&ticks[w->tick].due) && cpu > w->cpu + 10 * period) ticks_set(w);
}

void ticks_arm(struct writer *w) {
    STORE(&ticks[w->tick].due, false);
    w->cpu = ticks_cpu();
    w->cpu_left = 0;
    w->unsampled = false;
    w->asked = 0;
    if (syscall(SYS_gettid) == getpid() && handler.signum && !handler.has_main) return; /* Python is not told yet */
    ticks_set(w);
}

void ticks_drop(struct writer *w) {
    if (!w->tick) return;
    pthread_mutex_lock(&timers.lock);
    timers.made[w->tick] = false;
    (void)timer_delete(timers.timer[w->tick]);
    pthread_mutex_unlock(&timers.lock);
    STORE(&ticks[w->tick].used, false);
    w->tick = 0;
}

void ticks_disarm(void) {
    struct itimerspec never = {0};
    pthread_mutex_lock(&timers.lock);
    for (uint32_t i = 1; i < TICKS; i++)
        if (timers.made[i]) (void)timer_settime(timers.timer[i], 0, &never, NULL);
    pthread_mutex_unlock(&timers.lock);
}

void ticks_after_fork(void) {
    pthread_mutex_t fresh = PTHREAD_MUTEX_INITIALIZER;
    timers.lock = fresh;
    for (uint32_t i = 0; i < TICKS; i++) {
        STORE(&ticks[i].used, false);
        timers.made[i] = false;
    }
}
