"""
EDGE: which system calls sessions and service processes may make, as a program for the kernel.

The names are here; libseccomp, which every Debian has for apt, knows their numbers on each architecture and
makes a seccomp filter of them: an array of BPF instructions that `privsep.confinement` gives to the
kernel. Executed by whoever reads the config, so that nothing of this is ever in the broker.

Three answers: a call that a process needs is let through; one that only somebody would make who has taken the
process over ends it (SIGSYS, which the log shows as the death it is); and any other is answered "no
such call", which a C library of the future takes for an old kernel.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from gpop.privsep.confinement import Confinement, no_new_privileges

# seccomp.h of libseccomp.
LIBRARY = "libseccomp.so.2"
ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
ERRNO = 0x00050000
ATTRIBUTE_BAD_ARCHITECTURE = 2
ATTRIBUTE_OPTIMIZE = 8
AS_BINARY_TREE = 2
COMPARE_EQUAL = 4
COMPARE_MASKED = 7

PROT_EXEC = 4
TCP_NOTSENT_LOWAT = 25  # linux/tcp.h
WHOLE_INT = 0xFFFFFFFF  # of an argument that the kernel takes for an int, 32 of 64 bits
# Of ioctl: close on exec, waiting or not, whether it is a terminal, as Python uses them; and how much of
# what was written the client has not acknowledged (SIOCOUTQ).
IOCTLS = (0x5450, 0x5451, 0x5421, 0x5401, 0x5411)

# What the interpreter and the C library do by themselves.
OF_EVERY_PROCESS = (
    "brk", "clock_getres", "clock_gettime", "clock_nanosleep", "close", "close_range", "dup", "dup2", "dup3",
    "exit", "exit_group", "fcntl", "fcntl64", "fstat", "fstat64", "futex", "futex_time64", "getegid",
    "getegid32", "geteuid", "geteuid32", "getgid", "getgid32", "getpid", "getppid", "getrandom", "getrusage",
    "gettid", "gettimeofday", "getuid", "getuid32", "lseek", "_llseek", "madvise", "membarrier", "mremap",
    "munmap", "nanosleep", "pread64", "read", "readv", "restart_syscall", "rseq", "rt_sigaction",
    "rt_sigpending", "rt_sigprocmask", "rt_sigreturn", "rt_sigtimedwait", "sched_yield", "set_robust_list",
    "sigaltstack", "sigreturn", "time", "write", "writev",
)  # fmt: skip
# A stream or a channel that is there already: nothing in these opens one.
OF_STREAMS = (
    "getpeername", "getsockname", "getsockopt", "_newselect", "poll", "ppoll", "ppoll_time64", "pselect6",
    "pselect6_time64", "recv", "recvfrom", "recvmsg", "select", "send", "sendmsg", "sendto", "shutdown",
)  # fmt: skip
# A Maildir, seen from inside.
OF_MAILDIRS = (
    "access", "faccessat", "faccessat2", "fadvise64", "fadvise64_64", "fallocate", "fchdir", "fchmod",
    "fchmodat", "fdatasync", "flock", "fstatat64", "fstatfs", "fstatfs64", "fsync", "ftruncate",
    "ftruncate64", "getcwd",
    "getdents", "getdents64", "link", "linkat", "lstat", "lstat64", "mkdir", "mkdirat", "newfstatat", "open",
    "openat", "preadv", "pwrite64", "pwritev", "readlink", "readlinkat", "rename", "renameat",
    "renameat2", "rmdir", "sendfile", "sendfile64", "stat", "stat64", "statfs", "statfs64", "statx", "umask",
    "unlink", "unlinkat", "utimensat", "utimensat_time64",
)  # fmt: skip
# gevent's loop; clients are accepted, and with TLS a session gets one end of a pair.
OF_FRONTS = (
    "accept", "accept4", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait",
    "eventfd2", "pipe", "pipe2", "sched_getaffinity", "socketpair", "sysinfo", "timerfd_create",
    "timerfd_settime", "uname",
)  # fmt: skip
# What fronts set of a socket: (level, option). Not SO_LINGER: whoever closes the last copy of such a stream,
# wherever it was sent, waits as long as its maker says. A session sets nothing.
SOCKET_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_SNDBUF),
    (socket.SOL_SOCKET, socket.SO_PASSCRED),
    (socket.SOL_SOCKET, socket.SO_RCVTIMEO),
    (socket.SOL_SOCKET, socket.SO_SNDTIMEO),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY),
    (socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT),
)
# The log process: it waits for pipes, looks into them, is handed descriptors, and writes.
OF_LOG = ("pipe2", "poll", "ppoll", "ppoll_time64", "recvmsg", "sendmsg", "sendto", "tee")
# Programs, other processes, the network, other identities, and where kernels were found to be weak.
OF_ATTACKERS = (
    "acct", "add_key", "bind", "bpf", "chroot", "clock_settime", "connect", "delete_module", "execve",
    "execveat", "finit_module", "fsopen", "init_module", "io_uring_enter", "io_uring_register",
    "io_uring_setup", "kcmp", "kexec_file_load", "kexec_load", "keyctl", "kill", "listen", "mknod", "mknodat",
    "modify_ldt", "mount", "move_mount", "name_to_handle_at", "open_by_handle_at", "open_tree",
    "perf_event_open", "personality", "pidfd_getfd", "pidfd_open", "pidfd_send_signal", "pivot_root",
    "process_madvise", "process_vm_readv", "process_vm_writev", "ptrace", "quotactl", "reboot", "request_key",
    "rt_sigqueueinfo", "rt_tgsigqueueinfo", "setgid", "setgroups", "sethostname", "setns", "setregid",
    "setresgid", "setresuid", "setreuid", "settimeofday", "setuid", "socket", "swapon", "syslog", "tkill",
    "umount2", "unshare", "userfaultfd", "vfork", "vmsplice",
)  # fmt: skip


class FiltersUnavailable(Exception):
    """There can be no filters here; the text says why."""


class _Comparison(ctypes.Structure):
    """struct scmp_arg_cmp: a condition on one argument of a call."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def filters() -> tuple[bytes, bytes, bytes]:
    """
    Return the filters of sessions, of fronts and metrics, and of the log process, after a trial of each.

    Raises:
        FiltersUnavailable: no libseccomp, or a kernel without seccomp.
    """
    library = _library()
    session = _filter(library, (*OF_EVERY_PROCESS, *OF_STREAMS, *OF_MAILDIRS))
    service = _filter(library, (*OF_EVERY_PROCESS, *OF_STREAMS, *OF_FRONTS), SOCKET_OPTIONS)
    log = _filter(library, (*OF_EVERY_PROCESS, *OF_LOG))
    for each in (session, service, log):
        _try_out(each)
    return session, service, log


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise FiltersUnavailable(f"{LIBRARY} is not installed; Debian's package is libseccomp2") from None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_Comparison),
    ]
    return library


def _filter(
    library: ctypes.CDLL, allowed: Iterable[str], socket_options: Iterable[tuple[int, int]] = ()
) -> bytes:
    """Return the filter that lets `allowed` through, and of setsockopt these options."""
    with _context(library) as context:
        library.seccomp_attr_set(context, ATTRIBUTE_BAD_ARCHITECTURE, KILL_PROCESS)
        # Else the kernel takes some hundred steps for each call, and for each call there is at the start.
        library.seccomp_attr_set(context, ATTRIBUTE_OPTIMIZE, AS_BINARY_TREE)
        for name in allowed:
            _rule(library, context, ALLOW, name)
        for name in OF_ATTACKERS:
            _rule(library, context, KILL_PROCESS, name)
        for request in IOCTLS:
            _rule(library, context, ALLOW, "ioctl", _Comparison(1, COMPARE_EQUAL, request, 0))
        for level, option in socket_options:
            of_level = _Comparison(1, COMPARE_MASKED, WHOLE_INT, level)
            _rule(
                library,
                context,
                ALLOW,
                "setsockopt",
                of_level,
                _Comparison(2, COMPARE_MASKED, WHOLE_INT, option),
            )
        # Nothing is imported any more, so whatever wants to become code is an attacker's.
        for name in ("mmap", "mmap2", "mprotect"):
            _rule(library, context, ALLOW, name, _Comparison(2, COMPARE_MASKED, PROT_EXEC, 0))
        file = os.memfd_create("gpop-filter")
        try:
            status = library.seccomp_export_bpf(context, file)
            if status:
                raise FiltersUnavailable(f"{LIBRARY} makes no filter: {os.strerror(-status)}")
            return os.pread(file, 1 << 20, 0)
        finally:
            os.close(file)


@contextmanager
def _context(library: ctypes.CDLL) -> Iterator[int]:
    context = library.seccomp_init(ERRNO | errno.ENOSYS)
    if not context:
        raise FiltersUnavailable(f"{LIBRARY} does not know this machine")
    try:
        yield context
    finally:
        library.seccomp_release(context)


def _rule(library: ctypes.CDLL, context: int, action: int, name: str, *conditions: _Comparison) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number < 0:
        return  # this architecture has no such call, or an older libseccomp does not know it
    array = (_Comparison * len(conditions))(*conditions) if conditions else None
    status = library.seccomp_rule_add_array(context, action, number, len(conditions), array)
    if status:
        raise FiltersUnavailable(f"{LIBRARY} has no rule for {name}: {os.strerror(-status)}")


def _try_out(octets: bytes) -> None:
    """Have a process of its own take the filter on: some containers have a kernel that takes none."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            no_new_privileges()
            Confinement(octets).enter()
            status = 0
        except OSError as error:
            status = error.errno or 1
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    if status:
        code = os.waitstatus_to_exitcode(status)
        reason = os.strerror(code) if code > 0 else f"signal {-code}"
        raise FiltersUnavailable(f"the kernel takes no seccomp filter: {reason}")
