/* A damaged wire, for a process that reads sockets through this library (LD_PRELOAD): of RFORK_TEST_WIRE_DAMAGES_ONE_OF
 * large pieces that come, one has a bit that is another. Small pieces, of frames and of answers, are left alone. The same
 * RFORK_TEST_WIRE_SEED damages the same pieces, as far as they come in the same order. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/uio.h>

static const ssize_t SMALL = 4096;

static _Atomic uint64_t pieces;

/* What the piece of a number draws (splitmix64). */
static uint64_t draw(uint64_t number) {
    const char *seed = getenv("RFORK_TEST_WIRE_SEED");
    uint64_t mixed = (seed ? strtoull(seed, NULL, 10) : 0) + number * 0x9e3779b97f4a7c15u;
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9u;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebu;
    return mixed ^ (mixed >> 31);
}

static void damage(const struct msghdr *message, ssize_t got) {
    const char *one_of = getenv("RFORK_TEST_WIRE_DAMAGES_ONE_OF");
    if (got < SMALL || !one_of)
        return;
    uint64_t drawn = draw(atomic_fetch_add(&pieces, 1) + 1);
    if (drawn % strtoull(one_of, NULL, 10) != 0)
        return;
    size_t at = (drawn >> 8) % (uint64_t)got;
    for (size_t part = 0; part < message->msg_iovlen; part++) {
        const struct iovec *bytes = &message->msg_iov[part];
        if (at < bytes->iov_len) {
            ((unsigned char *)bytes->iov_base)[at] ^= 0x10;
            return;
        }
        at -= bytes->iov_len;
    }
}

/* As the TCP engine receives chunks. */
ssize_t recvmsg(int socket, struct msghdr *message, int flags) {
    static ssize_t (*real)(int, struct msghdr *, int);
    if (!real)
        real = (ssize_t(*)(int, struct msghdr *, int))dlsym(RTLD_NEXT, "recvmsg");
    ssize_t got = real(socket, message, flags);
    damage(message, got);
    return got;
}
