"""
EDGE: takes from a process what it never needs: system calls, by a seccomp filter, and memory without end.

Uid and jail bound what a process that was taken over can reach by name; this bounds what it can ask the
kernel for: no program, no connection to anywhere, no signal, no other process's memory, and nothing
of what kernels turned out to be weak in. `config.seccomp` makes the filters.

Executed by the broker (which gets all ready before a fork), by sessions and service processes.
"""

from __future__ import annotations

import resource
import struct

from gpop.privsep import libc

# linux/prctl.h, linux/seccomp.h
PR_GET_SECCOMP = 21
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2

INSTRUCTION_OCTETS = 8  # struct sock_filter


def no_new_privileges() -> None:
    """
    Let this process, and all that descend from it, gain no privileges by a set-uid program.

    Raises:
        OSError: the kernel does not know how.
    """
    if libc.function("prctl")(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(libc.errno_of_call(), "prctl(PR_SET_NO_NEW_PRIVS)")


class Confinement:
    """What a process gives up, made ready before it is forked."""

    __slots__ = ("_address", "_call", "_kept", "_limits", "_limits_now")

    def __init__(self, system_calls: bytes, most_memory: int = 0) -> None:
        """
        `system_calls`: a filter of BPF instructions, as `config.seccomp.filters` returns them, b"" for
        none. `most_memory`: octets of addresses that the process may have, 0 for no limit.
        """
        # Asked for here, and not in each session: it has those of whoever makes this.
        self._limits_now = soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        lowered = most_memory and (most_memory < soft or soft == resource.RLIM_INFINITY)
        self._limits = (most_memory, hard) if lowered else None
        self._call = libc.function("prctl")
        self._address = 0
        if system_calls:
            program = libc.in_memory(system_calls)
            # struct sock_fprog: how many instructions, and where they are.
            header = struct.pack("@HP", len(system_calls) // INSTRUCTION_OCTETS, libc.address_of(program))
            head = libc.in_memory(header)
            self._kept = program, head
            self._address = libc.address_of(head)

    def enter(self) -> None:
        """
        Give it up, for good; `no_new_privileges` has been called in this process or before.

        Raises:
            OSError: the kernel does not take it; the process must not go on.
        """
        if self._limits:
            resource.setrlimit(resource.RLIMIT_AS, self._limits)
        if self._address and self._call(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, self._address, 0, 0):
            raise OSError(libc.errno_of_call(), "prctl(PR_SET_SECCOMP)")

    def rehearse(self) -> None:
        """Go the way of `enter`, and give up nothing."""
        if self._limits:
            resource.setrlimit(resource.RLIMIT_AS, self._limits_now)
        if self._address:
            self._call(PR_GET_SECCOMP, SECCOMP_MODE_FILTER, self._address, 0, 0)
