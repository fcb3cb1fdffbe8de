/* A look before one blocks.  To be woken takes some 50 us on a machine whose other processor has gone to sleep; most of
 * what a call or a worker waits for comes sooner.  So a thread looks for a while, without the GIL, and gives way to
 * others that want its processor; when that was in vain it looks more rarely, down to one wait of 64.
 */
#ifndef POOLTRACE_SPIN_H
#define POOLTRACE_SPIN_H

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "channel.h"

#define SPIN_NS 50000u
#define SPIN_REST 6 /* 2 to that power: after how many waits it looks again, at last */

struct spin {
    uint32_t vain; /* looks in vain, one after the other; no more than SPIN_REST are counted */
    uint32_t rest; /* waits until the next look */
};

static inline void cpu_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Until *word is that value, or is not; false: it did not come, or this wait is no time to look. */
static inline bool spin_until(struct spin *s, const _Atomic uint64_t *word, bool equal, uint64_t value) {
    if (s->rest > 0) {
        s->rest--;
        return false;
    }
    uint64_t begin = channel_now();
    do {
        for (int i = 0; i < 32; i++) {
            if ((atomic_load_explicit(word, memory_order_acquire) == value) == equal) {
                s->vain = 0;
                return true;
            }
            cpu_pause();
        }
        sched_yield();
    } while (channel_now() - begin < SPIN_NS);
    if (s->vain < SPIN_REST) s->vain++;
    s->rest = (1u << s->vain) - 1;
    return false;
}

#endif
