/* What the fake libraries share: work that is done in order on a fake stream's own thread. */
#ifndef RFORK_FAKE_ASCEND_H
#define RFORK_FAKE_ASCEND_H

/* Work of a stream; a result other than 0 is kept as the stream's error. */
typedef int (*fake_work)(void *argument);

/* Queues work on a stream, which calls it once on its own thread. Returns 0, or an AscendCL error code. */
int fake_stream_queue(void *stream, fake_work work, void *argument);

/* Returns 0 if the calling thread has set a device, else the code that the real library answers. */
int fake_check_device(void);

#endif
