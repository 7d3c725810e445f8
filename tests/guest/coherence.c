/* Changes sources in every way in which files change, has them compiled the moment after, and runs what came of it:
 *   coherence JOBS ROUNDS
 * Each job has a folder of its own below the working directory. Every number in a header is a new one and comes after
 * up to three pages of comment, so whatever is stale or cut short is noticed. Says how often it has called the
 * compiler, or which round went wrong, with exit status 1. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { VALUE, LINKED, INSIDE, LATE, HEADERS };
enum { PAGE = 4096, OBJECT_EVERY = 8, FAIL_EVERY = 8 };

static const char source[] =
    "static const unsigned found[] = {\n"
    "#include \"value.h\"\n"
    "#include \"linked.h\"\n"
    "#include \"dir/inside.h\"\n"
    "#include \"late.h\"\n"
    "};\n"
    "void _start(void) {\n"
    "  register int number __asm__(\"r7\") = 4; register int a __asm__(\"r0\") = 1;\n"
    "  register const void *b __asm__(\"r1\") = found; register int c __asm__(\"r2\") = sizeof(found);\n"
    "  __asm__ volatile (\"svc 0\" : \"+r\"(a) : \"r\"(number), \"r\"(b), \"r\"(c) : \"memory\");\n"
    "  number = 1; a = 0;\n"
    "  __asm__ volatile (\"svc 0\" : : \"r\"(a), \"r\"(number)); }\n";

extern char **environ;
static unsigned job, turn, last, calls;
static unsigned expected[HEADERS];

static void wrong(const char *what)
{
    fprintf(stderr, "job %u, round %u: %s\n", job, turn, what);
    exit(1);
}

static void must(bool done, const char *what)
{
    char text[300];

    if (done)
        return;
    snprintf(text, sizeof text, "%s: %s", what, strerror(errno));
    wrong(text);
}

/* A number that was never there before, behind none to three pages. */
static size_t make_text(char *to, unsigned *number)
{
    size_t pad = (size_t)(++last % 4) * PAGE;

    memset(to, '\n', pad);
    if (pad) {
        memcpy(to, "/*", 2);
        memset(to + 2, 'a' + last % 26, pad - 4);
        memcpy(to + pad - 2, "*/", 2);
    }
    *number = last + job * 1000000;
    return pad + (size_t)sprintf(to + pad, "%u,\n", *number);
}

static void write_by(const char *path, int flags, const char *text, size_t size)
{
    int fd = open(path, O_WRONLY | flags, 0644);

    must(fd >= 0 && write(fd, text, size) == (ssize_t)size && close(fd) == 0, path);
}

static void in_place(const char *path, const char *text, size_t size)
{
    write_by(path, O_CREAT | O_TRUNC, text, size);
}

static void anew(const char *path, const char *text, size_t size)
{
    must(unlink(path) == 0 || errno == ENOENT, path);
    write_by(path, O_CREAT | O_EXCL, text, size);
}

static void renamed(const char *path, const char *text, size_t size)
{
    write_by("new", O_CREAT | O_TRUNC, text, size);
    must(rename("new", path) == 0, path);
}

/* Nothing is written down but by who asks for it. */
static void mapped(const char *path, const char *text, size_t size)
{
    int fd = open(path, O_RDWR | O_CREAT, 0644);
    void *memory;

    must(fd >= 0 && ftruncate(fd, (off_t)size) == 0, path);
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    must(memory != MAP_FAILED, path);
    memcpy(memory, text, size);
    must(munmap(memory, size) == 0 && close(fd) == 0, path);
}

static void by_another_name(const char *path, const char *text, size_t size)
{
    if (access(path, F_OK) != 0)
        in_place(path, text, size);
    must(link(path, "other") == 0, "other");
    in_place("other", text, size);
    must(unlink("other") == 0, "other");
}

static void (*const ways[])(const char *, const char *, size_t) = {
    in_place, anew, renamed, mapped, by_another_name,
};
enum { WAYS = sizeof ways / sizeof ways[0] };

static void change(const char *path, unsigned way, unsigned *number)
{
    char text[4 * PAGE];
    size_t size = make_text(text, number);

    ways[way % WAYS](path, text, size);
}

static void point(const char *target, const char *path, bool by_rename)
{
    if (!by_rename)
        must(unlink(path) == 0, path);
    must(symlink(target, by_rename ? "link" : path) == 0, path);
    must(!by_rename || rename("link", path) == 0, path);
}

/* The header that is a link: to a file that changes, to another one, to one that had this name, or no link for once. */
static void change_linked(unsigned n)
{
    char name[20];

    snprintf(name, sizeof name, "f%u.h", n % 3);
    switch (n % 4) {
    case 0:
        renamed("linked.h", "0,\n", 3);
        change("linked.h", n / 4, &expected[LINKED]);
        return;
    case 3:
        memset(name, 0, sizeof name);
        must(readlink("linked.h", name, sizeof name - 1) > 0, "linked.h");
        change(name, n / 4, &expected[LINKED]);
        return;
    default:
        change(name, n / 4, &expected[LINKED]);
        point(name, "linked.h", n % 4 == 1);
    }
}

/* The header in a folder that is a link: the file, the link and the folder it leads to change. */
static void change_inside(unsigned n)
{
    static unsigned side, inside[2];
    unsigned was;
    const char *const names[] = { "A", "B" };

    switch (n % 5) {
    case 0:
        change("A/inside.h", n / 5, &inside[0]);
        change("B/inside.h", n / 5 + 1, &inside[1]);
        break;
    case 1:
    case 2:
        side = !side;
        point(names[side], "dir", n % 5 == 1);
        break;
    case 3:
        must(rename("A", "C") == 0 && rename("B", "A") == 0 && rename("C", "B") == 0, "A");
        was = inside[0], inside[0] = inside[1], inside[1] = was;
        break;
    case 4:
        change("dir/inside.h", n / 5, &inside[side]);
        break;
    }
    expected[INSIDE] = inside[side];
}

static pid_t start(char *const *argv, int out, int error)
{
    posix_spawn_file_actions_t files;
    pid_t pid;

    must(posix_spawn_file_actions_init(&files) == 0, "memory");
    if (out >= 0)
        must(posix_spawn_file_actions_adddup2(&files, out, 1) == 0, "memory");
    if (error >= 0)
        must(posix_spawn_file_actions_adddup2(&files, error, 2) == 0, "memory");
    errno = posix_spawnp(&pid, argv[0], &files, NULL, argv, environ);
    must(errno == 0, argv[0]);
    posix_spawn_file_actions_destroy(&files);
    return pid;
}

static int status_of(pid_t pid)
{
    int status;

    must(waitpid(pid, &status, 0) == pid, "wait");
    return status;
}

static void compile(const char *const *argv, int error, int status)
{
    calls++;
    if (status_of(start((char *const *)argv, -1, error)) != status << 8)
        wrong(status ? "what was not there was found" : "it was not compiled");
}

/* The program has the numbers of all headers in it. */
static void run(void)
{
    char *const argv[] = { "./p", NULL };
    unsigned found[HEADERS + 1];
    int ends[2], header;
    ssize_t got;
    pid_t pid;

    must(pipe2(ends, O_CLOEXEC) == 0, "pipe");
    pid = start(argv, ends[1], -1);
    close(ends[1]);
    got = read(ends[0], found, sizeof found);
    close(ends[0]);
    if (status_of(pid) != 0 || got != sizeof expected)
        wrong("the program is not whole");
    for (header = 0; header < HEADERS; header++)
        if (found[header] != expected[header]) {
            fprintf(stderr, "header %d: %u, not %u\n", header, found[header], expected[header]);
            wrong("a header that is no longer there");
        }
}

/* A header that is not there, or a folder, when the compiler is asked, and a file when it is asked again. */
static void miss(const char *const *argv, int quiet)
{
    bool folder = turn / FAIL_EVERY % 2;

    must(unlink("late.h") == 0 && (!folder || mkdir("late.h", 0755) == 0), "late.h");
    compile(argv, quiet, 1);
    must(!folder || rmdir("late.h") == 0, "late.h");
    change("late.h", turn, &expected[LATE]);
}

static void work(unsigned rounds)
{
    static const char *const whole[] = { "gcc", "-nostdlib", "-static", "p.c", "-o", "p", NULL };
    static const char *const object[] = { "gcc", "-c", "p.c", "-o", "p.o", NULL };
    static const char *const linked[] = { "gcc", "-nostdlib", "-static", "p.o", "-o", "p", NULL };
    int quiet = open("/dev/null", O_WRONLY | O_CLOEXEC);

    write_by("p.c", O_CREAT, source, sizeof source - 1);
    must(mkdir("A", 0755) == 0 && mkdir("B", 0755) == 0 && symlink("A", "dir") == 0, "dir");
    must(symlink("f0.h", "linked.h") == 0, "linked.h");
    change("late.h", 0, &expected[LATE]);
    change_linked(0);
    for (turn = 0; turn < rounds; turn++) {
        if (turn % 2)
            change_linked(turn / 2);
        else
            change_inside(turn / 2);
        if (turn % FAIL_EVERY == 7)
            miss(whole, quiet);
        if (turn % 3 == 0)
            must(unlink("p") == 0 || errno == ENOENT, "p");
        /* The moment before. */
        change("value.h", turn, &expected[VALUE]);
        if (turn % OBJECT_EVERY == 3) {
            compile(object, -1, 0);
            compile(linked, -1, 0);
        } else {
            compile(whole, -1, 0);
        }
        run();
    }
}

int main(int argc, char **argv)
{
    unsigned jobs = argc == 3 ? (unsigned)atoi(argv[1]) : 0, *counts, n, failed = 0;
    int status;

    counts = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (jobs == 0 || jobs > 99 || counts == MAP_FAILED)
        return 2;
    for (job = 0; job < jobs; job++) {
        char folder[20];
        pid_t pid = fork();

        must(pid >= 0, "fork");
        if (pid)
            continue;
        snprintf(folder, sizeof folder, "job %u", job);
        must(mkdir(folder, 0755) == 0 && chdir(folder) == 0, folder);
        work((unsigned)atoi(argv[2]));
        counts[job] = calls;
        return 0;
    }
    while (wait(&status) > 0)
        failed += status != 0;
    for (n = 0; n < jobs; n++)
        calls += counts[n];
    printf("%u\n", calls);
    return failed ? 1 : 0;
}
