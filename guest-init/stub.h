/*
 * The stub: stands for cc, as, ld and their like in a directory that comes first in PATH, has
 * the host do their work, or else runs the next program of that name. docs/offload.md has
 * what it says to the host.
 */
#ifndef GUESTCTL_STUB_H
#define GUESTCTL_STUB_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Messages: type u8, length u32, payload. */
enum {
	MESSAGE = 5,
	MESSAGE_MAX = 65536,

	/* to the host */
	M_NAME = 'N', M_PROGRAM = 'P', M_CWD = 'C', M_UMASK = 'U', M_ARG = 'A', M_ENV = 'E',
	M_GO = 'G', M_INPUT = 'I', M_INPUT_END = 'Z', M_UNWRITTEN = 'W', M_SPENT = 'T',

	/* to the guest */
	M_STDOUT = 'o', M_STDERR = 'e', M_FILE = 'f', M_DATA = 'd', M_REMOVE = 'r',
	M_READ = 'i', M_EXIT = 'x', M_STEP_DOWN = 'n',
};

/* Flags of a FILE. */
enum {
	F_IN_PLACE = 1,			/* the tool has written into what was there */
};

/* The services of the host, as the first line of a connection. */
#define OFFLOAD "offload\n"
#define DISTCC "distcc\n"

/* What somebody has called. */
struct call {
	const char *name;		/* without its folder */
	const char *program;		/* that would run if we were not there */
	char **arguments;
	mode_t mask;
	char cwd[PATH_MAX];
};

/* stubtalk.c: the connection to the host, as a socket. */

struct reader {
	uint8_t data[MESSAGE + MESSAGE_MAX];
	size_t length;
};

/* -1 when there is nobody. */
int talk_connect(void);
bool talk_send(int host, const void *data, size_t length);
bool talk_message(int host, int type, const void *data, size_t length);
/* Sends a whole request; false if it is too large or the host has gone. */
bool talk_ask(int host, const struct call *call);
/* Puts the next message at the buffer's beginning; false when the host has gone. */
bool talk_next(int host, struct reader *r, size_t *size);
/* Done with it. */
void talk_skip(struct reader *r, size_t size);

/* stubnext.c */

/* Remember which file we are, so that we never run ourselves. */
void next_init(const char *path);
/* The first program called `name` in PATH that is not us, NULL if there is none. */
const char *next_find(const char *name);
/* Run it in our place, with a PATH that does not lead to us. */
void next_run(const char *name, char **argv) __attribute__((noreturn));
/* Run `distcc COMPILER ARG...`; returns if there is none. */
void next_distcc(const char *name, char **argv);

/* stubfile.c: what a tool would have written. Each returns 0 or an errno. */

/* Files below our working directory are reached from there, as the tool would reach them: above it
   may be folders that are not ours to search. */
void file_home(const char *cwd);
int file_begin(const uint8_t *payload, size_t length);
int file_data(const uint8_t *payload, size_t length);
int file_end(void);
int file_remove(const uint8_t *payload, size_t length);

/* stub.c */

/* Write all of it; 0 or an errno. */
int write_all(int fd, const void *data, size_t length);

#endif
