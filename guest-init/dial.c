/* The channel's guest end, see dial.h. guestctl/qemu/machine.py has the other one. */
#include "dial.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "find.h"
#include "serial.h"

/* What QEMU was told of the network that reaches nothing but the channel. */
#define OUR_ADDRESS "169.254.77.15"
#define NETMASK "255.255.255.0"
#define HOST_ADDRESS "169.254.77.100"

enum { HOST_PORT = 77, SYN_RETRIES = 4 };

static int open_port(const char *path)
{
	return open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
}

static struct sockaddr_in address_of(const char *text, uint16_t port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };

	inet_pton(AF_INET, text, &address.sin_addr);
	return address;
}

/* Have the interface `index`, which netlink sees, moved to the caller's network namespace. */
static int fetch(int netlink, int index)
{
	struct {
		struct nlmsghdr header;
		struct ifinfomsg link;
		struct rtattr attribute;
		uint32_t pid;
	} request = {
		.header = { .nlmsg_len = sizeof(request), .nlmsg_type = RTM_NEWLINK,
			    .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK },
		.link = { .ifi_family = AF_UNSPEC, .ifi_index = index },
		.attribute = { .rta_len = RTA_LENGTH(sizeof(uint32_t)),
			       .rta_type = IFLA_NET_NS_PID },
		.pid = (uint32_t)getpid(),
	};
	struct {
		struct nlmsghdr header;
		struct nlmsgerr error;
	} answer;

	if (send(netlink, &request, sizeof(request), 0) < 0 ||
	    recv(netlink, &answer, sizeof(answer), 0) < (ssize_t)sizeof(answer.header))
		return -1;
	errno = answer.header.nlmsg_type == NLMSG_ERROR ? -answer.error.error : EPROTO;
	return errno ? -1 : 0;
}

static int set(int fd, const char *name, unsigned long what, const char *text)
{
	struct sockaddr_in address = address_of(text, 0);
	struct ifreq request = { 0 };

	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
	memcpy(&request.ifr_addr, &address, sizeof(address));
	return ioctl(fd, what, &request);
}

static int bring_up(int fd, const char *name)
{
	struct ifreq request = { .ifr_flags = IFF_UP | IFF_RUNNING };

	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
	if (set(fd, name, SIOCSIFADDR, OUR_ADDRESS) < 0 ||
	    set(fd, name, SIOCSIFNETMASK, NETMASK) < 0)
		return -1;
	return ioctl(fd, SIOCSIFFLAGS, &request);
}

/* In a network namespace that has nothing but this interface, once `fetch` has brought it. */
static int connect_from(int netlink, int index, const char *name)
{
	struct sockaddr_in host = address_of(HOST_ADDRESS, HOST_PORT);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), at_once = 1, few = SYN_RETRIES;

	if (fd < 0)
		return -1;
	if (fetch(netlink, index) < 0 || bring_up(fd, name) < 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &at_once, sizeof(at_once)) < 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_SYNCNT, &few, sizeof(few)) < 0 ||
	    connect(fd, (struct sockaddr *)&host, sizeof(host)) < 0) {
		int error = errno;

		close(fd);
		errno = error;
		return -1;
	}
	return fd;
}

/*
 * The interface goes to a network namespace of its own, which lives as long as the connection:
 * commands see the same network as with any other channel, and cannot write into this one.
 */
static int open_network(const char *name)
{
	int index = (int)if_nametoindex(name), fd = -1, error;
	int ours = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	int netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

	if (index > 0 && ours >= 0 && netlink >= 0 && unshare(CLONE_NEWNET) == 0) {
		fd = connect_from(netlink, index, name);
		error = errno;
		if (setns(ours, CLONE_NEWNET) < 0 && fd >= 0) {
			error = errno;
			close(fd);
			fd = -1;
		}
	} else {
		error = errno;
	}
	close(ours);
	close(netlink);
	errno = error;
	return fd;
}

static int open_serial(const char *path)
{
	return serial_open(path, 0);
}

static const struct dialer dialers[] = {
	{ "virtio", "org.guestctl.agent", find_port, open_port },
	{ "tcp", "52:54:00:67:63:01", find_interface, open_network },
	{ "serial:ttyAMA1", "ttyAMA1", find_tty, open_serial },
	{ "serial:ttyS1", "ttyS1", find_tty, open_serial },
};

const struct dialer *find_dialer(const char *kind)
{
	size_t i;

	for (i = 0; i < sizeof(dialers) / sizeof(dialers[0]); i++)
		if (strcmp(dialers[i].kind, kind ? kind : "virtio") == 0)
			return &dialers[i];
	return NULL;
}
