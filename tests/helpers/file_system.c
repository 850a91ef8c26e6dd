/* A file system with fewer abilities, by LD_PRELOAD: flock fails with FLOCK_ERRNO, fsync of a folder with FSYNC_ERRNO. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

int flock(int descriptor, int operation) {
    const char *error = getenv("FLOCK_ERRNO");
    if (!error)
        return ((int (*)(int, int))dlsym(RTLD_NEXT, "flock"))(descriptor, operation);
    errno = atoi(error);
    return -1;
}

int fsync(int descriptor) {
    const char *error = getenv("FSYNC_ERRNO");
    struct stat found;
    if (!error || fstat(descriptor, &found) || !S_ISDIR(found.st_mode))
        return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(descriptor);
    errno = atoi(error);
    return -1;
}
