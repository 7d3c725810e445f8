/* The last steps before a command runs, see command.h. */
#include "command.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

/* Our pid as the agent's namespace has it, which only the first /proc can tell. */
static uint32_t outer_pid(const struct launch *l)
{
	char text[16];
	ssize_t n;

	if (l->plain)
		return (uint32_t)getpid();
	n = readlinkat(FD_PROC, "self", text, sizeof(text) - 1);
	if (n < 0)
		launch_failed(AT_NAMESPACES, "/proc/self");
	text[n] = 0;
	return (uint32_t)strtoul(text, NULL, 10);
}

static void report_pid(uint32_t pid)
{
	struct start_report report = { .pid = pid };
	ssize_t n;

	do {
		n = write(FD_START, &report, sizeof(report));
	} while (n < 0 && errno == EINTR);
	if (n != (ssize_t)sizeof(report))
		_exit(127);
}

/* The agent must never be the victim when memory runs out; a command may. */
static void allow_oom_kill(void)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, "0", 1) != 1)
		launch_failed(AT_LIMITS, "oom_score_adj");
	close(fd);
}

static void take_credentials(const struct launch *l)
{
	const struct spec *s = l->spec;
	int fd;

	/* Plain: the default is "as we are", a wish for root cannot be told from it. */
	if (l->plain && s->uid == 0 && s->gid == 0)
		return;
	/* /dev/stdout and the like are opened anew by path, with the new user's rights. */
	for (fd = 0; fd <= 2; fd++)
		if (s->uid != 0 && fchown(fd, s->uid, s->gid) < 0)
			launch_failed(AT_CREDENTIALS, "fchown");
	if (setgroups(0, NULL) < 0)
		launch_failed(AT_CREDENTIALS, "setgroups");
	if (setgid(s->gid) < 0)
		launch_failed(AT_CREDENTIALS, "setgid");
	if (setuid(s->uid) < 0)
		launch_failed(AT_CREDENTIALS, "setuid");
}

/* Execute one file; a file without a known format is a script of /bin/sh, as for execvp. */
static void try_exec(const char *path, const struct spec *s)
{
	execve(path, s->argv, s->envp);
	if (errno == ENOEXEC) {
		char *name = s->argv[0];

		s->argv[-1] = (char *)(uintptr_t)"/bin/sh";
		s->argv[0] = (char *)(uintptr_t)path;
		execve("/bin/sh", s->argv - 1, s->envp);
		s->argv[0] = name;
	}
}

static const char *search_path(const struct spec *s)
{
	char **env;

	for (env = s->envp; *env; env++)
		if (strncmp(*env, "PATH=", 5) == 0)
			return *env + 5;
	return "/bin:/usr/bin";
}

/*
 * Like execvpe, with the command's own PATH. Not found anywhere is ENOENT; found but not
 * allowed is EACCES, even if a later folder does not have it.
 */
static void search_exec(const struct spec *s)
{
	const char *name = s->argv[0], *path;
	bool denied = false;
	char full[PATH_MAX];

	errno = ENOENT;
	if (!*name)
		return;
	if (strchr(name, '/')) {
		try_exec(name, s);
		return;
	}
	for (path = search_path(s);; path++) {
		size_t folder = strcspn(path, ":"), length = strlen(name);

		errno = ENAMETOOLONG;
		if (folder + 1 + length < sizeof(full)) {
			/* An empty folder is the current one. */
			memcpy(full, path, folder);
			full[folder] = '/';
			memcpy(full + folder + (folder > 0), name, length + 1);
			try_exec(full, s);
		}
		if (errno == EACCES)
			denied = true;
		else if (errno != ENOENT && errno != ENOTDIR && errno != ENAMETOOLONG &&
			 errno != ESTALE && errno != ENODEV && errno != ETIMEDOUT)
			return;
		path += folder;
		if (!*path)
			break;
	}
	if (denied)
		errno = EACCES;
	else if (errno != ENAMETOOLONG)
		errno = ENOENT;
}

void command_run(const struct launch *l)
{
	const struct spec *s = l->spec;
	sigset_t none;
	int i;

	/* Without a PID namespace nothing else would end us with the agent. */
	if (l->plain && prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
		launch_failed(AT_NAMESPACES, "prctl");
	if (setsid() < 0)
		launch_failed(AT_NAMESPACES, "setsid");
	if (l->spec->tty && ioctl(STDIN_FILENO, TIOCSCTTY, 0) < 0)
		launch_failed(AT_RESOURCES, "controlling terminal");
	report_pid(outer_pid(l));
	if (!l->plain)
		allow_oom_kill();
	for (i = 0; i < s->limit_count; i++)
		if (setrlimit((__rlimit_resource_t)s->limits[i].resource,
			      &s->limits[i].value) < 0)
			launch_failed(AT_LIMITS, "setrlimit");
	if ((l->root && chroot(l->root) < 0) || (l->root && chdir("/") < 0))
		launch_failed(AT_ROOT, "chroot");
	take_credentials(l);
	if (chdir(s->cwd) < 0)
		launch_failed(AT_CWD, "chdir");
	umask((mode_t)s->umask);
	/* The agent ignores SIGPIPE and blocks what it reads from a descriptor. */
	sigemptyset(&none);
	if (signal(SIGPIPE, SIG_DFL) == SIG_ERR || sigprocmask(SIG_SETMASK, &none, NULL) < 0)
		launch_failed(AT_NAMESPACES, "signals");
	search_exec(s);
	launch_failed(AT_EXEC, "exec");
}
