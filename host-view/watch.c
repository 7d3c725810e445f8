/* The kernel's word of what changes in a share, see tree.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "tree.h"

enum {
	ALWAYS = IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_ONLYDIR |
		IN_DONT_FOLLOW | IN_EXCL_UNLINK,
	BUFFER = 65536,
};

/* When the last step of making a link is told of, by model: QEMU writes the target before. */
static const uint32_t own_events[] = {
	[MODEL_FILE] = ALWAYS,
	[MODEL_XATTR] = ALWAYS | IN_ATTRIB,
};
static const uint32_t metadata_events = ALWAYS | IN_CLOSE_WRITE;

static struct watch **find(struct tree *t, int number)
{
	struct watch **w = &t->watches[(unsigned)number % WATCH_BUCKETS];

	while (*w && (*w)->number != number)
		w = &(*w)->chain;
	return w;
}

static void lose(struct tree *t, struct folder *folder, int number)
{
	if (folder->watch == number)
		folder->watch = -1;
	if (folder->metadata_watch == number)
		folder->metadata_watch = -1;
	if (folder->watched)
		t->unwatched++;
	folder->watched = false;
	folder->settled = false;
}

/* A folder that was moved keeps its watch: then it belongs to who asked last. */
static bool claim(struct tree *t, struct folder *folder, int number)
{
	struct watch **found = find(t, number), *w = *found;

	if (!w) {
		w = calloc(1, sizeof(*w));
		if (!w)
			return false;
		w->number = number;
		*found = w;
	} else if (w->folder != folder) {
		lose(t, w->folder, number);
	}
	w->folder = folder;
	return true;
}

static void forget(struct tree *t, int number)
{
	struct watch **found = find(t, number), *w = *found;

	if (w) {
		*found = w->chain;
		free(w);
	}
}

static int add(struct tree *t, struct folder *folder, const char *path, uint32_t events)
{
	int number = inotify_add_watch(t->notify, path, events);

	if (number < 0)
		return -1;
	if (!claim(t, folder, number)) {
		inotify_rm_watch(t->notify, number);
		return -1;
	}
	return number;
}

void watch_open(struct tree *t)
{
	t->notify = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
}

void watch_folder(struct tree *t, struct folder *folder)
{
	bool was = folder->watched;

	if (t->notify < 0)
		return;
	folder->watch = add(t, folder, ".", own_events[t->model]);
	folder->watched = folder->watch >= 0;
	if (t->model == MODEL_FILE) {
		folder->metadata_watch = add(t, folder, METADATA, metadata_events);
		/* Without one there is nothing to watch, and its parent tells when it comes. */
		if (folder->metadata_watch < 0 && errno != ENOENT)
			folder->watched = false;
	}
	if (was != folder->watched)
		t->unwatched += was ? 1 : (size_t)-1;
}

void unwatch_folder(struct tree *t, struct folder *folder)
{
	const int numbers[] = { folder->watch, folder->metadata_watch };
	int i;

	for (i = 0; i < 2; i++) {
		if (numbers[i] < 0)
			continue;
		inotify_rm_watch(t->notify, numbers[i]);
		forget(t, numbers[i]);
		lose(t, folder, numbers[i]);
	}
}

/* The folder whose entries are being looked at, kept open from one event to the next. */
struct place {
	struct folder *folder;
	int fd, metadata;
};

static void leave(struct place *place)
{
	if (place->fd >= 0)
		close(place->fd);
	if (place->metadata >= 0)
		close(place->metadata);
	*place = (struct place){ NULL, -1, -1 };
}

static bool go(struct tree *t, struct place *place, struct folder *folder)
{
	if (place->folder == folder)
		return true;
	leave(place);
	place->fd = open_tree_folder(t, folder);
	if (place->fd < 0 || fchdir(place->fd)) {
		leave(place);
		return false;
	}
	place->metadata = open_metadata(t, place->fd);
	place->folder = folder;
	return true;
}

static int take(struct tree *t, struct place *place, const struct inotify_event *event)
{
	struct watch *w;
	bool own, renewed = event->mask & IN_ISDIR;
	int error;

	if (event->mask & IN_Q_OVERFLOW) {
		leave(place);
		return tree_reset(t);
	}
	w = *find(t, event->wd);
	if (!w)
		return 0;
	if (event->mask & IN_IGNORED) {
		lose(t, w->folder, event->wd);
		forget(t, event->wd);
		return 0;
	}
	if (!event->len)
		return 0;
	own = w->folder->watch == event->wd;
	if (own && t->model == MODEL_FILE && !strcmp(event->name, METADATA)) {
		leave(place);
		return tree_read_later(t, w->folder);
	}
	/* What does not open has gone; whoever holds it has been or will be told. */
	if (!go(t, place, w->folder))
		return 0;
	error = tree_examine(t, w->folder, place->fd, place->metadata, event->name,
			     own && renewed);
	if (renewed)
		leave(place);
	return error;
}

int watch_read(struct tree *t)
{
	static char buffer[BUFFER] __attribute__((aligned(__alignof__(struct inotify_event))));
	struct place place = { NULL, -1, -1 };
	ssize_t n = 0;
	int error = 0;

	if (t->notify < 0)
		return 0;
	while (!error && (n = read(t->notify, buffer, sizeof(buffer))) > 0) {
		char *at = buffer;

		while (!error && at < buffer + n) {
			const struct inotify_event *event = (const struct inotify_event *)at;

			error = take(t, &place, event);
			at += sizeof(*event) + event->len;
		}
	}
	leave(&place);
	if (!error && n < 0 && errno != EAGAIN && errno != EINTR)
		error = errno;
	return error;
}
