/*
 * The parts of AscendCL, the C interface of Ascend's CANN runtime, that RFork uses.
 *
 * Written from the public description of its ABI, which does not change between versions of CANN. No system header is
 * included, so that bindings come out the same wherever they are made.
 */
#ifndef RFORK_ASCENDCL_H
#define RFORK_ASCENDCL_H

typedef __SIZE_TYPE__ size_t;
typedef int aclError;

/* How memory is taken from the device. */
typedef enum aclrtMemMallocPolicy {
    ACL_MEM_MALLOC_HUGE_FIRST = 0,
    ACL_MEM_MALLOC_HUGE_ONLY = 1,
    ACL_MEM_MALLOC_NORMAL_ONLY = 2
} aclrtMemMallocPolicy;

/* Which way a copy goes. */
typedef enum aclrtMemcpyKind {
    ACL_MEMCPY_HOST_TO_HOST = 0,
    ACL_MEMCPY_HOST_TO_DEVICE = 1,
    ACL_MEMCPY_DEVICE_TO_HOST = 2,
    ACL_MEMCPY_DEVICE_TO_DEVICE = 3
} aclrtMemcpyKind;

/* Once in a process, before anything else; with NULL for no settings. */
aclError aclInit(const char *configPath);
/* Once in a process, after everything else. */
aclError aclFinalize(void);
/* What went wrong last on this thread; NULL if nothing did. */
const char *aclGetRecentErrMsg(void);

aclError aclrtGetDeviceCount(unsigned int *count);
/* Chooses the device of the calling thread. Nearly every other call fails on a thread without one. */
aclError aclrtSetDevice(int deviceId);
aclError aclrtResetDevice(int deviceId);
/* Waits until the thread's device has done all its work. */
aclError aclrtSynchronizeDevice(void);

aclError aclrtMalloc(void **devPtr, size_t size, aclrtMemMallocPolicy policy);
aclError aclrtFree(void *devPtr);
/* Memory of the host that the device can reach. */
aclError aclrtMallocHost(void **hostPtr, size_t size);
aclError aclrtFreeHost(void *hostPtr);
/* Returns when the copy is done. */
aclError aclrtMemcpy(void *dst, size_t destMax, const void *src, size_t count, aclrtMemcpyKind kind);

#endif
