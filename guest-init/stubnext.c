/* The program that would run if the stub were not there, see stub.h. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "stub.h"

enum {
	NOT_EXECUTABLE = 126,
	NOT_FOUND = 127,
};

static struct stat self;

void next_init(const char *path)
{
	if (!path || stat(path, &self) < 0)
		memset(&self, 0, sizeof(self));
}

static bool is_self(const struct stat *st)
{
	return st->st_ino == self.st_ino && st->st_dev == self.st_dev;
}

static const char *search_path(void)
{
	const char *path = getenv("PATH");

	return path ? path : "/bin:/usr/bin";
}

/* The file `name` in the first folder of *path, which is moved on; false at the end. */
static bool walk(const char **path, const char *name, char *to, size_t size)
{
	size_t folder;

	if (!*path)
		return false;
	folder = strcspn(*path, ":");
	/* An empty folder is the current one. */
	if (snprintf(to, size, "%.*s%s%s", (int)folder, *path, folder ? "/" : "", name) >=
	    (int)size)
		*to = 0;
	*path = (*path)[folder] ? *path + folder + 1 : NULL;
	return true;
}

const char *next_find(const char *name)
{
	static char file[PATH_MAX];
	const char *path = search_path();
	struct stat st;

	while (walk(&path, name, file, sizeof(file)))
		if (stat(file, &st) == 0 && S_ISREG(st.st_mode) && !is_self(&st) &&
		    access(file, X_OK) == 0)
			return file;
	return NULL;
}

/* PATH without the folders where `name` is us: what the program runs is then its own affair. */
static void clean_path(const char *name)
{
	const char *path = search_path(), *begin = path;
	char *cleaned = malloc(strlen(path) + 1), *end = cleaned, file[PATH_MAX];
	struct stat st;

	if (!cleaned)
		return;
	*end = 0;
	while (walk(&path, name, file, sizeof(file))) {
		size_t length = path ? (size_t)(path - 1 - begin) : strlen(begin);

		if (stat(file, &st) < 0 || !is_self(&st)) {
			if (end > cleaned)
				*end++ = ':';
			memcpy(end, begin, length);
			end += length;
			*end = 0;
		}
		begin = path;
	}
	if (setenv("PATH", cleaned, 1) < 0)
		fprintf(stderr, "%s: no memory for PATH\n", name);
	free(cleaned);
}

void next_run(const char *name, char **argv)
{
	const char *file = next_find(name);
	int error;

	if (!file) {
		fprintf(stderr, "%s: not found\n", name);
		exit(NOT_FOUND);
	}
	clean_path(name);
	/* A compiler looks for its parts from where its name says that it is. */
	if (strchr(argv[0], '/'))
		argv[0] = (char *)(uintptr_t)file;
	execv(file, argv);
	error = errno;
	fprintf(stderr, "%s: %s\n", file, strerror(error));
	exit(error == ENOENT ? NOT_FOUND : NOT_EXECUTABLE);
}

/* distcc keeps its locks in memory: a build's tree is not their place. Each user has its own. */
static void make_distcc_folder(void)
{
	char folder[40];

	snprintf(folder, sizeof(folder), "/dev/shm/distcc-%u", (unsigned)geteuid());
	/* Where either fails, distcc says so and compiles here. */
	mkdir(folder, 0700);
	setenv("DISTCC_DIR", folder, 1);
}

void next_distcc(const char *name, char **argv)
{
	static char distcc[] = "distcc";
	const char *file = next_find(name), *found;
	char compiler[PATH_MAX], **words;
	size_t n = 0;

	if (!file)
		return;
	snprintf(compiler, sizeof(compiler), "%s", file);
	found = next_find(distcc);
	while (argv[n])
		n++;
	words = calloc(n + 2, sizeof(*words));
	if (!found || !words)
		return;
	clean_path(name);
	words[0] = distcc;
	words[1] = compiler;
	memcpy(words + 2, argv + 1, (n - 1) * sizeof(*words));
	make_distcc_folder();
	execv(found, words);
}
