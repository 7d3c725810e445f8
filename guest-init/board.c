/* The agent behind a TCP port, see board.h; docs/protocol.md, "Boards". */
#include "board.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bytes.h"
#include "sha256.h"

enum {
	KEY = 32,
	NONCE = 32,
	CHECK = 16,			/* of a record */
	RECORD = 16384,			/* most bytes in one */
	GREETING_MS = 10000,
	AGENT_ENDED = 3,		/* exit status */
	IDLE_S = 30, PROBE_S = 10, PROBES = 3,
};

static const char magic[8] = "gctl-b1\n";

struct direction {
	struct hmac key;
	uint64_t count;
};

static bool read_key(const char *path, uint8_t key[KEY])
{
	char text[2 * KEY + 2] = "";
	int fd = open(path, O_RDONLY | O_CLOEXEC), i;
	struct stat st;
	unsigned byte;
	ssize_t n;

	if (fd < 0 || fstat(fd, &st) < 0) {
		fprintf(stderr, "agent: %s: %s\n", path, strerror(errno));
		return false;
	}
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	if (st.st_mode & 077) {
		fprintf(stderr, "agent: %s is open to others: chmod 600\n", path);
		return false;
	}
	for (i = 0; n >= 2 * KEY && i < KEY; i++) {
		if (sscanf(text + 2 * i, "%2x", &byte) != 1)
			break;
		key[i] = (uint8_t)byte;
	}
	if (n < 2 * KEY || i < KEY)
		fprintf(stderr, "agent: %s does not hold %d hexadecimal digits\n", path, 2 * KEY);
	return n >= 2 * KEY && i == KEY;
}

/* HMAC(key, label, both nonces) */
static void derive(const uint8_t key[KEY], const char *label, const uint8_t *nonces,
		   uint8_t out[SHA256_SIZE])
{
	struct hmac h;

	hmac_key(&h, key, KEY);
	hmac_add(&h, label, strlen(label));
	hmac_add(&h, nonces, 2 * NONCE);
	hmac_end(&h, out);
}

static bool same(const uint8_t *a, const uint8_t *b, size_t length)
{
	uint8_t differ = 0;

	while (length--)
		differ |= *a++ ^ *b++;
	return differ == 0;
}

static bool read_whole(int fd, void *data, size_t length)
{
	uint8_t *to = data;

	while (length > 0) {
		ssize_t n = read(fd, to, length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		to += n;
		length -= (size_t)n;
	}
	return true;
}

static bool write_whole(int fd, const void *data, size_t length)
{
	const uint8_t *from = data;

	while (length > 0) {
		ssize_t n = write(fd, from, length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		from += n;
		length -= (size_t)n;
	}
	return true;
}

/* Both prove that they have the key; the host speaks first, and proves last. */
static bool greet(int fd, const uint8_t key[KEY], struct direction *in, struct direction *out)
{
	uint8_t hello[sizeof(magic) + NONCE], nonces[2 * NONCE], proof[SHA256_SIZE];
	uint8_t heard[SHA256_SIZE], session[SHA256_SIZE];

	if (!read_whole(fd, hello, sizeof(hello)) || memcmp(hello, magic, sizeof(magic)) != 0)
		return false;
	memcpy(nonces, hello + sizeof(magic), NONCE);
	if (getrandom(nonces + NONCE, NONCE, 0) != NONCE)
		return false;
	derive(key, "agent", nonces, proof);
	if (!write_whole(fd, nonces + NONCE, NONCE) || !write_whole(fd, proof, sizeof(proof)) ||
	    !read_whole(fd, heard, sizeof(heard)))
		return false;
	derive(key, "host", nonces, proof);
	if (!same(heard, proof, sizeof(proof)))
		return false;
	derive(key, "to agent", nonces, session);
	hmac_key(&in->key, session, sizeof(session));
	derive(key, "to host", nonces, session);
	hmac_key(&out->key, session, sizeof(session));
	in->count = out->count = 0;
	return true;
}

/* What a record ends with: its place in the stream, its length, its bytes. */
static void check_of(struct direction *d, const uint8_t *record, size_t length,
		     uint8_t digest[SHA256_SIZE])
{
	struct hmac h = d->key;
	uint8_t count[8];

	put64(count, d->count++);
	hmac_add(&h, count, sizeof(count));
	hmac_add(&h, record, length);
	hmac_end(&h, digest);
}

static bool pass_in(int fd, int agent, struct direction *in)
{
	static uint8_t record[2 + RECORD + CHECK];
	uint8_t digest[SHA256_SIZE];
	size_t length;

	if (!read_whole(fd, record, 2))
		return false;
	length = get16(record);
	if (length == 0 || length > RECORD || !read_whole(fd, record + 2, length + CHECK))
		return false;
	check_of(in, record, 2 + length, digest);
	return same(digest, record + 2 + length, CHECK) && write_whole(agent, record + 2, length);
}

static bool pass_out(int agent, int fd, struct direction *out)
{
	static uint8_t record[2 + RECORD + CHECK];
	uint8_t digest[SHA256_SIZE];
	ssize_t n = read(agent, record + 2, RECORD);

	if (n <= 0) {
		shutdown(fd, SHUT_RDWR);
		_exit(AGENT_ENDED);
	}
	put16(record, (uint32_t)n);
	check_of(out, record, 2 + (size_t)n, digest);
	memcpy(record + 2 + n, digest, CHECK);
	return write_whole(fd, record, 2 + (size_t)n + CHECK);
}

static void set_deadline(int fd, int ms)
{
	struct timeval limit = { ms / 1000, 0 };

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
}

/* A host that is gone without a word must not keep the next one out. */
static void keep_alive(int fd)
{
	int on = 1, idle = IDLE_S, every = PROBE_S, probes = PROBES;

	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &every, sizeof(every));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

/*
 * Each direction is a process, so that neither waits for the other: the agent reads no more when it
 * has too much to say.
 */
static void serve(int fd, int agent, const uint8_t key[KEY])
{
	struct direction in, out;
	int status = 0;
	pid_t sender;

	keep_alive(fd);
	set_deadline(fd, GREETING_MS);
	if (!greet(fd, key, &in, &out))
		return;
	set_deadline(fd, 0);
	sender = fork();
	if (sender == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (pass_out(agent, fd, &out))
			;
		shutdown(fd, SHUT_RDWR);
		_exit(EXIT_SUCCESS);
	}
	while (sender > 0 && pass_in(fd, agent, &in))
		;
	if (sender > 0) {
		kill(sender, SIGKILL);
		if (waitpid(sender, &status, 0) == sender && WIFEXITED(status) &&
		    WEXITSTATUS(status) == AGENT_ENDED)
			_exit(EXIT_FAILURE);
	}
}

static int open_listener(const char *where)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	const char *colon = strrchr(where, ':');
	char host[64];
	int fd, on = 1;

	if (!colon || (size_t)(colon - where) >= sizeof(host)) {
		errno = EINVAL;
		return -1;
	}
	snprintf(host, sizeof(host), "%.*s", (int)(colon - where), where);
	address.sin_port = htons((uint16_t)atoi(colon + 1));
	if (inet_pton(AF_INET, host, &address.sin_addr) != 1) {
		errno = EINVAL;
		return -1;
	}
	fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
	    bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 4) < 0)
		return -1;
	return fd;
}

int board_listen(const char *where, const char *key_file)
{
	uint8_t key[KEY];
	int listener, pair[2], fd;
	pid_t pid;

	if (!read_key(key_file, key))
		return -1;
	listener = open_listener(where);
	if (listener < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
		fprintf(stderr, "agent: %s: %s\n", where, strerror(errno));
		return -1;
	}
	pid = fork();
	if (pid != 0) {
		close(listener);
		close(pair[1]);
		return pid < 0 ? -1 : pair[0];
	}
	close(pair[0]);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGPIPE, SIG_IGN);
	for (;;) {
		fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (fd < 0)
			continue;
		serve(fd, pair[1], key);
		close(fd);
	}
}
