/*
 * Modes as the guest has them, see call.h. On the host every file of a share has the same mode,
 * which matters to the few tools that copy a file's mode to what they make of it.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "call.h"
#include "entry.h"
#include "fail.h"
#include "paths.h"

enum { LINKS_MAX = 40 };

static struct {
	char *path;
	uint32_t mode;
} shown[GIVEN_MAX];
static int shown_count;

bool shown_with(const char *path, uint32_t mode)
{
	int i;

	for (i = 0; i < shown_count; i++)
		if (!strcmp(shown[i].path, path) && shown[i].mode == mode)
			return true;
	return false;
}

/* The mode that the guest has for `name` in `folder`, a share's; 0 if it says nothing. */
static uint32_t guest_mode(const struct job *job, uint32_t tree, int folder, const char *name)
{
	enum model model = job->world->settings.trees[tree].model;
	uint32_t mode;
	int metadata;

	if (model == MODEL_PLAIN || fchdir(folder))
		return 0;
	metadata = openat(folder, METADATA, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	mode = entry_mode(model, metadata, name);
	if (metadata >= 0)
		close(metadata);
	return mode;
}

/* The folder of a path as the tool would find it, by way of links. -1 with errno. */
static int open_as_seen(int root, const char *path)
{
	return open_resolved(root, *path ? path : "/", O_PATH | O_DIRECTORY,
			     RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS);
}

/* Make `path`, which has a slash, the real one of the file below /m that it leads to. */
static bool resolve(int root, char path[PATH_MAX])
{
	char target[PATH_MAX], where[PATH_MAX], name[NAME_MAX + 1];
	int turn;

	for (turn = 0; turn < LINKS_MAX; turn++) {
		char *slash = strrchr(path, '/');
		struct stat st;
		ssize_t n = -1;
		int folder;

		if (strlen(slash + 1) >= sizeof(name))
			return false;
		memcpy(name, slash + 1, strlen(slash + 1) + 1);
		*slash = '\0';
		folder = open_as_seen(root, path);
		if (folder < 0)
			return false;
		if (fchdir(folder) || !getcwd(where, sizeof(where)) ||
		    fstatat(folder, name, &st, AT_SYMLINK_NOFOLLOW) ||
		    (S_ISLNK(st.st_mode) &&
		     (n = readlinkat(folder, name, target, sizeof(target) - 1)) < 0)) {
			close(folder);
			return false;
		}
		close(folder);
		target[n < 0 ? 0 : n] = '\0';
		if ((size_t)snprintf(path, PATH_MAX, "%s/%s", *target == '/' ? "" : where + 2,
				     n < 0 ? name : target) >= PATH_MAX)
			return false;
		if (n < 0)
			return S_ISREG(st.st_mode);
	}
	return false;
}

/* The mount that a path below /m lies on: of those that lead there, the last. */
static const struct mount_request *find_mount(const struct call *call, const char *path)
{
	const struct mount_request *found = NULL;
	int i;

	for (i = 0; i < call->mount_count; i++) {
		size_t n = strlen(call->mounts[i].at);

		if (!strncmp(path, call->mounts[i].at, n) && (!n || path[n] == '/'))
			found = &call->mounts[i];
	}
	return found;
}

static void show_mode(const struct job *job, int root, const char *named)
{
	char path[PATH_MAX], below[PATH_MAX];
	const struct mount_request *mount;
	const char *inside;
	char *slash;
	uint32_t mode;
	int folder;

	if ((size_t)snprintf(path, sizeof(path), "/%s", named + strspn(named, "/")) >= sizeof(path) ||
	    !resolve(root, path))
		return;
	inside = path + strspn(path, "/");
	mount = find_mount(&job->call, inside);
	if (mount->tree == NO_TREE || mount->readonly ||
	    (size_t)snprintf(below, sizeof(below), "%s/%s", mount->subpath,
			     inside + strlen(mount->at)) >= sizeof(below))
		return;
	slash = strrchr(below, '/');
	*slash = '\0';
	folder = open_below(job->world->trees[mount->tree], below + strspn(below, "/"),
			    O_RDONLY | O_DIRECTORY, 0);
	if (folder < 0)
		return;
	mode = guest_mode(job, mount->tree, folder, slash + 1);
	close(folder);
	if (!S_ISREG(mode))
		return;
	shown[shown_count].mode = mode & 07777;
	shown[shown_count].path = strdup(inside);
	if (!shown[shown_count++].path || fchmodat(root, inside, mode & 07777, 0))
		fail("show the mode of", inside);
}

void show_modes(const struct job *job, int root)
{
	int i;

	for (i = 0; i < job->call.mode_count; i++)
		show_mode(job, root, job->call.modes[i]);
}
