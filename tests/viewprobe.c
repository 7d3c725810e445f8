/*
 * What a hostile or odd tool may try in a view. Words are commands with their operands, done
 * one after the other; the first that fails ends it with status 1 and its errno on stderr.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static void check(int failed, const char *what, const char *name)
{
	if (!failed)
		return;
	fprintf(stderr, "%s %s: %s\n", what, name, strerrorname_np(errno));
	exit(1);
}

static void show(const char *path)
{
	char data[65536];
	int fd = open(path, O_RDONLY);
	ssize_t n;

	check(fd < 0, "read", path);
	while ((n = read(fd, data, sizeof(data))) > 0)
		check(write(1, data, (size_t)n) < 0, "write", "stdout");
	check(n < 0, "read", path);
	close(fd);
}

static void put(const char *path, const char *text, int flags)
{
	int fd = open(path, O_WRONLY | flags, 0666);

	check(fd < 0, "write", path);
	check(write(fd, text, strlen(text)) < 0, "write", path);
	close(fd);
}

static void list(const char *path)
{
	DIR *dir = opendir(path);
	struct dirent *entry;

	check(!dir, "list", path);
	while ((entry = readdir(dir)))
		if (entry->d_name[0] != '.' || strlen(entry->d_name) > 2)
			puts(entry->d_name);
	closedir(dir);
}

static void show_link(const char *path)
{
	char target[5000];
	ssize_t n = readlink(path, target, sizeof(target));

	check(n < 0, "readlink", path);
	fwrite(target, 1, (size_t)n, stdout);
}

static void show_stat(const char *path)
{
	struct stat st;

	check(lstat(path, &st), "stat", path);
	printf("%o %lld\n", st.st_mode, (long long)st.st_size);
}

static void forks(void)
{
	int n = 0;

	while (n < 100000 && fork() >= 0)
		n++;
	pause();
}

static void hog(void)
{
	size_t size = 1 << 20, total = 0;
	char *p;

	while ((p = malloc(size))) {
		memset(p, 1, size);
		total++;
	}
	printf("%zu\n", total);
}

static void fill(const char *path)
{
	static char data[1 << 16];
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0666);

	check(fd < 0, "fill", path);
	signal(SIGXFSZ, SIG_IGN);
	for (;;)
		check(write(fd, data, sizeof(data)) < 0, "fill", path);
}

/* A process that outlives its parent and holds nothing of it. */
static void stay(void)
{
	if (fork())
		return;
	setsid();
	if (fork())
		_exit(0);
	for (;;)
		pause();
}

static void escape(void)
{
	check(mkdir("jail", 0700) && errno != EEXIST, "mkdir", "jail");
	check(chroot("jail"), "chroot", "jail");
}

static char *word(char ***at)
{
	char *w = **at;

	if (!w)
		exit(2);
	(*at)++;
	return w;
}

static int one(char ***at)
{
	char *name = word(at), *a;

#define IS(text) (!strcmp(name, text))
	if (IS("read")) show(word(at));
	else if (IS("list")) list(word(at));
	else if (IS("readlink")) show_link(word(at));
	else if (IS("stat")) show_stat(word(at));
	else if (IS("write")) a = word(at), put(a, word(at), O_CREAT | O_TRUNC);
	else if (IS("append")) a = word(at), put(a, word(at), O_APPEND);
	else if (IS("open")) a = word(at), check(open(a, O_RDWR) < 0, "open", a);
	else if (IS("mkdir")) a = word(at), check(mkdir(a, 0777), "mkdir", a);
	else if (IS("rmdir")) a = word(at), check(rmdir(a), "rmdir", a);
	else if (IS("unlink")) a = word(at), check(unlink(a), "unlink", a);
	else if (IS("rename")) a = word(at), check(rename(a, word(at)), "rename", a);
	else if (IS("symlink")) a = word(at), check(symlink(a, word(at)), "symlink", a);
	else if (IS("chmod")) a = word(at), check(chmod(a, strtol(word(at), NULL, 8)), "chmod", a);
	else if (IS("truncate")) a = word(at), check(truncate(a, atoll(word(at))), "truncate", a);
	else if (IS("stdin")) show("/dev/stdin");
	else if (IS("copy")) { char c; while (read(0, &c, 1) == 1) putchar(c); }
	else if (IS("say")) puts(word(at)), fflush(stdout);
	else if (IS("warn")) fprintf(stderr, "%s\n", word(at));
	else if (IS("env")) for (char **e = environ; *e; e++) puts(*e);
	else if (IS("cwd")) puts(get_current_dir_name());
	else if (IS("exec")) a = word(at), execl(a, a, (char *)NULL), check(1, "exec", a);
	else if (IS("map")) {
		int fd;
		a = word(at);
		fd = open(a, O_RDONLY);
		check(fd < 0, "open", a);
		check(mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0) == MAP_FAILED,
		      "map", a);
	}
	else if (IS("ids")) printf("%u %u\n", getuid(), getpid());
	else if (IS("kill")) a = word(at), check(kill(atoi(a), SIGKILL), "kill", a);
	else if (IS("ptrace")) check(ptrace(PTRACE_ATTACH, 1, 0, 0) < 0, "ptrace", "1");
	else if (IS("mount")) check(mount("x", "/", "tmpfs", 0, NULL), "mount", "/");
	else if (IS("unshare")) check(unshare(CLONE_NEWUSER), "unshare", "user");
	else if (IS("socket")) check(socket(AF_INET, SOCK_STREAM, 0) < 0, "socket", "inet");
	else if (IS("chroot")) escape();
	else if (IS("mknod")) check(mknod(word(at), S_IFCHR | 0666, 0x801), "mknod", "device");
	else if (IS("forks")) forks();
	else if (IS("hog")) hog();
	else if (IS("fill")) fill(word(at));
	else if (IS("stay")) stay();
	else if (IS("spin")) for (;;) ;
	else if (IS("sleep")) sleep((unsigned)atoi(word(at)));
	else if (IS("exit")) exit(atoi(word(at)));
	else if (IS("die")) raise(atoi(word(at)));
	else exit(2);
	fflush(stdout);
	return 1;
}

int main(int argc, char **argv)
{
	char **at = argv + 1;

	(void)argc;
	while (*at)
		one(&at);
	return 0;
}
