/*
 * Requests: parsing, order, replies. What can take long (SYNC, UNMOUNT) is done by a forked
 * helper, so that the streams of commands and the heartbeat go on meanwhile; other requests
 * wait for it, since they are carried out one after the other.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bytes.h"
#include "job.h"
#include "system.h"

enum op { PREPARE = 1, MOUNT, UNMOUNT, SYNC, CLOCK, POWEROFF, STATUS, RENEW, OPS };

enum {
	RECORD = 5,			/* header of a record */
	WAITING = 32,			/* requests that may wait */
	STOP_MS = 5000,			/* for commands to die */
};

#define BIT(tag) (1ULL << (tag))

static const struct {
	uint64_t allowed, needed;
} rules[OPS] = {
	[PREPARE] = { BIT(R_CLOCK) | BIT(R_SEED) | BIT(R_HOSTNAME) | BIT(R_SWAP), 0 },
	[MOUNT] = { BIT(R_TAG) | BIT(R_TARGET) | BIT(R_OPTIONS) | BIT(R_KIND),
		    BIT(R_TAG) | BIT(R_TARGET) },
	[UNMOUNT] = { BIT(R_TARGET), BIT(R_TARGET) },
	[CLOCK] = { BIT(R_CLOCK), BIT(R_CLOCK) },
	[RENEW] = { BIT(R_CLOCK) | BIT(R_SEED) | BIT(R_HOSTNAME), BIT(R_SEED) },
};

struct waiting {
	struct waiting *next;
	uint32_t id, length;
	uint8_t payload[];
};

static struct waiting *queue;
static pid_t helper;
static uint32_t helper_id;
static const char *helper_path;		/* what it unmounts */

void reply(struct agent *a, uint32_t id, int error, const char *text)
{
	size_t length = text ? strlen(text) : 0, extra = length ? RECORD + length : 0;
	uint8_t *p;

	if (!a->live)
		return;
	p = out_frame(&a->out, T_REPLY, 0, id, 4 + extra);
	if (!p)
		return;
	p = put32(p, (uint32_t)error);
	if (length) {
		*p = R_TEXT;
		memcpy(put32(p + 1, (uint32_t)length), text, length);
	}
}

static void do_status(struct agent *a, uint32_t id)
{
	uint64_t figures[MEMORY_FIGURES];
	uint32_t length = sizeof(figures);
	int error = memory_status(figures), i;
	uint8_t *p;

	if (error) {
		reply(a, id, error, "meminfo");
		return;
	}
	p = out_frame(&a->out, T_REPLY, 0, id, 4 + RECORD + length);
	if (!p)
		return;
	p = put32(p, 0);
	*p = R_MEMORY;
	p = put32(p + 1, length);
	for (i = 0; i < MEMORY_FIGURES; i++)
		p = put64(p, figures[i]);
}

static int parse(struct fields *f, int op, const uint8_t *p, size_t length)
{
	uint64_t seen = 0;

	*f = (struct fields){ 0 };
	while (length > 0) {
		size_t size;

		if (length < RECORD)
			return EPROTO;
		size = get32(p + 1);
		if (size > length - RECORD || p[0] >= R_TAGS ||
		    !(rules[op].allowed & BIT(p[0])) || seen & BIT(p[0]))
			return EPROTO;
		seen |= BIT(p[0]);
		f->value[p[0]] = p + RECORD;
		f->length[p[0]] = (uint32_t)size;
		p += RECORD + size;
		length -= RECORD + size;
	}
	return (seen & rules[op].needed) == rules[op].needed ? 0 : EPROTO;
}

/* Fork a helper for SYNC (path is NULL) or UNMOUNT. */
static void start_helper(struct agent *a, uint32_t id, const char *path)
{
	int error = 0;

	helper = fork();
	if (helper == 0) {
		/* Above all, let go of the pipes of commands. */
		syscall(SYS_close_range, 3U, ~0U, 0);
		if (path)
			error = unmount_share(path);
		else if (!a->plain)
			sync();
		_exit(error);
	}
	helper_id = id;
	helper_path = path;
	if (helper < 0) {
		helper = 0;
		reply(a, id, errno, "no helper");
	}
}

static void do_unmount(struct agent *a, uint32_t id, const struct fields *f)
{
	const char *path = mounted_path(f);

	if (path)
		start_helper(a, id, path);
	else
		reply(a, id, EINVAL, "nothing is mounted there");
}

static void do_prepare(struct agent *a, uint32_t id, const struct fields *f)
{
	static bool tried;
	const char *what = NULL;
	int error = EALREADY;

	if (!tried) {
		tried = true;
		error = a->plain ? 0 : prepare(a, f, &what);
		a->prepared = error == 0;
		a->seeded = a->prepared && f->value[R_SEED];
	}
	reply(a, id, error, error ? what : NULL);
}

/* A guest that was prepared before it was saved becomes somebody. */
static void do_renew(struct agent *a, uint32_t id, const struct fields *f)
{
	const char *what = NULL;
	int error = a->plain ? 0 : renew(f, &what);

	a->seeded |= error == 0;
	reply(a, id, error, error ? what : NULL);
}

static void do_poweroff(struct agent *a, uint32_t id)
{
	struct job *job;

	a->stopping = true;
	a->stop_request = id;
	a->stop_deadline = now_ms() + STOP_MS;
	for (job = a->jobs; job; job = job->next)
		job_kill(a, job);
	services_end(a);
}

static void perform(struct agent *a, uint32_t id, const uint8_t *payload, size_t length)
{
	int op = get16(payload), error;
	const char *what = NULL;
	struct fields f;

	if (op == 0 || op >= OPS || get16(payload + 2) != 0) {
		reply(a, id, EOPNOTSUPP, "unknown request");
		return;
	}
	error = parse(&f, op, payload + 4, length - 4);
	if (error) {
		reply(a, id, error, "records that do not belong here");
		return;
	}
	if (a->stopping) {
		reply(a, id, ESHUTDOWN, "stopping");
		return;
	}
	if ((op == MOUNT || op == UNMOUNT || op == RENEW) && !a->prepared) {
		reply(a, id, EAGAIN, "not prepared");
		return;
	}
	if (a->plain && (op == MOUNT || op == UNMOUNT || op == CLOCK)) {
		reply(a, id, EOPNOTSUPP, "plain agent");
		return;
	}
	switch (op) {
	case PREPARE:
		do_prepare(a, id, &f);
		break;
	case MOUNT:
		error = mount_share(a, &f, &what);
		reply(a, id, error, error ? what : NULL);
		break;
	case UNMOUNT:
		do_unmount(a, id, &f);
		break;
	case SYNC:
		start_helper(a, id, NULL);
		break;
	case CLOCK:
		reply(a, id, set_clock(&f), NULL);
		break;
	case RENEW:
		do_renew(a, id, &f);
		break;
	case STATUS:
		do_status(a, id);
		break;
	case POWEROFF:
		do_poweroff(a, id);
		break;
	}
}

void request_frame(struct agent *a, const struct frame *frame)
{
	struct waiting **link, *w;
	int n = 0;

	if (helper == 0) {
		perform(a, frame->id, frame->payload, frame->length);
		return;
	}
	for (link = &queue; *link; link = &(*link)->next)
		n++;
	w = n < WAITING ? malloc(sizeof(*w) + frame->length) : NULL;
	if (!w) {
		reply(a, frame->id, n < WAITING ? ENOMEM : EBUSY, "too many requests");
		return;
	}
	*w = (struct waiting){ .id = frame->id, .length = frame->length };
	memcpy(w->payload, frame->payload, frame->length);
	*link = w;
}

/* True if the process was our helper. */
bool request_reaped(struct agent *a, int pid, int status)
{
	struct waiting *w;
	int error;

	if (pid != helper || helper == 0)
		return false;
	helper = 0;
	error = WIFEXITED(status) ? WEXITSTATUS(status) : EIO;
	if (error == 0 && helper_path)
		forget_mount(helper_path);
	reply(a, helper_id, error, error ? "unmount" : NULL);
	while (helper == 0 && (w = queue)) {
		queue = w->next;
		perform(a, w->id, w->payload, w->length);
		free(w);
	}
	return true;
}

/* Give what is left to the port, for a limited time. */
static void drain(struct agent *a)
{
	int64_t end = now_ms() + 2000;

	while (!a->away && !a->closed && out_flush(&a->out, a->port) == 0 &&
	       out_pending(&a->out) > 0 && now_ms() < end) {
		struct pollfd ready = { .fd = a->port, .events = POLLOUT };

		if (poll(&ready, 1, 100) < 0 || ready.revents & (POLLHUP | POLLERR))
			return;
	}
}

bool request_stop(struct agent *a)
{
	const char *what = NULL;
	struct job *job;
	int error = 0;

	for (job = a->jobs; job; job = job->next)
		if (job->supervisor > 0 && now_ms() < a->stop_deadline)
			return false;
	if (helper && now_ms() < a->stop_deadline)
		return false;
	if (!a->plain)
		error = unmount_all(a, &what);
	reply(a, a->stop_request, error, what);
	drain(a);
	return true;
}
