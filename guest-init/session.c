/*
 * Sessions: what a frame means, who may send it when, and what remains when the host dies.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "agent.h"
#include "bytes.h"
#include "job.h"

enum {
	FIRST_SERVICE = 0x80000000,
	RECORD = 5,			/* its header */
	NONCE = 16,
	BOOT_ID = 36,
};

/* What the payload and the id of a frame must be; the codec checks neither. */
enum id_kind { ID_SESSION, ID_HOST, ID_STREAM, ID_SERVICE };

static const struct rule {
	uint8_t type;
	enum id_kind id;
	uint32_t least, most;
} rules[] = {
	{ T_HELLO, ID_SESSION, 24, 24 },
	{ T_SPEC, ID_HOST, 0, FRAME_PAYLOAD },
	{ T_EXEC, ID_HOST, 0, 0 },
	{ T_SIGNAL, ID_HOST, 4, 4 },
	{ T_KILL, ID_HOST, 0, 0 },
	{ T_REQUEST, ID_HOST, 4, FRAME_PAYLOAD },
	{ T_PING, ID_SESSION, 8, 8 },
	{ T_ATTACH, ID_HOST, 0, 0 },
	{ T_WINDOW, ID_HOST, WINDOW_SIZE, WINDOW_SIZE },
	{ T_FORGET, ID_HOST, 0, 0 },
	{ T_DATA, ID_STREAM, 1, FRAME_PAYLOAD },
	{ T_EOF, ID_STREAM, 0, 0 },
	{ T_CREDIT, ID_STREAM, 4, 4 },
	{ T_RESET, ID_SERVICE, 4, FRAME_PAYLOAD },
};

static bool id_fits(enum id_kind kind, uint32_t id)
{
	bool service = id >= FIRST_SERVICE, host = id > 0 && !service;

	switch (kind) {
	case ID_SESSION:
		return id == 0;
	case ID_HOST:
		return host;
	case ID_STREAM:
		return host || service;
	default:
		return service;
	}
}

/* Only the host's CREDIT is about another channel than 0: those of a job's output. */
static bool channel_fits(const struct frame *f)
{
	if (f->type == T_CREDIT && f->id < FIRST_SERVICE)
		return f->channel == 1 || f->channel == 2;
	return f->channel == 0;
}

static bool fits(const struct frame *f)
{
	size_t i;

	for (i = 0; i < sizeof(rules) / sizeof(rules[0]); i++)
		if (rules[i].type == f->type)
			return id_fits(rules[i].id, f->id) && channel_fits(f) &&
			       f->length >= rules[i].least && f->length <= rules[i].most;
	return false;
}

void agent_log(struct agent *a, const char *format, ...)
{
	char text[256];
	va_list args;
	uint8_t *p;
	int n;

	va_start(args, format);
	n = vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	if (n < 0 || !a->live)
		return;
	if ((size_t)n >= sizeof(text))
		n = sizeof(text) - 1;
	p = out_frame(&a->out, T_LOG, 0, 0, (size_t)n);
	if (p)
		memcpy(p, text, (size_t)n);
}

void session_broken(struct agent *a, const char *why)
{
	agent_log(a, "stream is broken: %s", why);
	frame_lose(&a->parser);
}

void session_end(struct agent *a)
{
	out_truncate(&a->out);
	jobs_orphan(a);
	services_end(a);
	a->live = false;
}

static uint8_t *record(uint8_t *p, enum tag tag, const void *value, size_t length)
{
	*p = tag;
	put32(p + 1, (uint32_t)length);
	memcpy(p + RECORD, value, length);
	return p + RECORD + length;
}

static void welcome(struct agent *a, const uint8_t *nonce)
{
	uint8_t payload[NONCE + 4 + 4 * 128 + (2 * MAX_JOBS) * (RECORD + 4)], *p = payload, id[4];
	size_t length, room = sizeof(payload) - RECORD - 4;
	struct utsname name;
	char boot_id[BOOT_ID];
	struct job *job;

	memcpy(p, nonce, NONCE);
	p = put16(p + NONCE, PROTOCOL_VERSION);
	p = put16(p, 0);
	p = record(p, R_AGENT, AGENT_NAME, strlen(AGENT_NAME));
	/* The kernel makes it up when it is first read: not before the random pool is seeded. */
	if ((a->seeded || a->plain) && pread(a->boot_id, boot_id, BOOT_ID, 0) == BOOT_ID)
		p = record(p, R_BOOT_ID, boot_id, BOOT_ID);
	if (uname(&name) == 0)
		p = record(p, R_MACHINE, name.machine, strlen(name.machine));
	for (job = a->jobs; job && (size_t)(p - payload) < room; job = job->next) {
		put32(id, job->id);
		p = record(p, R_JOB, id, sizeof(id));
	}
	length = (size_t)(p - payload);
	p = out_frame(&a->out, T_WELCOME, 0, 0, length);
	if (p)
		memcpy(p, payload, length);
}

static void hello(struct agent *a, const struct frame *f)
{
	session_end(a);
	a->live = true;
	a->left = now_ms();
	a->silence_ms = get16(f->payload + 2) * 1000U;
	a->orphan_ms = get32(f->payload + 4);
	welcome(a, f->payload + 8);
}

static void pong(struct agent *a, const struct frame *f)
{
	uint8_t *p = out_frame(&a->out, T_PONG, 0, 0, 8);

	if (p)
		memcpy(p, f->payload, 8);
}

void session_frame(struct agent *a, const struct frame *f)
{
	if (f->type != T_HELLO && !a->live)
		return;
	if (!fits(f)) {
		session_broken(a, "a frame that does not fit its type");
		return;
	}
	switch (f->type) {
	case T_HELLO:
		hello(a, f);
		break;
	case T_SPEC:
		job_spec(a, f);
		break;
	case T_EXEC:
		job_exec(a, f->id);
		break;
	case T_REQUEST:
		request_frame(a, f);
		break;
	case T_PING:
		pong(a, f);
		break;
	default:
		if (f->id >= FIRST_SERVICE)
			services_frame(a, f);
		else
			jobs_frame(a, f);
	}
}
