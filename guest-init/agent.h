/*
 * The agent: one process, one loop, no threads. This is its state, and who offers what.
 */
#ifndef GUESTCTL_AGENT_H
#define GUESTCTL_AGENT_H

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>

#include "frame.h"
#include "out.h"

#define AGENT_NAME "guest-init 1"

enum {
	AGENT_CLEAN = 66,		/* exit status: an orderly POWEROFF was done */
	MAX_JOBS = 64,
	MAX_SERVICES = 256,
	MAX_POLL = 4 + 4 * MAX_JOBS + MAX_SERVICES,
	IN_SIZE = 256 * 1024,
};

#define GUEST_ROOT "/guest"		/* the overlay that commands see as / */

struct job;
struct service;
struct requests;

struct agent {
	int port;
	bool plain;			/* host tests: no namespaces, no mounts */
	const char *socket_name;	/* of the services' abstract socket */

	/* the port */
	struct frame_parser parser;
	uint8_t *in;
	size_t in_begin, in_end;
	bool frames_wait;		/* for room in `out`, in `in` */
	struct out out;
	bool away;			/* no host on the other side */
	int64_t left;			/* since when */
	int away_fd;			/* epoll: readable once that may have changed */
	bool closed;			/* a socket whose other side is gone for good */

	/* the session */
	bool live;
	uint32_t orphan_ms;
	uint32_t silence_ms;		/* after which the host counts as gone; 0: the port tells */
	int64_t heard;			/* when a byte came last */

	/* the guest */
	bool prepared, stopping;
	bool seeded;			/* what is drawn by chance is this guest's alone */
	uint32_t stop_request;
	int64_t stop_deadline;
	int guest_root, guest_proc;	/* O_PATH: the overlay, and the first /proc */
	int boot_id;			/* open from the start: a session takes no time to find it */
	int namespaces;			/* clone flags that the kernel knows */
	int signals;			/* signalfd: SIGCHLD */

	struct job *jobs;
	struct service *services;
	int listener;
	uint32_t next_service;

	struct pollfd polls[MAX_POLL];
	int npolls;
};

/* agent.c */
int agent_main(int argc, char **argv);
int agent_run(struct agent *a);
int64_t now_ms(void);
/* Add to the poll set; the result is the slot for agent_ready, -1 if fd or events is nothing. */
int agent_watch(struct agent *a, int fd, short events);
/* What poll said of a slot, 0 for -1. */
short agent_ready(const struct agent *a, int slot);
/* Bring a deadline nearer. 0 means none. */
void sooner(int64_t *deadline, int64_t candidate);

/* port.c: reading and writing the port, coming and going of the host */
void port_watch(struct agent *a, int64_t *deadline);
void port_input(struct agent *a);
void port_output(struct agent *a);

/* session.c */
void session_frame(struct agent *a, const struct frame *frame);
void session_end(struct agent *a);
void session_broken(struct agent *a, const char *why);
void agent_log(struct agent *a, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* request.c */
struct requests *requests_new(void);
void request_frame(struct agent *a, const struct frame *frame);
bool request_reaped(struct agent *a, int pid, int status);
void reply(struct agent *a, uint32_t id, int error, const char *text);

/* service.c */
int services_listen(struct agent *a);
void services_watch(struct agent *a, int64_t *deadline);
void services_run(struct agent *a);
void services_end(struct agent *a);
bool services_send(struct agent *a);
/* A DATA, EOF, CREDIT or RESET frame. */
void services_frame(struct agent *a, const struct frame *frame);

#endif
