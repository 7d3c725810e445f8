/*
 * The layer of a sysroot: an overlay whose upper files are on the scratch disk. Never on 9p,
 * where a folder of the lower layer cannot be removed.
 */
#ifndef GUESTCTL_LAYER_H
#define GUESTCTL_LAYER_H

#include <stdbool.h>
#include <stddef.h>

/* Mount it over the folder `lower` (open), at the path `at`. One at a time: EBUSY. */
int layer_mount(int lower, const char *at);
/* After it was unmounted: what was written to it is gone. */
void layer_forget(void);

/*
 * What has been written to it, as names ended by zero bytes: all but folders, and folders, with a
 * slash at the end, into which this list does not go: because they are new and empty, stand for
 * another folder in whole, or because there is too much. False: there is no layer, or no telling.
 */
bool layer_changes(char *to, size_t room, size_t *length);

#endif
