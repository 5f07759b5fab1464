/* Slow storage, for a process that reads through this library (LD_PRELOAD): what its threads read at a position of a file,
 * together, takes as long as storage would that gives RFORK_TEST_STORAGE_BYTES_PER_SEC; or what is read beyond
 * RFORK_TEST_STORAGE_STOPS_AFTER_BYTES comes only when the file RFORK_TEST_STORAGE_GOES_ON is there. Small reads, of headers,
 * do not count. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static const size_t SMALL = 4096;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* When storage has given what was asked for until now. */
static struct timespec free_at;

static struct timespec later(struct timespec time, double sec) {
    long long ns = time.tv_nsec + (long long)(sec * 1e9);
    time.tv_sec += ns / 1000000000;
    time.tv_nsec = ns % 1000000000;
    return time;
}

/* Bytes that were asked for until now. */
static unsigned long long asked;

static void wait_for_word(size_t bytes) {
    const char *most = getenv("RFORK_TEST_STORAGE_STOPS_AFTER_BYTES"), *word = getenv("RFORK_TEST_STORAGE_GOES_ON");
    if (!most || !word)
        return;
    pthread_mutex_lock(&lock);
    asked += bytes;
    int waits = asked > strtoull(most, NULL, 10);
    pthread_mutex_unlock(&lock);
    while (waits && access(word, F_OK))
        usleep(5000);
}

static void take(size_t bytes) {
    const char *rate = getenv("RFORK_TEST_STORAGE_BYTES_PER_SEC");
    if (bytes < SMALL)
        return;
    wait_for_word(bytes);
    if (!rate)
        return;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    pthread_mutex_lock(&lock);
    int is_free = free_at.tv_sec < now.tv_sec || (free_at.tv_sec == now.tv_sec && free_at.tv_nsec < now.tv_nsec);
    free_at = later(is_free ? now : free_at, bytes / atof(rate));
    struct timespec until = free_at;
    pthread_mutex_unlock(&lock);
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
        ;
}

ssize_t pread64(int file, void *buffer, size_t bytes, off64_t at) {
    static ssize_t (*real)(int, void *, size_t, off64_t);
    if (!real)
        real = (ssize_t(*)(int, void *, size_t, off64_t))dlsym(RTLD_NEXT, "pread64");
    ssize_t got = real(file, buffer, bytes, at);
    if (got > 0)
        take((size_t)got);
    return got;
}
