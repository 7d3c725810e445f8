/*
 * PREPARE: everything that a guest needs to be usable: the scratch disk and all that lies on it.
 * RENEW: what must not be common to guests that come out of a saved one: clock, secrets, name.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "bytes.h"
#include "find.h"
#include "system.h"

enum {
	SEED_MAX = 512,
	HOSTNAME_MAX = 64,
	SWAP_MAX = 1 << 20,		/* MiB */
	QUIET = MS_NOSUID | MS_NODEV,
};

#define SCRATCH "/scratch"

int known_namespaces(void)
{
	int flags = CLONE_NEWPID | CLONE_NEWNS;

	if (access("/proc/self/ns/ipc", F_OK) == 0)
		flags |= CLONE_NEWIPC;
	if (access("/proc/self/ns/uts", F_OK) == 0)
		flags |= CLONE_NEWUTS;
	return flags;
}

int set_clock(const struct fields *f)
{
	struct timespec t;
	uint64_t ns;

	if (!f->value[R_CLOCK])
		return 0;
	if (f->length[R_CLOCK] != 8)
		return EPROTO;
	ns = get64(f->value[R_CLOCK]);
	t.tv_sec = (time_t)(ns / 1000000000);
	t.tv_nsec = (long)(ns % 1000000000);
	return clock_settime(CLOCK_REALTIME, &t) < 0 ? errno : 0;
}

/* Guests that were cloned from one template would otherwise share their random numbers. */
static int seed_random(const struct fields *f)
{
	struct {
		struct rand_pool_info info;
		uint8_t bytes[SEED_MAX];
	} pool;
	uint32_t length = f->length[R_SEED];
	int fd, error = 0;

	if (!f->value[R_SEED])
		return 0;
	if (length == 0 || length > SEED_MAX)
		return EPROTO;
	fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return errno;
	pool.info.entropy_count = (int)length * 8;
	pool.info.buf_size = (int)length;
	memcpy(pool.bytes, f->value[R_SEED], length);
	if (ioctl(fd, RNDADDENTROPY, &pool) < 0 || ioctl(fd, RNDRESEEDCRNG) < 0)
		error = errno;
	close(fd);
	return error;
}

static int set_hostname(const struct fields *f)
{
	uint32_t length = f->length[R_HOSTNAME];

	if (!f->value[R_HOSTNAME])
		return 0;
	if (length == 0 || length > HOSTNAME_MAX)
		return EINVAL;
	return sethostname((const char *)f->value[R_HOSTNAME], length) < 0 ? errno : 0;
}

static int bring_up_loopback(void)
{
	struct ifreq request = { .ifr_name = "lo" };
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), error = 0;

	if (fd < 0)
		return errno;
	request.ifr_flags = IFF_UP | IFF_RUNNING;
	if (ioctl(fd, SIOCSIFFLAGS, &request) < 0)
		error = errno;
	close(fd);
	return error;
}

static int make(const char *path, mode_t mode)
{
	if (mkdir(path, 0700) < 0 && errno != EEXIST)
		return errno;
	/* Whatever the umask. */
	return chmod(path, mode) < 0 ? errno : 0;
}

/* One step: make the folder, mount on it unless `type` is NULL, and set its mode. */
struct step {
	const char *what, *source, *target, *type;
	unsigned long flags;
	const char *data;
	mode_t mode;
};

/*
 * Nothing of the host's is mounted before the scratch disk, which is the first step.
 * Above the image lies what the initramfs adds to it: /tools/offload, the stub.
 * The overlay's `volatile` leaves out syncing to a disk that nobody will ever read again.
 */
static const struct step steps[] = {
	/* A disk this young needs no thread that looks through all of it. */
	{ "/scratch", NULL, SCRATCH, "ext4", MS_NOATIME,
	  "noinit_itable,no_prefetch_block_bitmaps", 0755 },
	{ "upper", NULL, SCRATCH "/upper", NULL, 0, NULL, 0755 },
	{ "work", NULL, SCRATCH "/work", NULL, 0, NULL, 0755 },
	{ "tmp", NULL, SCRATCH "/tmp", NULL, 0, NULL, 01777 },
	{ "overlay", "image", GUEST_ROOT, "overlay", MS_NOATIME,
	  "lowerdir=/extra:/image,upperdir=" SCRATCH "/upper,workdir=" SCRATCH "/work,volatile", 0755 },
	{ "/dev", "dev", GUEST_ROOT "/dev", "devtmpfs", MS_NOSUID, "mode=0755", 0755 },
	{ "/dev/pts", "devpts", GUEST_ROOT "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
	  "gid=5,mode=620,ptmxmode=666", 0755 },
	{ "/dev/shm", "shm", GUEST_ROOT "/dev/shm", "tmpfs", QUIET, "mode=1777", 01777 },
	{ "/proc", NULL, GUEST_ROOT "/proc", NULL, 0, NULL, 0555 },
	{ "/sys", "sysfs", GUEST_ROOT "/sys", "sysfs", QUIET | MS_NOEXEC, NULL, 0 },
	{ "/run", "run", GUEST_ROOT "/run", "tmpfs", QUIET, "mode=0755", 0755 },
	{ "/tmp", SCRATCH "/tmp", GUEST_ROOT "/tmp", "none", MS_BIND, NULL, 01777 },
};

static int perform(const struct step *s, const char *scratch)
{
	if (mkdir(s->target, 0755) < 0 && errno != EEXIST)
		return errno;
	if (s->type && mount(s->source ? s->source : scratch, s->target, s->type, s->flags,
			     s->data) < 0)
		return errno;
	return s->mode ? make(s->target, s->mode) : 0;
}

static int build_root(const char **what)
{
	char scratch[DISK_PATH];
	size_t i;
	int error;

	*what = "no disk with the serial scratch";
	if (!find_disk("scratch", scratch, sizeof(scratch)))
		return ENODEV;
	/* Shared, so that what is mounted later reaches the namespaces of commands. */
	*what = "shared mounts";
	if (mount(NULL, "/", NULL, MS_SHARED | MS_REC, NULL) < 0)
		return errno;
	for (i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
		*what = steps[i].what;
		error = perform(&steps[i], scratch);
		if (error)
			return error;
	}
	return 0;
}

/*
 * Swap is made ready by a child while the guest is in use already: nobody needs it in the first
 * milliseconds, and under emulation it is a quarter of PREPARE. A fault is told on the console.
 */
static int start_swap(const struct fields *f)
{
	uint32_t size;
	pid_t pid;
	int error;

	if (!f->value[R_SWAP])
		return 0;
	if (f->length[R_SWAP] != 4)
		return EPROTO;
	size = get32(f->value[R_SWAP]);
	if (size > SWAP_MAX)
		return EINVAL;
	if (size == 0)
		return 0;
	pid = fork();
	if (pid == 0) {
		error = swap_on(SCRATCH "/swap", size);
		if (error)
			dprintf(STDOUT_FILENO, "guestctl: no swap: %s\n", strerror(error));
		_exit(error);
	}
	return pid < 0 ? errno : 0;
}

int renew(const struct fields *f, const char **what)
{
	int error;

	*what = "clock";
	if ((error = set_clock(f)))
		return error;
	*what = "seed";
	if ((error = seed_random(f)))
		return error;
	*what = "host name";
	return set_hostname(f);
}

int prepare(struct agent *a, const struct fields *f, const char **what)
{
	int error = renew(f, what);

	if (error)
		return error;
	*what = "loopback";
	if ((error = bring_up_loopback()))
		return error;
	if ((error = build_root(what)))
		return error;
	map_less_around();
	*what = "swap";
	if ((error = start_swap(f)))
		return error;
	*what = "root";
	a->guest_root = open(GUEST_ROOT, O_PATH | O_DIRECTORY | O_CLOEXEC);
	return a->guest_root < 0 ? errno : 0;
}
