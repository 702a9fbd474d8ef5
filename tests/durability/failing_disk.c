/* Lets the n-th operation on the files of one folder fail: preloaded into a program, which
 * says by fail_from() which one, with what error, and whether all that follow fail as well.
 * The shared-memory index of SQLite is mapped, not written, and no part of it. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long left = -1; /* operations until the failure; below 0: none will fail */
static atomic_long failures;
static atomic_int error, for_good;

void fail_from(long nth, int with, int and_all_that_follow) {
    atomic_store(&failures, 0);
    atomic_store(&error, with);
    atomic_store(&for_good, and_all_that_follow);
    atomic_store(&left, nth);
}

long failures_so_far(void) { return atomic_load(&failures); }

static int is_ours(int descriptor) {
    const char *folder = getenv("FAILING_FOLDER");
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (folder == NULL || length < 0)
        return 0;
    path[length] = 0;
    return strncmp(path, folder, strlen(folder)) == 0 && strstr(path, "-shm") == NULL;
}

static int fails(int descriptor) {
    if (atomic_load(&left) < 0 || !is_ours(descriptor))
        return 0;
    long now = atomic_fetch_sub(&left, 1);
    if (now > 1)
        return 0;
    atomic_store(&left, atomic_load(&for_good) ? 1 : -1);
    atomic_fetch_add(&failures, 1);
    errno = atomic_load(&error);
    return 1;
}

#define WRAPPED(type, name, failure, parameters, arguments)                                        \
    type name parameters {                                                                         \
        static type(*real) parameters;                                                             \
        if (real == NULL)                                                                          \
            real = (type(*) parameters)dlsym(RTLD_NEXT, #name);                                    \
        return fails(descriptor) ? (failure) : real arguments;                                     \
    }

WRAPPED(ssize_t, write, -1, (int descriptor, const void *from, size_t count), (descriptor, from, count))
WRAPPED(ssize_t, pwrite, -1, (int descriptor, const void *from, size_t count, off_t at),
        (descriptor, from, count, at))
WRAPPED(ssize_t, pwrite64, -1, (int descriptor, const void *from, size_t count, off64_t at),
        (descriptor, from, count, at))
WRAPPED(ssize_t, writev, -1, (int descriptor, const struct iovec *from, int count),
        (descriptor, from, count))
WRAPPED(int, ftruncate, -1, (int descriptor, off_t length), (descriptor, length))
WRAPPED(int, ftruncate64, -1, (int descriptor, off64_t length), (descriptor, length))
/* These return the error instead of setting errno. */
WRAPPED(int, posix_fallocate, errno, (int descriptor, off_t from, off_t length),
        (descriptor, from, length))
WRAPPED(int, posix_fallocate64, errno, (int descriptor, off64_t from, off64_t length),
        (descriptor, from, length))
WRAPPED(int, fsync, -1, (int descriptor), (descriptor))
WRAPPED(int, fdatasync, -1, (int descriptor), (descriptor))
