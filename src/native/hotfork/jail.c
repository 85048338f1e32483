// The monitor goes to jail, between the moment when it has opened all that it will ever open and the moment
// when the first byte from outside (device state, guest code) reaches it. Its children are born inside.
//
// In the order that each step allows: an empty root while there are capabilities, then another user, which
// takes them away, then the filter of system calls (seccomp.c), which forbids the steps before it. libc makes
// the change of user in every thread.
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hotfork.h"
#include "sys.h"

enum { LAST_CAPABILITY = 63 };

static bool fine(long result, const char* step, struct refusal* why) {
  if (result == 0) return true;
  *why = (struct refusal){HF_SYSCALL, errno, step};
  return false;
}

void jail_init(void) {
  // No other thread exists yet, so all will have it. What is held now is given up in jail_enter; this is what
  // an exec could give back. An ordinary user has none to lose.
  for (int one = 0; one <= LAST_CAPABILITY; one++) prctl(PR_CAPBSET_DROP, one, 0, 0, 0);
  prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
}

/** The shim reads it. Where the kernel can (5.8), it names no process but the reader's own. */
static int mount_proc(const char* target, bool own_pids) {
  const unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY;
  if (mount("proc", target, "proc", flags, "subset=pid,hidepid=ptraceable") == 0) return 0;
  if (mount("proc", target, "proc", flags, NULL) == 0) return 0;
  // The shim would take the numbers of another namespace for its own threads'.
  if (own_pids) return -1;
  // In a container whose /proc is partly hidden, and in a user namespace, only the very one that is there can
  // be had.
  if (mount("/proc", target, NULL, MS_BIND, NULL) == 0) return 0;
  return mount("/proc", target, NULL, MS_BIND | MS_REC, NULL);
}

/** libslirp looks there for each name that a guest asks for. A host without one has no names. */
static int copy_resolver(void) {
  char text[8192];
  const int from = open("/etc/resolv.conf", O_RDONLY | O_CLOEXEC);
  if (from < 0) return 0;
  const ssize_t bytes = read(from, text, sizeof text);
  close(from);
  if (bytes < 0 || mkdir("/dev/root/etc", 0755) != 0) return -1;
  const int to = open("/dev/root/etc/resolv.conf", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (to < 0) return -1;
  const bool whole = write(to, text, (size_t)bytes) == bytes;
  return close(to) == 0 && whole ? 0 : -1;
}

/**
 * A root with nothing in it but /proc, and read-only. What is open stays open.
 *
 * It is a directory below the root of its mount. To the kernel that is a changed root, inside which nobody
 * may make a user namespace, and come by capabilities that way.
 */
static bool empty_root(bool own_pids, bool resolver, struct refusal* why) {
  // Any directory that is there would do: what the mount hides is not needed again.
  static const char place[] = "/dev";
  const unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
  const mode_t mask = umask(022);
  const bool made =
      fine(mount("forkd-jail", place, "tmpfs", flags, "size=64k,nr_inodes=16,mode=755"), "jail: tmpfs",
           why) &&
      fine(mkdir("/dev/root", 0755), "jail: mkdir", why) &&
      fine(mkdir("/dev/root/proc", 0755), "jail: mkdir", why) &&
      fine(mount_proc("/dev/root/proc", own_pids),
           own_pids ? "jail: mount /proc of the pid namespace" : "jail: mount /proc", why) &&
      (!resolver || fine(copy_resolver(), "jail: resolv.conf", why)) &&
      fine(chdir(place), "jail: chdir", why) &&
      // The old root comes to lie on the new one, in the same place, and is taken off again.
      fine(syscall(SYS_pivot_root, ".", "."), "jail: pivot_root", why) &&
      fine(umount2(".", MNT_DETACH), "jail: umount", why) &&
      fine(mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY | flags, NULL), "jail: remount", why) &&
      fine(chroot("/root"), "jail: chroot", why) && fine(chdir("/"), "jail: chdir", why);
  umask(mask);
  return made;
}

static const struct __user_cap_header_struct capability_version = {.version = _LINUX_CAPABILITY_VERSION_3};
static const struct __user_cap_data_struct no_capabilities[_LINUX_CAPABILITY_U32S_3];

void jail_drop_capabilities(void) {
  sys(SYS_capset, &capability_version, no_capabilities);
}

/** Where the user stays the same nothing takes them away, and each thread has its own: all are stopped for
 * it. */
static bool no_capability(struct refusal* why) {
  park_with(jail_drop_capabilities);
  const bool parked = park_all(why);
  if (parked) park_release();
  park_with(NULL);
  jail_drop_capabilities();
  return parked;
}

static bool other_user(unsigned uid, unsigned gid, struct refusal* why) {
  return fine(setgroups(0, NULL), "jail: setgroups", why) &&
         fine(setresgid(gid, gid, gid), "jail: setresgid", why) &&
         fine(setresuid(uid, uid, uid), "jail: setresuid", why);
}

/** Directories lead out of any root. */
static bool no_directories(struct refusal* why) {
  if (!fds_scan(why)) return false;
  for (uint32_t i = 0; i < descriptors.count; i++) {
    if (descriptors.descriptor[i].kind != HF_KIND_DIRECTORY) continue;
    *why = (struct refusal){HF_DESCRIPTOR, descriptors.descriptor[i].fd, "jail: an open directory leads out"};
    return false;
  }
  return true;
}

bool jail_enter(const struct hf_jail* request, struct refusal* why) {
  // What is behind a path that will be gone, and is needed then: children's /dev/null; and what only the
  // owner of the process may open. That one shows this very process, so no copy may have it (fork_child).
  control.null_fd = (int)sys(SYS_openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC);
  control.pagemap_fd = open_ro("/proc/self/pagemap", 0);
  const int stat_fd = open_ro("/proc/self/stat", 0);
  if (!fine(control.null_fd < 0 ? (errno = -control.null_fd, -1) : 0, "jail: open /dev/null", why))
    return false;
  const bool own_pids = (request->flags & HF_JAIL_PIDS) != 0;
  if ((request->flags & HF_JAIL_ROOT) != 0 &&
      !(no_directories(why) && empty_root(own_pids, (request->flags & HF_JAIL_SOCKETS) != 0, why)))
    return false;
  if ((request->flags & HF_JAIL_USER) != 0 && !other_user(request->uid, request->gid, why)) return false;
  if ((request->flags & HF_JAIL_USER) == 0 && !no_capability(why)) return false;
  // No process of this user, sibling or not, may look into this one from here on. Without either flag the
  // engine is no more than that user itself, and has to.
  const bool apart = (request->flags & (HF_JAIL_ROOT | HF_JAIL_USER)) != 0;
  if (apart && !fine(prctl(PR_SET_DUMPABLE, 0), "jail: undumpable", why)) return false;
  // A change of user takes the death signal away; it can be any thread's.
  *why = (struct refusal){HF_SYSCALL, ESRCH, "jail: the engine is gone"};
  if (!fork_die_with_engine(stat_fd)) return false;
  if (stat_fd >= 0) sys(SYS_close, stat_fd);
  // libc sets it in this thread; the filter brings it to all.
  if (!fine(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "jail: no_new_privs", why)) return false;
  // A file that has reached RLIMIT_FSIZE takes no more: that is a console to be cut short, no reason to die.
  signal(SIGXFSZ, SIG_IGN);
  return (request->flags & HF_JAIL_ANY_CALL) != 0 ||
         seccomp_install((request->flags & HF_JAIL_SOCKETS) != 0, why);
}
