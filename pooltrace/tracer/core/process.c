/* What /proc says of the parent and its workers, once for a generation.  No Python, no GIL. */
#include "process.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static bool read_text(const char *path, char *text, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    ssize_t n = read(fd, text, size - 1);
    close(fd);
    if (n <= 0) return false;
    text[n] = 0;
    return true;
}

static uint64_t descriptors_of(const char *path) {
    struct stat status;
    if (stat(path, &status) == 0 && status.st_size > 0) return (uint64_t)status.st_size; /* Linux 6.2 and later */
    uint64_t count = 0;
    DIR *d = opendir(path);
    if (!d) return 0;
    for (struct dirent *e; (e = readdir(d));) count += e->d_name[0] != '.';
    closedir(d);
    return count;
}

bool process_read(uint64_t pid, struct process *p) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%llu/stat", (unsigned long long)pid);
    if (!read_text(path, text, sizeof text)) return false;
    char *at = strrchr(text, ')'); /* of the command's name, which may have any */
    unsigned long long threads, rss;
    /* behind it: the state, 16 numbers, the threads, 3 numbers, the resident pages */
    if (!at || sscanf(at + 1, " %*c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu %*s %*s %*s %llu", &threads, &rss) != 2)
        return false;
    snprintf(path, sizeof path, "/proc/%llu/fd", (unsigned long long)pid);
    p->threads = threads;
    p->rss = rss * (uint64_t)sysconf(_SC_PAGESIZE);
    p->descriptors = descriptors_of(path);
    return true;
}

bool processes_read(struct processes *all, uint64_t now, uint64_t pause, struct slot **slots, uint32_t n) {
    if (all->read_at && now - all->read_at < pause) return false;
    struct process *list = realloc(all->list, (n + 1) * sizeof *list);
    if (!list) return false;
    all->list = list;
    all->read_at = now;
    all->n = all->rss = 0;
    for (uint32_t i = 0; i <= n; i++) {
        struct process *p = &list[all->n];
        if (i > 0 && slots[i - 1]->kind != KIND_WORKER) continue;
        p->is_parent = i == 0;
        p->p = p->is_parent ? 0 : slots[i - 1]->p;
        uint64_t pid = p->is_parent ? (uint64_t)getpid() : LOAD(&slots[i - 1]->entry->m);
        if (!pid || !process_read(pid, p)) continue; /* not there yet, or not any more */
        all->rss += p->rss;
        all->n++;
    }
    return true;
}

void processes_free(struct processes *all) {
    free(all->list);
    *all = (struct processes){0};
}
