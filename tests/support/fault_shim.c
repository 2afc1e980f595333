/* Loaded before the C library by LD_PRELOAD: a clock that jumps, and a disk whose fsync fails.

FAULT_SHIM names a file of two 64-bit integers, which a test writes while the process runs: seconds
by which the real time is off, and the errno of every fsync and fdatasync (0: none fails). */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t none[2];
static volatile int64_t *faults = none;

__attribute__((constructor)) static void open_faults(void) {
  const char *path = getenv("FAULT_SHIM");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *mapped = mmap(NULL, sizeof none, PROT_READ, MAP_SHARED, file, 0);
  if (mapped != MAP_FAILED) faults = mapped;
  close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
  int outcome = real(clock, now);
  if (outcome == 0 && clock == CLOCK_REALTIME) now->tv_sec += faults[0];
  return outcome;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  static int (*real)(struct timeval *, void *);
  if (!real) real = (int (*)(struct timeval *, void *))dlsym(RTLD_NEXT, "gettimeofday");
  int outcome = real(now, zone);
  if (outcome == 0) now->tv_sec += faults[0];
  return outcome;
}

time_t time(time_t *told) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (told) *told = now.tv_sec;
  return now.tv_sec;
}

static int fail_or(const char *name, int file) {
  if (faults[1]) {
    errno = (int)faults[1];
    return -1;
  }
  return ((int (*)(int))dlsym(RTLD_NEXT, name))(file);
}

int fsync(int file) { return fail_or("fsync", file); }

int fdatasync(int file) { return fail_or("fdatasync", file); }
