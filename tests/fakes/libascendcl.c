/*
 * A stand-in for the parts of CANN's libascendcl.so that RFork and the TransferEngine use.
 *
 * Device memory is host memory, but only what aclrtMalloc gave counts as device memory: a copy whose direction does
 * not fit its pointers fails. As in the real library a device belongs to the thread that set it, and calls on a
 * thread without one fail. Streams are threads, so that work is asynchronous, as on a device.
 *
 * FAKE_ACL_DEVICES: how many devices there are (8). FAKE_ACL_DEVICE_BYTES: memory of them all (no limit).
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "fake_ascend.h"

enum {
    OK = 0,
    INVALID_PARAM = 100000,
    UNINITIALIZED = 100001,
    REPEAT_INITIALIZE = 100002,
    INVALID_DEVICE = 107001,
    CONTEXT_NULL = 107002,
    OUT_OF_MEMORY = 207001,
    TIMED_OUT = 507047,
};

enum { MAX_RANGES = 1 << 14 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct range { uintptr_t start; size_t len; } ranges[MAX_RANGES];
static size_t range_count, device_bytes;
static int initialized;
static _Thread_local int device = -1;
static _Thread_local char message[256];

static int fail(int code, const char *text) {
    snprintf(message, sizeof message, "EE%d: fake AscendCL: %s", code, text);
    return code;
}

int fake_check_device(void) {
    return device < 0 ? fail(CONTEXT_NULL, "no device is set on this thread, call aclrtSetDevice") : OK;
}

static long setting(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}

const char *aclGetRecentErrMsg(void) { return message[0] ? message : NULL; }

int aclInit(const char *config) {
    (void)config;
    pthread_mutex_lock(&lock);
    int again = initialized;
    initialized = 1;
    pthread_mutex_unlock(&lock);
    return again ? fail(REPEAT_INITIALIZE, "initialized already") : OK;
}

int aclFinalize(void) {
    pthread_mutex_lock(&lock);
    int was = initialized;
    initialized = 0;
    pthread_mutex_unlock(&lock);
    return was ? OK : fail(UNINITIALIZED, "not initialized");
}

int aclrtGetDeviceCount(uint32_t *count) {
    if (!count) return fail(INVALID_PARAM, "count is null");
    *count = (uint32_t)setting("FAKE_ACL_DEVICES", 8);
    return OK;
}

int aclrtSetDevice(int32_t wanted) {
    if (wanted < 0 || wanted >= setting("FAKE_ACL_DEVICES", 8)) return fail(INVALID_DEVICE, "there is no such device");
    device = wanted;
    return OK;
}

int aclrtResetDevice(int32_t wanted) {
    if (device != wanted) return fail(INVALID_DEVICE, "this thread has set another device");
    device = -1;
    return OK;
}

int aclrtGetDevice(int32_t *out) {
    int code = fake_check_device();
    if (code == OK) *out = device;
    return code;
}

int aclrtGetCurrentContext(void **context) {
    int code = fake_check_device();
    if (code == OK) *context = (void *)(uintptr_t)(device + 1);
    return code;
}

int aclrtSynchronizeDevice(void) { return fake_check_device(); }

int aclrtMalloc(void **pointer, size_t len, int policy) {
    (void)policy;
    int code = fake_check_device();
    if (code != OK) return code;
    if (!pointer || !len) return fail(INVALID_PARAM, "nothing to allocate");
    pthread_mutex_lock(&lock);
    size_t limit = (size_t)setting("FAKE_ACL_DEVICE_BYTES", -1);
    void *got = NULL;
    /* The real one aligns to 512 bytes. */
    int fits = range_count < MAX_RANGES && device_bytes <= limit && len <= limit - device_bytes;
    if (fits && posix_memalign(&got, 4096, len) == 0) {
        ranges[range_count++] = (struct range){(uintptr_t)got, len};
        device_bytes += len;
    }
    pthread_mutex_unlock(&lock);
    if (!got) return fail(OUT_OF_MEMORY, "the device has no such amount of memory left");
    *pointer = got;
    return OK;
}

int aclrtFree(void *pointer) {
    int code = fake_check_device();
    if (code != OK) return code;
    code = INVALID_PARAM;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < range_count; i++) {
        if (ranges[i].start != (uintptr_t)pointer) continue;
        device_bytes -= ranges[i].len;
        ranges[i] = ranges[--range_count];
        code = OK;
        break;
    }
    pthread_mutex_unlock(&lock);
    if (code != OK) return fail(code, "this is no device memory");
    free(pointer);
    return OK;
}

int aclrtMallocHost(void **pointer, size_t len) {
    int code = fake_check_device();
    if (code != OK) return code;
    if (!pointer || !len || posix_memalign(pointer, 4096, len) != 0) return fail(OUT_OF_MEMORY, "no host memory");
    return OK;
}

int aclrtFreeHost(void *pointer) {
    free(pointer);
    return OK;
}

static int is_device(const void *pointer, size_t len) {
    uintptr_t at = (uintptr_t)pointer;
    int found = 0;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < range_count && !found; i++)
        found = at >= ranges[i].start && len <= ranges[i].len && at - ranges[i].start <= ranges[i].len - len;
    pthread_mutex_unlock(&lock);
    return found;
}

/* kind: 0 host to host, 1 host to device, 2 device to host, 3 device to device */
int aclrtMemcpy(void *to, size_t room, const void *from, size_t len, int kind) {
    int code = fake_check_device();
    if (code != OK) return code;
    if (!to || !from || len > room || kind < 0 || kind > 3) return fail(INVALID_PARAM, "bad copy");
    if (is_device(from, len) != (kind >> 1) || is_device(to, len) != (kind & 1))
        return fail(INVALID_PARAM, "the copy leaves its memory, or its direction is wrong");
    memcpy(to, from, len);
    return OK;
}

/* ---- streams and events ---- */

struct task { fake_work work; void *argument; struct task *next; };

struct stream {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct task *first, **last;
    uint64_t queued, done;
    int ending, error;
};

struct event { struct stream *stream; uint64_t at; };

static void *run_stream(void *argument) {
    struct stream *stream = argument;
    pthread_mutex_lock(&stream->lock);
    for (;;) {
        while (!stream->first && !stream->ending) pthread_cond_wait(&stream->changed, &stream->lock);
        struct task *task = stream->first;
        if (!task) break;
        if (!(stream->first = task->next)) stream->last = &stream->first;
        int failed = stream->error;
        pthread_mutex_unlock(&stream->lock);
        int code = failed ? failed : task->work(task->argument);
        if (failed) free(task->argument);
        free(task);
        pthread_mutex_lock(&stream->lock);
        if (code) stream->error = code;
        stream->done++;
        pthread_cond_broadcast(&stream->changed);
    }
    pthread_mutex_unlock(&stream->lock);
    return NULL;
}

int aclrtCreateStream(void **out) {
    int code = fake_check_device();
    if (code != OK) return code;
    struct stream *stream = calloc(1, sizeof *stream);
    if (!stream) return fail(OUT_OF_MEMORY, "no memory for a stream");
    pthread_mutex_init(&stream->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&stream->changed, &monotonic);
    stream->last = &stream->first;
    if (pthread_create(&stream->thread, NULL, run_stream, stream) != 0) {
        free(stream);
        return fail(OUT_OF_MEMORY, "no thread for a stream");
    }
    *out = stream;
    return OK;
}

int aclrtDestroyStream(void *handle) {
    struct stream *stream = handle;
    if (!stream) return fail(INVALID_PARAM, "no stream");
    pthread_mutex_lock(&stream->lock);
    stream->ending = 1;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
    pthread_join(stream->thread, NULL);
    free(stream);
    return OK;
}

int fake_stream_queue(void *handle, fake_work work, void *argument) {
    struct stream *stream = handle;
    struct task *task = malloc(sizeof *task);
    if (!stream || !task) {
        free(task);
        return fail(INVALID_PARAM, "no stream");
    }
    *task = (struct task){work, argument, NULL};
    pthread_mutex_lock(&stream->lock);
    *stream->last = task;
    stream->last = &task->next;
    stream->queued++;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
    return OK;
}

/* Waits until `at` pieces of work are done; -1: without a limit. */
static int wait_done(struct stream *stream, uint64_t at, int32_t timeout_ms) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += (timeout_ms % 1000) * 1000000L;
    if (until.tv_nsec >= 1000000000L) until.tv_sec++, until.tv_nsec -= 1000000000L;
    int late = 0;
    pthread_mutex_lock(&stream->lock);
    while (stream->done < at && !late) {
        if (timeout_ms < 0)
            pthread_cond_wait(&stream->changed, &stream->lock);
        else
            late = pthread_cond_timedwait(&stream->changed, &stream->lock, &until) != 0;
    }
    int code = late && stream->done < at ? TIMED_OUT : stream->error;
    pthread_mutex_unlock(&stream->lock);
    return code ? fail(code, "the work of a stream failed or is late") : OK;
}

int aclrtSynchronizeStream(void *handle) {
    struct stream *stream = handle;
    int code = fake_check_device();
    return code != OK ? code : wait_done(stream, stream->queued, -1);
}

int aclrtCreateEvent(void **out) {
    int code = fake_check_device();
    if (code == OK && !(*out = calloc(1, sizeof(struct event)))) code = fail(OUT_OF_MEMORY, "no memory for an event");
    return code;
}

int aclrtDestroyEvent(void *event) {
    free(event);
    return OK;
}

int aclrtRecordEvent(void *handle, void *of) {
    struct event *event = handle;
    struct stream *stream = of;
    int code = fake_check_device();
    if (code != OK) return code;
    pthread_mutex_lock(&stream->lock);
    *event = (struct event){stream, stream->queued};
    pthread_mutex_unlock(&stream->lock);
    return OK;
}

int aclrtSynchronizeEventWithTimeout(void *handle, int32_t timeout_ms) {
    struct event *event = handle;
    int code = fake_check_device();
    return code != OK || !event->stream ? code : wait_done(event->stream, event->at, timeout_ms);
}

int aclrtSynchronizeEvent(void *event) { return aclrtSynchronizeEventWithTimeout(event, -1); }
