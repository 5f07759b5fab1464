/*
 * A stand-in for the TransferEngine's libp2ptransfer.so: sends and receives over TCP on loopback.
 *
 * The receiver's root info names a port that it listens on; the sender connects to it. Both directions are work of a
 * stream, so a call returns before bytes have moved, as on a device. Sizes are what the real interface has.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fake_ascend.h"

enum { OK = 0, E_PARA = 1, E_MEMORY = 3, E_NETWORK = 19, E_REMOTE = 21 };
enum { RECEIVER = 0, SENDER = 1 };
enum { MAX_LISTENERS = 1024 };

struct root_info { uint16_t port; char rest[4106]; };
struct comm { int kind, listener, socket, error; };
struct transfer { struct comm *comm; char *start; size_t len; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct { uint16_t port; int fd; } listeners[MAX_LISTENERS];

static struct sockaddr_in loopback(uint16_t port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

int P2PGetRootInfo(void *out) {
    struct sockaddr_in address = loopback(0);
    socklen_t len = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, len) != 0 || listen(fd, 4) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &len) != 0) {
        if (fd >= 0) close(fd);
        return E_NETWORK;
    }
    struct root_info info = {.port = ntohs(address.sin_port)};
    int kept = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_LISTENERS && !kept; i++) {
        if (listeners[i].port) continue;
        listeners[i].port = info.port;
        listeners[i].fd = fd;
        kept = 1;
    }
    pthread_mutex_unlock(&lock);
    if (!kept) {
        close(fd);
        return E_MEMORY;
    }
    memcpy(out, &info, sizeof info);
    return OK;
}

static int take_listener(uint16_t port) {
    int fd = -1;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_LISTENERS && fd < 0; i++) {
        if (!listeners[i].port || listeners[i].port != port) continue;
        fd = listeners[i].fd;
        listeners[i].port = 0;
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

int P2PCommInitRootInfo(const void *root, int kind, int link, void **out) {
    (void)link;
    if (fake_check_device() != 0 || !root || !out) return E_PARA;
    struct root_info info;
    memcpy(&info, root, sizeof info);
    struct comm *comm = calloc(1, sizeof *comm);
    if (!comm) return E_MEMORY;
    *comm = (struct comm){.kind = kind, .listener = -1, .socket = -1};
    int failed;
    if (kind == RECEIVER) {
        /* Accepted with the first receive: the sender may come later. */
        comm->listener = take_listener(info.port);
        failed = comm->listener < 0;
    } else {
        struct sockaddr_in address = loopback(info.port);
        comm->socket = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        failed = comm->socket < 0 || connect(comm->socket, (struct sockaddr *)&address, sizeof address) != 0;
    }
    if (failed) {
        if (comm->socket >= 0) close(comm->socket);
        free(comm);
        return E_NETWORK;
    }
    *out = comm;
    return OK;
}

int P2PCommDestroy(void *handle) {
    struct comm *comm = handle;
    if (!comm) return E_PARA;
    /* Work that waits in accept or recv ends with its socket; whoever destroys the stream waits for it. The struct
       stays: that work still looks at it. A few bytes of a test's process. */
    if (comm->listener >= 0) shutdown(comm->listener, SHUT_RDWR);
    if (comm->socket >= 0) shutdown(comm->socket, SHUT_RDWR);
    return OK;
}

static int move(struct transfer *transfer) {
    struct comm *comm = transfer->comm;
    if (comm->kind == RECEIVER && comm->socket < 0) {
        comm->socket = accept4(comm->listener, NULL, NULL, SOCK_CLOEXEC);
        if (comm->socket < 0) return E_REMOTE;
    }
    for (size_t at = 0; at < transfer->len;) {
        ssize_t moved = comm->kind == RECEIVER
                            ? recv(comm->socket, transfer->start + at, transfer->len - at, MSG_WAITALL)
                            : send(comm->socket, transfer->start + at, transfer->len - at, MSG_NOSIGNAL);
        if (moved < 0 && errno == EINTR) continue;
        if (moved <= 0) return E_REMOTE;
        at += (size_t)moved;
    }
    return OK;
}

static int work(void *argument) {
    struct transfer *transfer = argument;
    int code = move(transfer);
    if (code) transfer->comm->error = code;
    free(transfer);
    return code;
}

static int queue(int kind, void *start, uint64_t count, int type, void *handle, void *stream) {
    struct comm *comm = handle;
    /* Bytes only: 0 is int8, 7 is uint8. */
    if (!comm || comm->kind != kind || !start || (type != 0 && type != 7) || fake_check_device() != 0) return E_PARA;
    struct transfer *transfer = malloc(sizeof *transfer);
    if (!transfer) return E_MEMORY;
    *transfer = (struct transfer){comm, start, count};
    return fake_stream_queue(stream, work, transfer) == 0 ? OK : E_PARA;
}

int P2PSend(void *start, uint64_t count, int type, void *comm, void *stream) {
    return queue(SENDER, start, count, type, comm, stream);
}

int P2PRecv(void *start, uint64_t count, int type, void *comm, void *stream) {
    return queue(RECEIVER, start, count, type, comm, stream);
}

int P2PGetCommAsyncError(void *handle, int *error) {
    struct comm *comm = handle;
    if (!comm || !error) return E_PARA;
    *error = comm->error;
    return OK;
}
