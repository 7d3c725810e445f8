/*
 * Process 1 of the guest: mounts what the agent needs, starts it, reaps orphans, and ends the
 * machine when the agent has ended. It does nothing that PREPARE can do, so that a guest is
 * ready for that as soon as can be.
 *
 * The machine is ended by a reboot: some boards cannot power off, and QEMU runs with
 * -no-reboot. A kernel panic looks the same from outside, so a clean stop says so first.
 */
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "agent.h"
#include "dial.h"
#include "find.h"

enum { DEVICE_MS = 10000 };

static void say(const char *text)
{
	char line[256];
	int n = snprintf(line, sizeof(line), "guestctl: %s\n", text);

	if (n > 0 && write(STDOUT_FILENO, line, (size_t)n) < 0)
		return;
}

static void stop(void) __attribute__((noreturn));
static void stop(void)
{
	/* No sync: what was worth keeping has been written by POWEROFF. */
	tcdrain(STDOUT_FILENO);
	reboot(RB_AUTOBOOT);
	for (;;)
		pause();
}

static void fail(const char *what)
{
	char text[200];

	snprintf(text, sizeof(text), "init: %s: %s", what, strerror(errno));
	say(text);
	stop();
}

/* The console, if the kernel had no /dev/console to give us. */
static void open_console(void)
{
	int fd;

	if (fcntl(STDOUT_FILENO, F_GETFD) >= 0)
		return;
	fd = open("/dev/console", O_RDWR | O_NOCTTY);
	if (fd < 0)
		return;
	dup2(fd, STDIN_FILENO);
	dup2(fd, STDOUT_FILENO);
	dup2(fd, STDERR_FILENO);
	if (fd > STDERR_FILENO)
		close(fd);
}

static void mount_on(const char *source, const char *target, const char *type,
		     unsigned long flags)
{
	if (mkdir(target, 0755) < 0 && errno != EEXIST)
		fail(target);
	if (mount(source, target, type, flags, NULL) < 0)
		fail(target);
}

static void link_devices(void)
{
	static const char *const links[][2] = {
		{ "/proc/self/fd", "/dev/fd" },
		{ "/proc/self/fd/0", "/dev/stdin" },
		{ "/proc/self/fd/1", "/dev/stdout" },
		{ "/proc/self/fd/2", "/dev/stderr" },
	};
	size_t i;

	for (i = 0; i < sizeof(links) / sizeof(links[0]); i++)
		if (symlink(links[i][0], links[i][1]) < 0 && errno != EEXIST)
			fail(links[i][1]);
}

/*
 * Disks are there when we start, ports appear and get their names a little later: every
 * change is announced to this socket.
 */
static int open_events(void)
{
	struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = 1 };
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK,
			NETLINK_KOBJECT_UEVENT);

	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		fail("device events");
	return fd;
}

static void wait_for(int events, bool (*find)(const char *, char *, size_t), const char *name,
		     char *path, size_t size)
{
	char event[2048];

	while (!find(name, path, size)) {
		struct pollfd ready = { .fd = events, .events = POLLIN };
		int n = poll(&ready, 1, DEVICE_MS);

		if (n == 0)
			errno = ENODEV;
		if (n == 0 || (n < 0 && errno != EINTR))
			fail(name);
		while (recv(events, event, sizeof(event), 0) > 0)
			;
	}
}

static void protect_from_oom(void)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, "-1000", 5) != 5)
		fail("oom_score_adj");
	close(fd);
}

/* The kernel hands on what it does not know of its command line: `channel` names ours. */
static int open_channel(int events)
{
	const struct dialer *dialer = find_dialer(getenv("channel"));
	char path[320];
	int fd;

	if (!dialer)
		fail("unknown channel");
	wait_for(events, dialer->find, dialer->name, path, sizeof(path));
	fd = dialer->open(path);
	if (fd < 0)
		fail(path);
	return fd;
}

static pid_t start_agent(int port)
{
	char number[16];
	char *argv[] = { (char[]){ "agent" }, (char[]){ "--fd" }, number, NULL };
	pid_t pid;

	snprintf(number, sizeof(number), "%d", port);
	pid = fork();

	if (pid < 0)
		fail("fork");
	/* No exec: it is the same program, and that takes time under emulation. */
	if (pid == 0)
		_exit(agent_main(3, argv));
	return pid;
}

static void report(int status)
{
	char text[80];

	if (WIFEXITED(status) && WEXITSTATUS(status) == AGENT_CLEAN)
		snprintf(text, sizeof(text), "clean stop");
	else if (WIFEXITED(status))
		snprintf(text, sizeof(text), "agent died (exit status %d)", WEXITSTATUS(status));
	else
		snprintf(text, sizeof(text), "agent died (signal %d)", WTERMSIG(status));
	say(text);
}

int init_main(void)
{
	int events, status, port;
	char disk[320];
	pid_t agent, pid;

	umask(022);
	if (mkdir("/dev", 0755) < 0 && errno != EEXIST)
		fail("/dev");
	if (mount("dev", "/dev", "devtmpfs", MS_NOSUID, "mode=0755") < 0)
		fail("/dev");
	open_console();
	say("init");
	mount_on("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC);
	mount_on("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC);
	link_devices();
	protect_from_oom();
	events = open_events();
	wait_for(events, find_disk, "root", disk, sizeof(disk));
	mount_on(disk, "/image", "squashfs", MS_RDONLY | MS_NOATIME);
	port = open_channel(events);
	close(events);
	agent = start_agent(port);
	close(port);
	do {
		pid = waitpid(-1, &status, 0);
		if (pid < 0 && errno != EINTR)
			fail("waitpid");
	} while (pid != agent);
	report(status);
	stop();
}
