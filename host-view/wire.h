/*
 * What the owner and the worker say to each other, over one machine and one program's lifetime:
 * native byte order, no versions. guestctl/view/codec.py is the other side.
 *
 * The owner's socket carries packets of one byte with descriptors:
 *   'S' body                                 first of all: the settings; answered by a struct reply
 *   'C' body life stdin stdout stderr bundle a call
 * A body is a file of records; texts in them end with a zero. A call's outcome is one struct reply on `life`; what it has written
 * is in `bundle`, a file of struct bundled, each with its path and its data behind it. The owner
 * shuts `life` down to cancel the call. The end of the owner's socket ends everything.
 */
#ifndef GUESTCTL_VIEW_WIRE_H
#define GUESTCTL_VIEW_WIRE_H

#include <stdint.h>

enum { PACKET_SETTINGS = 'S', PACKET_CALL = 'C' };

enum { CALL_BODY, CALL_LIFE, CALL_STDIN, CALL_STDOUT, CALL_STDERR, CALL_BUNDLE, CALL_FDS };

/* A record: its tag, the length of its value, the value. */
struct record {
	uint32_t tag;
	uint32_t length;
};

enum setting {
	S_TOOLCHAIN = 1,		/* path */
	S_TREE,				/* u32 model, u32 fixed, path */
	S_LIMIT,			/* u32 enum limit, u32 zero, u64 value */
};

enum limit {
	L_MILLISECONDS, L_PROCESSOR, L_MEMORY, L_PROCESSES, L_OPEN_FILES, L_WRITTEN, L_OUTPUT,
	L_ENTRIES, L_COUNT,
};

enum model { MODEL_PLAIN, MODEL_FILE, MODEL_XATTR };

enum field {
	F_PROGRAM = 1,			/* path */
	F_ARGUMENT,			/* text */
	F_ENVIRONMENT,			/* NAME=VALUE */
	F_CWD,				/* path */
	F_UMASK,			/* u32 */
	F_MOUNT,			/* u32 tree or NO_TREE, u32 readonly, subpath, at */
	F_BIND,				/* source, at */
	F_MODE,				/* path of a file to be shown with the guest's mode */
	F_GIVEN,			/* u32 mode, u32 zero, u64 mtime in ns, path, data */
};

#define NO_TREE UINT32_MAX
#define KEEP_MODE UINT32_MAX

enum state { READY = 1, DONE, FAILED };

enum trouble { NO_TROUBLE, TIMEOUT, CANCELLED, SPACE, OUTPUT, ENTRIES, RESERVED };

struct reply {
	uint32_t state;
	uint32_t status;		/* as of waitpid */
	uint32_t trouble;
	uint32_t error;			/* an errno, of FAILED */
	uint64_t wall, user, system;	/* microseconds */
	uint64_t memory;		/* bytes, of the largest process */
	char text[256];			/* of FAILED: what was tried, ended by zero */
};

enum kind { FILE_THERE = 1, FOLDER_THERE, LINK_THERE, GONE };

struct bundled {
	uint32_t kind;
	uint32_t mode;			/* KEEP_MODE: that of the file that is there */
	uint64_t path;			/* lengths */
	uint64_t data;
};

#endif
