/*
 * One entry of a share as the guest sees it: QEMU's 9p keeps symbolic links as files whose
 * metadata says so (docs/virtfs-format.md).
 */
#ifndef GUESTCTL_VIEW_ENTRY_H
#define GUESTCTL_VIEW_ENTRY_H

#include <stddef.h>
#include <stdint.h>

#include "wire.h"

#define METADATA ".virtfs_metadata"
#define METADATA_ROOT ".virtfs_metadata_root"

enum entry {
	ENTRY_NONE,			/* nothing there, or hidden from the guest */
	ENTRY_FILE,
	ENTRY_FOLDER,
	ENTRY_LINK,
	/* Not for reading: a device, a pipe, a socket, what QEMU does not follow or understand. */
	ENTRY_ODD,
};

enum { TARGET_MAX = 4096, METADATA_MAX = 4096 };

/* The mode that a metadata text has, as QEMU reads it; 0 if it has none. */
uint32_t metadata_mode(const char *text);

/* The mode that the guest knows an entry by, or 0; as below. */
uint32_t entry_mode(enum model model, int metadata, const char *name);

/*
 * What `name` in `folder` is. The folder must be the working directory too (extended attributes
 * are read by path); metadata is its metadata folder, or -1. Of a link, the target is stored.
 */
enum entry entry_examine(enum model model, int folder, int metadata, const char *name,
			 char target[TARGET_MAX]);

#endif
