/* Unit tests of paths in a command's root: `make check`. */
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "root.h"

enum { PATIENCE = 60, GIVEN_UP = 20 };

/* Renames a file to and fro, until it is killed or whoever has started it has gone. */
static pid_t start_renaming(int folder)
{
	pid_t parent = getpid(), child = fork();

	CHECK(child >= 0);
	if (child)
		return child;
	while (getppid() == parent) {
		renameat(folder, "one", folder, "other");
		renameat(folder, "other", folder, "one");
	}
	_exit(0);
}

/* While something is renamed, the kernel gives up on a path through "..", and we do not. */
static void check_renames(int folder)
{
	struct open_how how = { .flags = O_PATH, .resolve = RESOLVE_IN_ROOT };
	time_t end = time(NULL) + PATIENCE;
	pid_t child = start_renaming(folder);
	int given_up = 0, fd;

	while (given_up < GIVEN_UP && time(NULL) < end) {
		fd = (int)syscall(SYS_openat2, folder, "in/../in", &how, sizeof(how));
		if (fd < 0)
			CHECK(errno == EAGAIN);
		given_up += fd < 0;
		close(fd);
		fd = open_inside(folder, "in/../in", O_PATH | O_DIRECTORY);
		CHECK(fd >= 0);
		close(fd);
	}
	kill(child, SIGKILL);
	CHECK(waitpid(child, NULL, 0) == child);
	/* Two processors are what it takes. */
	CHECK(given_up || sysconf(_SC_NPROCESSORS_ONLN) < 2);
}

/* A kernel that always gives up is believed in the end. */
static void check_bound(int folder)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat2, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EAGAIN),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof(code) / sizeof(code[0]), code };
	pid_t child = fork();
	int status;

	CHECK(child >= 0);
	if (!child) {
		if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
		    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
			_exit(2);
		_exit(open_inside(folder, "in", O_PATH) != -1 || errno != EAGAIN);
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0);
}

void check_root(void)
{
	char path[] = "/tmp/guestctl-check-XXXXXX";
	int folder, fd;

	CHECK(mkdtemp(path));
	folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	CHECK(folder >= 0 && mkdirat(folder, "in", 0700) == 0);
	fd = openat(folder, "one", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	CHECK(fd >= 0);
	close(fd);
	check_renames(folder);
	check_bound(folder);
	unlinkat(folder, "one", 0);
	unlinkat(folder, "other", 0);
	CHECK(unlinkat(folder, "in", AT_REMOVEDIR) == 0 && rmdir(path) == 0);
	close(folder);
}
