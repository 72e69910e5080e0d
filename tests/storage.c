/* A file system with faults: a library for LD_PRELOAD that lets calls on one folder fail, or answer from the past.

   It wraps the C library's functions, so it affects Python, pyarrow and the JVM alike. FAULTS_FOLDER is the folder, and
   FAULTS_RULES is a file that all processes map into their memory: a rule for each kind of call, which the test changes
   at any time. tests/storage.py has the same layout. A rule has one of these modes:

     ONCE   the next call of each process fails
     FAIL   every call between two times fails
     STALE  between two times, a listing and the content of a file stay as they were when this process first asked
     HALF   between two times, a file ends after half of its bytes
*/
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { CREATE, OPEN, READ, WRITE, SYNC, RENAME, UNLINK, MKDIR, LIST, STAT, KINDS };
enum { NONE, ONCE, FAIL, STALE, HALF };
enum { DRIVER, JVM, WORKER, PROCESSES };

typedef struct {
  int32_t mode, error, generation, hits[PROCESSES];
  double from, until;
} Rule;

#define FDS 65536
#define OLD 4096
static Rule *rules;
static char folder[4096];
static size_t folder_size;
static int process, seen[KINDS];
static unsigned char ours[FDS];
static off_t half[FDS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct { char *path; int fd; double until; } contents[OLD];
static struct { char *path; char **names; int count; double until; } listings[OLD];
static struct { DIR *dir; int listing, at; } open_lists[256];

#define REAL(name) \
  ({ static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name); real; })

__attribute__((constructor)) static void begin(void) {
  const char *root = getenv("FAULTS_FOLDER"), *file = getenv("FAULTS_RULES");
  if (!root || !file) return;
  int fd = REAL(open)(file, O_RDWR);
  if (fd < 0) return;
  void *map = mmap(NULL, KINDS * sizeof(Rule), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  REAL(close)(fd);
  if (map == MAP_FAILED) return;
  char line[4096] = "";
  fd = REAL(open)("/proc/self/cmdline", O_RDONLY);
  ssize_t size = fd < 0 ? 0 : REAL(read)(fd, line, sizeof line - 1);
  if (fd >= 0) REAL(close)(fd);
  for (ssize_t at = 0; at < size; at++) if (!line[at]) line[at] = ' ';
  process = strstr(line, "java ") ? JVM : strstr(line, "spark.daemon") ? WORKER : DRIVER;
  snprintf(folder, sizeof folder, "%s/", root);
  folder_size = strlen(folder);
  rules = map;
}

static double now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return at.tv_sec + at.tv_nsec / 1e9;
}

static int inside(const char *path) { return rules && path && !strncmp(path, folder, folder_size); }

/* The absolute path of a call that names a folder's descriptor. */
static const char *located(int at, const char *path, char *made) {
  if (!rules || !path || path[0] == '/' || at == AT_FDCWD) return path;
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", at);
  ssize_t size = readlink(link, made, 4095);
  if (size < 0) return path;
  snprintf(made + size, 4096 - size, "/%s", path);
  return made;
}

static int active(int kind, int mode) {
  Rule *rule = &rules[kind];
  if (rule->mode != mode || now() < rule->from || now() >= rule->until) return 0;
  __atomic_add_fetch(&rule->hits[process], 1, __ATOMIC_RELAXED);
  return 1;
}

static int fails(int kind) {
  Rule *rule = &rules[kind];
  int failing = 0;
  if (rule->mode == ONCE && __atomic_exchange_n(&seen[kind], rule->generation, __ATOMIC_RELAXED) != rule->generation) {
    __atomic_add_fetch(&rule->hits[process], 1, __ATOMIC_RELAXED);
    failing = 1;
  }
  if (failing || active(kind, FAIL)) { errno = rule->error; return 1; }
  return 0;
}

/* A descriptor of the content that this process saw first. */
static int old_content(const char *path, int fd) {
  int found = -1;
  pthread_mutex_lock(&lock);
  for (int at = 0; at < OLD && contents[at].path; at++)
    if (!strcmp(contents[at].path, path)) {
      if (now() < contents[at].until) found = contents[at].fd;
      else contents[at].path[0] = '\0', REAL(close)(contents[at].fd);
      break;
    }
  for (int at = 0; found < 0 && at < OLD; at++)
    if (!contents[at].path || !contents[at].path[0]) {
      char piece[65536];
      int copy = memfd_create("old", MFD_CLOEXEC);
      ssize_t size;
      off_t read_at = 0;
      while ((size = REAL(pread)(fd, piece, sizeof piece, read_at)) > 0) read_at += REAL(write)(copy, piece, size);
      free(contents[at].path);
      contents[at].path = strdup(path), contents[at].fd = copy, contents[at].until = rules[READ].until;
      found = copy;
      break;
    }
  pthread_mutex_unlock(&lock);
  if (found < 0) return fd;
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", found);
  int again = REAL(open)(link, O_RDONLY | O_CLOEXEC);
  if (again < 0) return fd;
  REAL(dup3)(again, fd, O_CLOEXEC);
  REAL(close)(again);
  return fd;
}

static int opened(const char *path, int flags, int fd) {
  if (fd < 0 || fd >= FDS || !inside(path)) return fd;
  ours[fd] = 1, half[fd] = 0;
  if ((flags & O_ACCMODE) == O_RDONLY && !(flags & O_DIRECTORY)) {
    struct stat is;
    if (!fstat(fd, &is) && S_ISREG(is.st_mode)) {
      if (active(READ, STALE)) old_content(path, fd);
      else if (active(READ, HALF)) half[fd] = 1 + is.st_size / 2;
    }
  }
  return fd;
}

#define OPENED(name)                                                                       \
  int name(const char *path, int flags, ...) {                                             \
    va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
    if (inside(path) && fails(flags & O_CREAT ? CREATE : OPEN)) return -1;                 \
    return opened(path, flags, REAL(name)(path, flags, mode));                             \
  }
#define OPENED_AT(name)                                                                    \
  int name(int at, const char *path, int flags, ...) {                                     \
    va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
    char made[4096]; const char *whole = located(at, path, made);                          \
    if (inside(whole) && fails(flags & O_CREAT ? CREATE : OPEN)) return -1;                \
    return opened(whole, flags, REAL(name)(at, path, flags, mode));                        \
  }
OPENED(open) OPENED(open64) OPENED_AT(openat) OPENED_AT(openat64)

int close(int fd) {
  if (fd >= 0 && fd < FDS) ours[fd] = 0, half[fd] = 0;
  return REAL(close)(fd);
}

static int mine(int fd) { return rules && fd >= 0 && fd < FDS && ours[fd]; }

ssize_t read(int fd, void *to, size_t size) {
  if (mine(fd)) {
    if (fails(READ)) return -1;
    if (half[fd]) {
      off_t left = half[fd] - 1 - lseek(fd, 0, SEEK_CUR);
      if (left <= 0) return 0;
      if ((off_t)size > left) size = left;
    }
  }
  return REAL(read)(fd, to, size);
}

static ssize_t read_at(int fd, void *to, size_t size, off_t at) {
  if (mine(fd)) {
    if (fails(READ)) return -1;
    if (half[fd]) {
      if (at >= half[fd] - 1) return 0;
      if ((off_t)size > half[fd] - 1 - at) size = half[fd] - 1 - at;
    }
  }
  return REAL(pread64)(fd, to, size, at);
}
ssize_t pread(int fd, void *to, size_t size, off_t at) { return read_at(fd, to, size, at); }
ssize_t pread64(int fd, void *to, size_t size, off64_t at) { return read_at(fd, to, size, at); }

ssize_t write(int fd, const void *from, size_t size) {
  if (mine(fd) && fails(WRITE)) return -1;
  return REAL(write)(fd, from, size);
}
int fsync(int fd) { return mine(fd) && fails(SYNC) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return mine(fd) && fails(SYNC) ? -1 : REAL(fdatasync)(fd); }

int rename(const char *from, const char *to) { return inside(to) && fails(RENAME) ? -1 : REAL(rename)(from, to); }
int renameat(int a, const char *from, int b, const char *to) {
  char made[4096];
  return inside(located(b, to, made)) && fails(RENAME) ? -1 : REAL(renameat)(a, from, b, to);
}
int unlink(const char *path) { return inside(path) && fails(UNLINK) ? -1 : REAL(unlink)(path); }
int remove(const char *path) { return inside(path) && fails(UNLINK) ? -1 : REAL(remove)(path); }
int rmdir(const char *path) { return inside(path) && fails(UNLINK) ? -1 : REAL(rmdir)(path); }
int unlinkat(int at, const char *path, int flags) {
  char made[4096];
  return inside(located(at, path, made)) && fails(UNLINK) ? -1 : REAL(unlinkat)(at, path, flags);
}
int mkdir(const char *path, mode_t mode) { return inside(path) && fails(MKDIR) ? -1 : REAL(mkdir)(path, mode); }
int mkdirat(int at, const char *path, mode_t mode) {
  char made[4096];
  return inside(located(at, path, made)) && fails(MKDIR) ? -1 : REAL(mkdirat)(at, path, mode);
}

#define STATED(name, type) \
  int name(const char *path, struct type *to) { return inside(path) && fails(STAT) ? -1 : REAL(name)(path, to); }
#define STATED_AT(name, type)                                                                   \
  int name(int at, const char *path, struct type *to, int flags) {                              \
    char made[4096];                                                                            \
    return inside(located(at, path, made)) && fails(STAT) ? -1 : REAL(name)(at, path, to, flags); \
  }
STATED(stat, stat) STATED(stat64, stat64) STATED(lstat, stat) STATED(lstat64, stat64)
STATED_AT(fstatat, stat) STATED_AT(fstatat64, stat64)
int access(const char *path, int mode) { return inside(path) && fails(STAT) ? -1 : REAL(access)(path, mode); }

/* The listing that this process saw first, as an index; it is read now if there is none. */
static int old_listing(const char *path, DIR *dir) {
  int found = -1;
  for (int at = 0; at < OLD; at++) {
    if (listings[at].path && !strcmp(listings[at].path, path) && now() < listings[at].until) return at;
    if (!listings[at].path) { found = at; break; }
  }
  if (found < 0) return -1;
  int count = 0;
  char **names = NULL;
  for (struct dirent64 *each; (each = REAL(readdir64)(dir));) {
    names = realloc(names, (count + 1) * sizeof *names);
    names[count++] = strdup(each->d_name);
  }
  listings[found].names = names, listings[found].count = count, listings[found].until = rules[LIST].until;
  listings[found].path = strdup(path);
  return found;
}

static DIR *listed(const char *path, DIR *dir) {
  if (!dir || !inside(path) || !active(LIST, STALE)) return dir;
  pthread_mutex_lock(&lock);
  for (int at = 0; at < 256; at++)
    if (!open_lists[at].dir) {
      int listing = old_listing(path, dir);
      if (listing >= 0) open_lists[at].dir = dir, open_lists[at].listing = listing, open_lists[at].at = 0;
      break;
    }
  pthread_mutex_unlock(&lock);
  return dir;
}

DIR *opendir(const char *path) {
  if (inside(path) && fails(LIST)) return NULL;
  return listed(path, REAL(opendir)(path));
}
DIR *fdopendir(int fd) {
  char link[64], path[4096] = "";
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  if (rules && readlink(link, path, sizeof path - 1) > 0 && inside(path) && fails(LIST)) return NULL;
  return REAL(fdopendir)(fd);
}
struct dirent64 *readdir64(DIR *dir) {
  static __thread struct dirent64 made;
  if (rules)
    for (int at = 0; at < 256; at++)
      if (open_lists[at].dir == dir) {
        int listing = open_lists[at].listing;
        if (open_lists[at].at >= listings[listing].count) return NULL;
        memset(&made, 0, sizeof made);
        made.d_ino = 1, made.d_type = DT_UNKNOWN;
        snprintf(made.d_name, sizeof made.d_name, "%s", listings[listing].names[open_lists[at].at++]);
        return &made;
      }
  return REAL(readdir64)(dir);
}
struct dirent *readdir(DIR *dir) { return (struct dirent *)readdir64(dir); }
int closedir(DIR *dir) {
  if (rules)
    for (int at = 0; at < 256; at++)
      if (open_lists[at].dir == dir) open_lists[at].dir = NULL;
  return REAL(closedir)(dir);
}
