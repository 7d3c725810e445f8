/* A serial device as a channel, see serial.h. The device is told nothing but to be raw. */
#include "serial.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"
#include "line.h"

#ifndef GRND_INSECURE
#define GRND_INSECURE 4
#endif

static struct line line;
static uint8_t out[LINE_OUTPUT];
static size_t out_at, out_end;

static const struct {
	unsigned rate;
	speed_t speed;
} speeds[] = {
	{ 9600, B9600 }, { 19200, B19200 }, { 38400, B38400 }, { 57600, B57600 },
	{ 115200, B115200 }, { 230400, B230400 }, { 460800, B460800 }, { 921600, B921600 },
};

static int make_raw(int tty, unsigned speed)
{
	struct termios settings;
	size_t i;

	if (tcgetattr(tty, &settings) < 0)
		return -1;
	cfmakeraw(&settings);
	settings.c_cflag |= CLOCAL | CREAD;
	settings.c_cflag &= ~(tcflag_t)CSTOPB;
	for (i = 0; i < sizeof(speeds) / sizeof(speeds[0]); i++)
		if (speeds[i].rate == speed)
			break;
	if (speed && i == sizeof(speeds) / sizeof(speeds[0])) {
		errno = EINVAL;
		return -1;
	}
	if (speed && cfsetspeed(&settings, speeds[i].speed) < 0)
		return -1;
	return tcsetattr(tty, TCSANOW, &settings);
}

/* Not a secret: it must only be another one than last time. */
static uint32_t incarnation(void)
{
	uint32_t number = 0;

	if (getrandom(&number, sizeof(number), GRND_INSECURE) != sizeof(number))
		number = (uint32_t)time(NULL) ^ (uint32_t)getpid() << 16;
	return number ? number : 1;
}

/* Move bytes between a descriptor and the line. False: it is gone. */
static bool read_tty(int tty)
{
	uint8_t data[4096];
	ssize_t n = read(tty, data, sizeof(data));

	if (n > 0)
		line_feed(&line, data, (size_t)n, now_ms());
	return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}

static bool write_tty(int tty)
{
	ssize_t n;

	if (out_at == out_end) {
		out_at = 0;
		out_end = line_output(&line, out, now_ms());
	}
	if (out_at == out_end)
		return true;
	n = write(tty, out + out_at, out_end - out_at);
	if (n > 0)
		out_at += (size_t)n;
	return n >= 0 || errno == EAGAIN || errno == EINTR;
}

static bool read_agent(int fd)
{
	uint8_t data[4096];
	size_t room = LINE_QUEUE - line.queue_length;
	ssize_t n = read(fd, data, room < sizeof(data) ? room : sizeof(data));

	if (n > 0)
		line_send(&line, data, (size_t)n);
	return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}

static bool write_agent(int fd)
{
	ssize_t n = write(fd, line.inbox, line.inbox_length);

	if (n > 0)
		line_take(&line, (size_t)n);
	return n >= 0 || errno == EAGAIN || errno == EINTR;
}

static int patience(void)
{
	int64_t deadline = line_deadline(&line), left = deadline - now_ms();

	if (deadline < 0)
		return -1;
	return left < 0 ? 0 : (int)left + 1;
}

/* Until either end is gone. */
static void pump(int tty, int fd)
{
	bool alive = true;

	line_init(&line, incarnation());
	while (alive) {
		struct pollfd ready[2] = { { .fd = tty, .events = POLLIN }, { .fd = fd } };

		alive = write_tty(tty);
		if (out_at < out_end)
			ready[0].events |= POLLOUT;
		/* Without a peer there is nobody to send to, and what came was for another. */
		if (line.peer && line.queue_length < LINE_QUEUE)
			ready[1].events |= POLLIN;
		if (line.inbox_length > 0)
			ready[1].events |= POLLOUT;
		if (poll(ready, 2, out_at < out_end ? -1 : patience()) < 0)
			continue;
		if (ready[0].revents & (POLLIN | POLLHUP | POLLERR))
			alive &= read_tty(tty);
		if (ready[1].revents & POLLOUT)
			alive &= write_agent(fd);
		if (ready[1].revents & (POLLIN | POLLHUP | POLLERR))
			alive &= read_agent(fd);
	}
}

int serial_open(const char *path, unsigned speed)
{
	int tty = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC), pair[2], error;
	pid_t pid = -1;

	if (tty < 0)
		return -1;
	if (make_raw(tty, speed) == 0 &&
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0)
		pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		signal(SIGPIPE, SIG_IGN);
		close(pair[0]);
		pump(tty, pair[1]);
		_exit(EXIT_SUCCESS);
	}
	error = errno;
	close(tty);
	if (pid < 0) {
		errno = error;
		return -1;
	}
	close(pair[1]);
	return pair[0];
}

int serial_named(const char *name)
{
	const char *at = strrchr(name, '@');
	char path[256];
	int tty;

	if (snprintf(path, sizeof(path), "%.*s", at ? (int)(at - name) : (int)strlen(name), name) >=
	    (int)sizeof(path)) {
		errno = ENAMETOOLONG;
		tty = -1;
	} else {
		tty = serial_open(path, at ? (unsigned)atoi(at + 1) : 0);
	}
	if (tty < 0)
		fprintf(stderr, "agent: %s: %s\n", name, strerror(errno));
	return tty;
}
