/*
 * The description of a command: the records of its SPEC frames, taken apart in place.
 */
#ifndef GUESTCTL_SPEC_H
#define GUESTCTL_SPEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/resource.h>

enum {
	SPEC_MAX = 2 * 1024 * 1024,
	SPEC_LIMITS = 16,
};

/* Tags of records, all tables of the protocol. */
enum tag {
	R_ARG = 1, R_ENV, R_CWD, R_ROOT, R_CREDENTIALS, R_RLIMIT, R_UMASK, R_TTY,
	R_CLOCK = 16, R_SEED, R_HOSTNAME, R_SWAP, R_TAG, R_TARGET, R_OPTIONS, R_KIND,
	R_AGENT = 32, R_BOOT_ID, R_MACHINE, R_JOB, R_TEXT, R_MEMORY,
	R_CALLER_ROOT = 40, R_ROOT_DEVICE, R_MOUNTS, R_CHANGED, R_LAYER,
	R_TAGS,				/* more than any tag */
};

/* Stages of FAILED. */
enum stage {
	AT_SPEC = 1, AT_LIMITS, AT_NAMESPACES, AT_ROOT, AT_CWD, AT_CREDENTIALS, AT_EXEC,
	AT_RESOURCES,
};

struct limit {
	int resource;
	struct rlimit value;
};

struct spec {
	char **words;			/* memory of argv and envp */
	char **argv;			/* argv[-1] is free for an interpreter */
	char **envp;
	const char *cwd;
	const char *root;		/* NULL: none */
	uint32_t uid, gid;
	uint32_t umask;
	bool tty;			/* wants a terminal, of this size */
	struct winsize window;
	int limit_count;
	struct limit limits[SPEC_LIMITS];
};

/*
 * Take records[0..length) apart; the buffer must have one byte more, its contents are
 * changed, and the result points into it. 0 or an errno, with *why for people.
 */
int spec_parse(struct spec *spec, uint8_t *records, size_t length, const char **why);
void spec_free(struct spec *spec);

/* The size of a terminal, as TTY and WINDOW have it. */
enum { WINDOW_SIZE = 8 };
struct winsize window_of(const uint8_t *p);

#endif
