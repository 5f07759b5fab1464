/*
 * What the shim offers of YuanRong's C++ TransferEngine, in C.
 *
 * Each call that fails returns the vendor's code, or one of the shim's own below 0, and writes what went wrong,
 * ending in a zero byte, into the `room` bytes at `message`. No C++ exception leaves the shim.
 */
#ifndef RFORK_TRANSFER_ENGINE_H
#define RFORK_TRANSFER_ENGINE_H

#ifdef __cplusplus
extern "C" {
#endif

typedef __SIZE_TYPE__ size_t;
typedef struct rfork_te rfork_te;

enum {
    /* The library cannot be opened, or hides its C++ class. */
    RFORK_TE_NOT_LOADED = -1,
    /* The library threw an exception. */
    RFORK_TE_THREW = -2
};

/* Opens the library and makes an engine. `python`, unless it is NULL, is opened first, for all to see. */
int rfork_te_open(const char *library, const char *python, rfork_te **out, char *message, size_t room);
/* `local` is "ip:port", `device` is "npu:N". */
int rfork_te_initialize(rfork_te *engine, const char *local, const char *device, char *message, size_t room);
/* Where peers reach it; below 0 before it is initialized. */
int rfork_te_rpc_port(rfork_te *engine);
int rfork_te_register(rfork_te *engine, const size_t *starts, const size_t *lens, size_t count,
                      char *message, size_t room);
int rfork_te_unregister(rfork_te *engine, const size_t *starts, size_t count, char *message, size_t room);
/* Reads `lens[i]` bytes from the peer's `from[i]` to `to[i]`. Can last for ever: there is no deadline inside. */
int rfork_te_read(rfork_te *engine, const char *peer, const size_t *to, const size_t *from,
                  const size_t *lens, size_t count, char *message, size_t room);
int rfork_te_finalize(rfork_te *engine, char *message, size_t room);
/* Frees it. Nobody may be in another call with it. The library stays open. */
void rfork_te_close(rfork_te *engine);

#ifdef __cplusplus
}
#endif

#endif
