/* A tool's limits, see confine.h. */
#include "confine.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fail.h"

#if defined(__x86_64__)
#define MACHINE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define MACHINE AUDIT_ARCH_AARCH64
#else
#error "a line for this machine is missing"
#endif

/* Some new way to reach the kernel's depths comes every year: those that matter are refused. */
static const int refused[] = {
	SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev, SYS_mount, SYS_umount2,
	SYS_pivot_root, SYS_chroot, SYS_unshare, SYS_setns, SYS_open_tree, SYS_move_mount,
	SYS_fsopen, SYS_fsconfig, SYS_fsmount, SYS_fspick, SYS_mount_setattr, SYS_bpf,
	SYS_perf_event_open, SYS_userfaultfd, SYS_keyctl, SYS_add_key, SYS_request_key,
	SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register, SYS_open_by_handle_at,
	SYS_name_to_handle_at, SYS_kexec_load, SYS_init_module, SYS_finit_module,
	SYS_delete_module, SYS_socket, SYS_socketpair, SYS_inotify_init1, SYS_fanotify_init,
	SYS_personality, SYS_mbind, SYS_move_pages, SYS_quotactl, SYS_acct, SYS_swapon,
	SYS_swapoff, SYS_reboot, SYS_sethostname, SYS_pidfd_getfd, SYS_kcmp, SYS_mknodat,
#ifdef SYS_mknod
	SYS_mknod,
#endif
#ifdef SYS_inotify_init
	SYS_inotify_init,
#endif
};
enum { REFUSED = sizeof(refused) / sizeof(refused[0]) };

static const struct {
	int resource;
	enum limit limit;
} table[] = {
	{ RLIMIT_CPU, L_PROCESSOR },
	{ RLIMIT_AS, L_MEMORY },
	{ RLIMIT_NPROC, L_PROCESSES },
	{ RLIMIT_NOFILE, L_OPEN_FILES },
	{ RLIMIT_FSIZE, L_WRITTEN },
};

void confine_limits(const uint64_t limits[L_COUNT])
{
	struct rlimit none = { 0, 0 };
	size_t i;

	for (i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
		struct rlimit old, new;
		rlim_t wanted = (rlim_t)limits[table[i].limit];

		if (getrlimit(table[i].resource, &old))
			fail("read a limit", NULL);
		new.rlim_max = new.rlim_cur = wanted < old.rlim_max ? wanted : old.rlim_max;
		if (setrlimit(table[i].resource, &new))
			fail("set a limit", NULL);
	}
	setrlimit(RLIMIT_CORE, &none);
}

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, what)
#define REFUSE(error) RETURN(SECCOMP_RET_ERRNO | (error))

static void filter_calls(void)
{
	struct sock_filter code[REFUSED + 20];
	struct sock_fprog program = { .filter = code };
	const uint32_t namespaces = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET |
		CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;
	unsigned n = 0;
	int i;

#define ADD(...) code[n++] = (struct sock_filter)__VA_ARGS__
	ADD(LOAD(arch));
	ADD(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MACHINE, 1, 0));
	ADD(RETURN(SECCOMP_RET_KILL_PROCESS));
	ADD(LOAD(nr));
#ifdef __x86_64__
	/* x32's numbers */
	ADD(BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 0, 1));
	ADD(RETURN(SECCOMP_RET_KILL_PROCESS));
#endif
	/* Its flags cannot be seen; the C library then uses clone. */
	ADD(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 0, 1));
	ADD(REFUSE(ENOSYS));
	for (i = 0; i < REFUSED; i++)
		ADD(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)refused[i],
			     (uint8_t)(REFUSED - i + 3), 0));
	ADD(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 2));
	ADD(LOAD(args[0]));
	ADD(BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, namespaces, 1, 0));
	ADD(RETURN(SECCOMP_RET_ALLOW));
	ADD(REFUSE(EPERM));
#undef ADD
	program.len = (unsigned short)n;
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		fail("filter system calls", NULL);
}

void confine_privileges(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[2] = { { 0, 0, 0 }, { 0, 0, 0 } };
	int cap;

	/* For an owner that is root, exec would give all of them back. */
	for (cap = 0; prctl(PR_CAPBSET_READ, cap) >= 0; cap++)
		if (prctl(PR_CAPBSET_DROP, cap))
			fail("drop capabilities", NULL);
	if (prctl(PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED) ||
	    syscall(SYS_capset, &header, none))
		fail("drop capabilities", NULL);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		fail("give up privileges", NULL);
	filter_calls();
}
