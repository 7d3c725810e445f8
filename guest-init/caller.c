/* Facts of a service's caller, see caller.h. */
#include "caller.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "bytes.h"
#include "job.h"
#include "layer.h"

enum {
	FACTS_MAX = 60 * 1024,
	RECORD = 5,			/* header of a record */
	MOUNTS_MAX = 40 * 1024,
};

#define UPPER "/scratch/upper"

struct facts {
	uint8_t *data;
	size_t length;
};

/* Room for the value of a record; NULL if it is too large. */
static uint8_t *record(struct facts *f, enum tag tag, size_t size)
{
	uint8_t *p = f->data + f->length;

	if (size > FACTS_MAX - RECORD || f->length > FACTS_MAX - RECORD - size)
		return NULL;
	*p = (uint8_t)tag;
	put32(p + 1, (uint32_t)size);
	f->length += RECORD + size;
	return p + RECORD;
}

/* The command in whose mount namespace a process is. One with a namespace of its own has none. */
static const struct job *job_of(const struct agent *a, pid_t pid)
{
	struct stat theirs, its;
	const struct job *job;
	char path[40];

	snprintf(path, sizeof(path), "/proc/%d/ns/mnt", (int)pid);
	if (stat(path, &theirs) < 0)
		return NULL;
	for (job = a->jobs; job; job = job->next)
		if (job->mounts >= 0 && fstat(job->mounts, &its) == 0 &&
		    its.st_ino == theirs.st_ino && its.st_dev == theirs.st_dev)
			return job;
	return NULL;
}

/* The path of its root folder in that namespace, and the device it lies on. */
static void add_root(struct facts *f, pid_t pid)
{
	char link[40], path[PATH_MAX];
	struct stat st;
	uint8_t *p;
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/%d/root", (int)pid);
	n = readlink(link, path, sizeof(path));
	if (n <= 0 || n == (ssize_t)sizeof(path) || stat(link, &st) < 0)
		return;
	p = record(f, R_CALLER_ROOT, (size_t)n);
	if (p)
		memcpy(p, path, (size_t)n);
	p = record(f, R_ROOT_DEVICE, 8);
	if (p)
		put32(put32(p, major(st.st_dev)), minor(st.st_dev));
}

/* The namespace's mounts as its process 1 has them, whose root is the guest's. */
static void add_mounts(struct facts *f, const struct job *job)
{
	char path[40];
	size_t length = 0;
	ssize_t n;
	char *text;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/mountinfo", (int)job->supervisor);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	text = malloc(MOUNTS_MAX);
	do {
		n = text && length < MOUNTS_MAX ? read(fd, text + length, MOUNTS_MAX - length) : -1;
		length += n > 0 ? (size_t)n : 0;
	} while (n > 0);
	close(fd);
	/* A list that is cut off would lie. */
	if (n == 0) {
		uint8_t *p = record(f, R_MOUNTS, length);

		if (p)
			memcpy(p, text, length);
	}
	free(text);
}

/* Names in one folder of the overlay's upper layer, each with its end; false if that failed. */
static bool list_changes(const char *folder, const char *prefix, char *to, size_t room,
			 size_t *length)
{
	DIR *dir = opendir(folder);
	struct dirent *entry;
	bool fits = true;

	if (!dir)
		return errno == ENOENT;
	while (fits && (entry = readdir(dir))) {
		int n;

		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		n = snprintf(to + *length, room - *length, "%s%s", prefix, entry->d_name) + 1;
		fits = (size_t)n <= room - *length;
		*length += fits ? (size_t)n : 0;
	}
	closedir(dir);
	return fits;
}

/*
 * What the guest has changed of its image: the upper layer's top folders, and what is in its
 * /etc, where much is changed that no compiler reads.
 */
static void add_changes(struct facts *f)
{
	char names[8192];
	size_t length = 0;
	uint8_t *p;

	if (!list_changes(UPPER, "", names, sizeof(names), &length) ||
	    !list_changes(UPPER "/etc", "etc/", names, sizeof(names), &length))
		return;
	p = record(f, R_CHANGED, length);
	if (p)
		memcpy(p, names, length);
}

/* What a sysroot holds that its lower folder does not, see layer.h. */
static void add_layer(struct facts *f)
{
	char names[8192];
	size_t length;
	uint8_t *p;

	if (!layer_changes(names, sizeof(names), &length))
		return;
	p = record(f, R_LAYER, length);
	if (p)
		memcpy(p, names, length);
}

uint8_t *caller_facts(const struct agent *a, pid_t pid, size_t *length)
{
	const struct job *job = a->plain || pid <= 0 ? NULL : job_of(a, pid);
	struct facts f = { NULL, 0 };
	uint8_t *p;

	*length = 0;
	if (!job)
		return NULL;
	f.data = malloc(FACTS_MAX);
	if (!f.data)
		return NULL;
	p = record(&f, R_JOB, 4);
	if (p)
		put32(p, job->id);
	add_root(&f, pid);
	add_mounts(&f, job);
	add_changes(&f);
	add_layer(&f);
	*length = f.length;
	return f.data;
}
