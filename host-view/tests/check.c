/* Unit tests of what reads untrusted things: bodies, metadata, trees. Run by `make check`. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include "body.h"
#include "entry.h"
#include "links.h"
#include "paths.h"
#include "tree.h"

enum { PATIENCE = 60, GIVEN_UP = 20 };

static int checks, failures;

#define CHECK(what)                                                                     \
	do {                                                                            \
		checks++;                                                               \
		if (!(what)) {                                                          \
			failures++;                                                     \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what);      \
		}                                                                       \
	} while (0)

/* Bodies */

struct builder {
	char data[4096];
	size_t length;
};

static void add(struct builder *b, uint32_t tag, const void *value, size_t length)
{
	struct record record = { tag, (uint32_t)length };

	memcpy(b->data + b->length, &record, sizeof(record));
	memcpy(b->data + b->length + sizeof(record), value, length);
	b->length += sizeof(record) + length;
}

static void build_call(struct builder *b)
{
	static const char outer[] = "\0\0\0\0\0\0\0\0sub\0/";
	static const char inner[] = "\xff\xff\xff\xff\0\0\0\0\0//tmp/x";

	b->length = 0;
	add(b, F_PROGRAM, "/.tc/gcc", 9);
	add(b, F_CWD, "/work", 6);
	add(b, F_ARGUMENT, "gcc", 4);
	add(b, F_ARGUMENT, "", 1);
	add(b, F_ENVIRONMENT, "A=b", 4);
	add(b, F_UMASK, "\022\0\0\0", 4);
	add(b, F_MOUNT, inner, sizeof(inner));
	add(b, F_MOUNT, outer, sizeof(outer));
	add(b, F_BIND, "cc1\0/usr/lib/cc1", 17);
	add(b, F_GIVEN, "\244\1\0\0\0\0\0\0\1\0\0\0\0\0\0\0/a\0data", 23);
}

/* In memory that ends where the body does, so that the sanitizer sees what is read beyond. */
static bool parse(const struct builder *b, size_t length, struct call *call, char **data)
{
	*data = malloc(length + 1);
	memcpy(*data, b->data, length);
	(*data)[length] = '\0';
	return call_parse(call, *data, length);
}

static void check_bodies(void)
{
	struct builder b;
	struct call call;
	struct settings settings;
	size_t i;
	char *data;

	build_call(&b);
	CHECK(parse(&b, b.length, &call, &data));
	CHECK(call.mount_count == 2 && !*call.mounts[0].at && !strcmp(call.mounts[1].at, "tmp/x"));
	CHECK(!strcmp(call.mounts[0].subpath, "sub") && call.mounts[1].tree == NO_TREE);
	CHECK(!strcmp(call.argv[0], "gcc") && !*call.argv[1] && !call.argv[2]);
	CHECK(call.umask == 022 && call.given[0].length == 4 && call.given[0].mtime == 1);
	CHECK(!strcmp(call.binds[0].source, "cc1") && !strcmp(call.binds[0].at, "usr/lib/cc1"));
	call_free(&call);
	free(data);
	for (i = 0; i < b.length; i++) {
		parse(&b, i, &call, &data);
		call_free(&call);
		free(data);
	}
	for (i = 0; i < b.length; i++) {
		b.data[i] ^= 0x55;
		parse(&b, b.length, &call, &data);
		b.data[i] ^= 0x55;
		call_free(&call);
		free(data);
	}
	b.length = 0;
	add(&b, F_BIND, "cc1\0/usr/../x", 14);
	CHECK(!parse(&b, b.length, &call, &data));
	call_free(&call);
	free(data);
	b.length = 0;
	add(&b, S_TOOLCHAIN, "/tc", 4);
	add(&b, S_TREE, "\1\0\0\0\0\0\0\0/share", 15);
	CHECK(settings_parse(&settings, b.data, b.length));
	CHECK(settings.tree_count == 1 && settings.trees[0].model == MODEL_FILE);
	CHECK(!settings_parse(&settings, b.data, b.length - 1));
}

/* Metadata, with the oddities of QEMU's parser: docs/virtfs-format.md */

static void check_metadata(void)
{
	CHECK(metadata_mode("virtfs.uid=0\nvirtfs.gid=0\nvirtfs.mode=41471\n") == 0120777);
	CHECK(metadata_mode("virtfs.mode=33188") == 0100644);
	CHECK(metadata_mode("virtfs.mode=33188\r\nvirtfs.mode=41471\r\n") == 0120777);
	CHECK(metadata_mode("virtfs.mode = 5\n") == 0);
	CHECK(metadata_mode("virtfs.mode=12abc\n") == 12);
	CHECK(metadata_mode("virtfs.mode") == 0);
	CHECK(metadata_mode("") == 0);
	CHECK(metadata_mode("virtfs.uid=1\n") == 0);
	CHECK(metadata_mode("zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz"
			    "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzvirtfs.mode=41471\n") == 0120777);
}

/* Trees */

static char base[] = "/tmp/check.XXXXXX";
static int share, shown;

static void put(const char *path, const char *text)
{
	int fd = openat(share, path, O_CREAT | O_TRUNC | O_WRONLY, 0600);

	CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	close(fd);
}

static void put_link(const char *folder, const char *name, const char *target)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s%s", folder, name);
	put(path, target);
	snprintf(path, sizeof(path), "%s" METADATA, folder);
	mkdirat(share, path, 0700);
	snprintf(path, sizeof(path), "%s" METADATA "/%s", folder, name);
	put(path, "virtfs.mode=41471\n");
}

static bool shows(struct tree *t, struct links *l, const char *path, const char *target)
{
	char found[PATH_MAX] = "";
	struct copy *copy;
	bool same;

	CHECK(!tree_refresh(t));
	copy = links_hold(l, t);
	CHECK(copy);
	if (!copy)
		return false;
	same = readlinkat(copy->fd, path, found, sizeof(found) - 1) < 0 ? !target
		: target && !strcmp(found, target);
	links_release(l, copy);
	return same;
}

static void check_changes(struct tree *t, struct links *l)
{
	CHECK(shows(t, l, "sub/link", "target"));
	CHECK(shows(t, l, "planted", "planted"));
	CHECK(shows(t, l, "file", NULL));
	mkdirat(share, "later", 0700);
	put_link("later/", "link", "one");
	CHECK(shows(t, l, "later/link", "one"));
	unlinkat(share, "later/link", 0);
	put("later/link", "two");
	CHECK(shows(t, l, "later/link", "two"));
	renameat(share, "later", share, "moved");
	CHECK(shows(t, l, "later/link", NULL));
	CHECK(shows(t, l, "moved/link", "two"));
	unlinkat(share, "moved/" METADATA "/link", 0);
	CHECK(shows(t, l, "moved/link", NULL));
	put("moved/" METADATA "/link", "virtfs.mode=8576\n");
	CHECK(shows(t, l, "moved/link", "link"));
	put_link("sub/", "link", "other");
	unlinkat(share, "sub/link", 0);
	put("sub/link", "other");
	CHECK(shows(t, l, "sub/link", "other"));
}

/* Renames a file to and fro, until it is killed or whoever has started it has gone. */
static pid_t start_renaming(void)
{
	pid_t parent = getpid(), child = fork();

	if (child)
		return child;
	while (getppid() == parent) {
		renameat(share, "one", share, "other");
		renameat(share, "other", share, "one");
	}
	_exit(0);
}

/* While something is renamed, the kernel gives up on a path through "..", and we do not. */
static void check_renames(void)
{
	struct open_how how = { .flags = O_PATH, .resolve = RESOLVE_BENEATH };
	time_t end = time(NULL) + PATIENCE;
	int given_up = 0, missed = 0, fd;
	pid_t child;

	share = open(base, O_RDONLY | O_DIRECTORY);
	mkdirat(share, "in", 0700);
	put("one", "text");
	child = start_renaming();
	while (child > 0 && given_up < GIVEN_UP && time(NULL) < end) {
		fd = (int)syscall(SYS_openat2, share, "in/../in", &how, sizeof(how));
		given_up += fd < 0 && errno == EAGAIN;
		close(fd);
		fd = open_below(share, "in/../in", O_PATH | O_DIRECTORY, 0);
		missed += fd < 0;
		close(fd);
	}
	CHECK(child > 0 && !kill(child, SIGKILL) && waitpid(child, NULL, 0) == child);
	CHECK(!missed);
	/* Two processors are what it takes. */
	CHECK(given_up || sysconf(_SC_NPROCESSORS_ONLN) < 2);
	close(share);
}

/* A kernel that always gives up is believed in the end. */
static void check_bound(void)
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

	if (!child) {
		if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
		    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
			_exit(2);
		_exit(open_below(AT_FDCWD, ".", O_PATH, 0) != -1 || errno != EAGAIN);
	}
	CHECK(child > 0 && waitpid(child, &status, 0) == child && !status);
}

static void clean(const char *path)
{
	char command[PATH_MAX];

	snprintf(command, sizeof(command), "rm -rf %s", path);
	CHECK(!system(command));
}

static void check_tree(const char *kind)
{
	struct tree tree;
	struct links links;
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", base, kind);
	mkdir(path, 0700);
	share = open(path, O_RDONLY | O_DIRECTORY);
	snprintf(path, sizeof(path), "%s/%s.shown", base, kind);
	mkdir(path, 0700);
	shown = open(path, O_RDONLY | O_DIRECTORY);
	mkdirat(share, "sub", 0700);
	put_link("sub/", "link", "target");
	put("file", "text");
	symlinkat("/etc/passwd", share, "planted");
	links_open(&links, shown);
	CHECK(!tree_open(&tree, MODEL_FILE, false, share, &links));
	check_changes(&tree, &links);
	tree_close(&tree);
	links_close(&links);
	close(share);
	close(shown);
}

/* The kernel's limit of watches holds in a user namespace of our own too. */
static bool limit_watches(const char *number)
{
	int fd;
	bool done;

	fd = open("/proc/sys/user/max_inotify_watches", O_WRONLY);
	done = fd >= 0 && write(fd, number, strlen(number)) > 0;
	close(fd);
	return done;
}

int main(void)
{
	check_bodies();
	check_metadata();
	CHECK(mkdtemp(base));
	check_renames();
	check_bound();
	check_tree("watched");
	CHECK(!unshare(CLONE_NEWUSER));
	CHECK(limit_watches("3"));
	check_tree("some");
	CHECK(limit_watches("0"));
	check_tree("none");
	clean(base);
	printf("host-view: %d checks, %d failures\n", checks, failures);
	return failures != 0;
}
