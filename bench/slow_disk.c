/* Lets each sync take SLOW_DISK_MS longer, as on an SD card or eMMC: preloaded into a program.
 * A sync that waits keeps no other thread from going on, and syncs of several processes wait
 * side by side, which a card would not allow: the figures are on the kind side for whoever
 * syncs a lot. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

static void wait_for_the_disk(void) {
    const char *text = getenv("SLOW_DISK_MS");
    double milliseconds = text == NULL ? 0.0 : atof(text);
    struct timespec left = {(time_t)(milliseconds / 1000),
                            (long)(milliseconds * 1e6) % 1000000000L};
    while (nanosleep(&left, &left) != 0)
        ;
}

#define SLOWED(name)                                                                               \
    int name(int descriptor) {                                                                     \
        static int (*real)(int);                                                                   \
        if (real == NULL)                                                                          \
            real = (int (*)(int))dlsym(RTLD_NEXT, #name);                                          \
        int outcome = real(descriptor);                                                            \
        wait_for_the_disk();                                                                       \
        return outcome;                                                                            \
    }

SLOWED(fsync)
SLOWED(fdatasync)
