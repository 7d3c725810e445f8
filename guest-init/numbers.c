/* Generic numbers, see numbers.h. */
#include "numbers.h"

#include <signal.h>
#include <sys/resource.h>

static const int signals[] = {
	0, SIGHUP, SIGINT, SIGQUIT, SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGKILL, SIGUSR1,
	SIGSEGV, SIGUSR2, SIGPIPE, SIGALRM, SIGTERM,
#ifdef SIGSTKFLT
	SIGSTKFLT,
#else
	-1,
#endif
	SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGXCPU, SIGXFSZ,
	SIGVTALRM, SIGPROF, SIGWINCH, SIGIO, SIGPWR, SIGSYS,
};

static const int resources[] = {
	RLIMIT_CPU, RLIMIT_FSIZE, RLIMIT_DATA, RLIMIT_STACK, RLIMIT_CORE, RLIMIT_RSS,
	RLIMIT_NPROC, RLIMIT_NOFILE, RLIMIT_MEMLOCK, RLIMIT_AS, RLIMIT_LOCKS,
	RLIMIT_SIGPENDING, RLIMIT_MSGQUEUE, RLIMIT_NICE, RLIMIT_RTPRIO, RLIMIT_RTTIME,
};

enum {
	SIGNALS = sizeof(signals) / sizeof(signals[0]),
	RESOURCES = sizeof(resources) / sizeof(resources[0]),
	LAST_SIGNAL = 64,
};

int signal_from_generic(uint32_t number)
{
	if (number == 0 || number > LAST_SIGNAL)
		return -1;
	return number < SIGNALS ? signals[number] : (int)number;
}

int signal_to_generic(int number)
{
	int i;

	for (i = 1; i < SIGNALS; i++)
		if (signals[i] == number)
			return i;
	return number;
}

int resource_from_generic(uint32_t number)
{
	return number < RESOURCES ? resources[number] : -1;
}
