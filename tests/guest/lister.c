/* Lists a tree by bare system calls, one line an entry, so that the guest's own kernel says what is there:
 *   mode uid gid nlink inode major:minor size seconds.nanoseconds crc32 path target name=value,name=value
 * Names, targets and attributes are in hexadecimal, `-` where there is none. Exit status 1: it could not look. */
#define _FILE_OFFSET_BITS 64
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

static void fail(const char *what, const char *path)
{
    fprintf(stderr, "%s: %s: %s\n", what, path, strerror(errno));
    exit(1);
}

static void hex(const char *data, size_t size)
{
    if (size == 0)
        putchar('-');
    for (size_t i = 0; i < size; i++)
        printf("%02x", (unsigned char)data[i]);
}

static uint32_t crc_of(const char *path)
{
    static unsigned char data[65536];
    uint32_t crc = 0xffffffff;
    ssize_t got;
    int fd = open(path, O_RDONLY | O_NOFOLLOW);

    if (fd < 0)
        fail("open", path);
    while ((got = read(fd, data, sizeof data)) > 0)
        for (ssize_t i = 0; i < got; i++) {
            crc ^= data[i];
            for (int bit = 0; bit < 8; bit++)
                crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
        }
    if (got < 0)
        fail("read", path);
    close(fd);
    return ~crc;
}

static void attributes(const char *path)
{
    static char names[65536], value[65536];
    ssize_t size = llistxattr(path, names, sizeof names);
    int any = 0;

    if (size < 0 && errno != EOPNOTSUPP && errno != EPERM)
        fail("listxattr", path);
    for (char *name = names; name < names + size; name += strlen(name) + 1) {
        ssize_t length = lgetxattr(path, name, value, sizeof value);
        if (length < 0)
            fail("getxattr", path);
        if (any++)
            putchar(',');
        hex(name, strlen(name));
        putchar('=');
        hex(value, length);
    }
    if (!any)
        putchar('-');
}

static void list(const char *path)
{
    static char target[8192];
    struct statx s;
    ssize_t length = 0;

    if (statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &s))
        fail("statx", path);
    if (S_ISLNK(s.stx_mode) && (length = readlink(path, target, sizeof target)) < 0)
        fail("readlink", path);
    printf("%o %u %u %u %llu %u:%u %llu %lld.%09u %08x ", s.stx_mode, s.stx_uid, s.stx_gid, s.stx_nlink,
           (unsigned long long)s.stx_ino, s.stx_rdev_major, s.stx_rdev_minor, (unsigned long long)s.stx_size,
           (long long)s.stx_mtime.tv_sec, s.stx_mtime.tv_nsec, S_ISREG(s.stx_mode) ? crc_of(path) : 0);
    hex(path, strlen(path));
    putchar(' ');
    hex(target, length);
    putchar(' ');
    attributes(path);
    putchar('\n');
    if (!S_ISDIR(s.stx_mode))
        return;
    DIR *dir = opendir(path);
    struct dirent *entry;
    if (!dir)
        fail("opendir", path);
    for (errno = 0; (entry = readdir(dir)); errno = 0) {
        char below[8192];
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        snprintf(below, sizeof below, "%s/%s", path, entry->d_name);
        list(below);
    }
    if (errno)
        fail("readdir", path);
    closedir(dir);
}

int main(int argc, char **argv)
{
    if (argc != 2 || chdir(argv[1]))
        fail("chdir", argc == 2 ? argv[1] : "usage");
    list(".");
    return fflush(stdout) || ferror(stdout);
}
