"""
EDGE: takes from a process what it never needs: system calls, by a seccomp filter, and memory without end.

Uid and jail bound what a process that was taken over can reach by name; this bounds what it can ask the
kernel for: no program, no connection to anywhere, no signal, no other process's memory, and nothing
of what kernels turned out to be weak in. `config.seccomp` makes the filters.

The call itself is made through `_ctypes`, the C half of ctypes, which is all that is needed: with the
other half came classes and modules that each session would carry along. (`peeking` calls another
function that way.) Executed by the broker (which gets all ready before a fork), by sessions and
service processes.
"""

from __future__ import annotations

import _ctypes
import os
import resource
import struct

# linux/prctl.h, linux/seccomp.h
PR_GET_SECCOMP = 21
PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2

CDECL, WITH_ERRNO = 1, 8  # how C functions are called
INSTRUCTION_OCTETS = 8  # struct sock_filter


class _Octet(_ctypes._SimpleCData):  # type: ignore[type-arg]  # typing knows of a generic
    _type_ = "c"


class _Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "l"


class _Call(_ctypes.CFuncPtr):
    _flags_ = CDECL | WITH_ERRNO
    _restype_ = _Long
    _argtypes_ = (_Long, _Long, _Long, _Long, _Long)


def _in_memory(octets: bytes) -> _ctypes.Array[_Octet]:
    """A copy of `octets` with an address that stays the same."""
    return (_Octet * len(octets)).from_buffer_copy(octets)


def c_function(name: str) -> _Call:
    """Return a function of the C library, of five integers or fewer; those that it has no use for are 0."""
    everything = _ctypes.dlopen(None, os.RTLD_NOW)  # type: ignore[arg-type]  # what is loaded already
    return _Call(_ctypes.dlsym(everything, name))


def errno_of_call() -> int:
    """Why the last one of them has failed."""
    return _ctypes.get_errno()


def no_new_privileges() -> None:
    """
    Let this process, and all that descend from it, gain no privileges by a set-uid program.

    Raises:
        OSError: the kernel does not know how.
    """
    if c_function("prctl")(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(errno_of_call(), "prctl(PR_SET_NO_NEW_PRIVS)")


class Confinement:
    """What a process gives up, made ready before it is forked."""

    __slots__ = ("_address", "_call", "_kept", "_most_memory")

    def __init__(self, system_calls: bytes, most_memory: int = 0) -> None:
        """
        `system_calls`: a filter of BPF instructions, as `config.seccomp.filters` returns them, b"" for
        none. `most_memory`: octets of addresses that the process may have, 0 for no limit.
        """
        self._most_memory = most_memory
        self._call = c_function("prctl")
        self._address = 0
        if system_calls:
            program = _in_memory(system_calls)
            # struct sock_fprog: how many instructions, and where they are.
            header = struct.pack("@HP", len(system_calls) // INSTRUCTION_OCTETS, _ctypes.addressof(program))
            head = _in_memory(header)
            self._kept = program, head
            self._address = _ctypes.addressof(head)

    def enter(self) -> None:
        """
        Give it up, for good; `no_new_privileges` has been called in this process or before.

        Raises:
            OSError: the kernel does not take it; the process must not go on.
        """
        if self._most_memory:
            self._limit_memory(self._most_memory)
        if self._address and self._call(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, self._address, 0, 0):
            raise OSError(errno_of_call(), "prctl(PR_SET_SECCOMP)")

    def rehearse(self) -> None:
        """Go the way of `enter`, and give up nothing."""
        if self._most_memory:
            self._limit_memory(resource.RLIM_INFINITY)
        if self._address:
            self._call(PR_GET_SECCOMP, SECCOMP_MODE_FILTER, self._address, 0, 0)

    def _limit_memory(self, most: int) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        if most < soft or soft == resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))
