"""
EDGE: functions of the C library that Python does not offer, or only with an exception for an answer.

They are called through `_ctypes`, the C half of ctypes, which is all that is needed: with the other half
came classes and modules that each session would carry along. Executed by every process but the commands'.
"""

from __future__ import annotations

import _ctypes
import os

CDECL, WITH_ERRNO = 1, 8  # how C functions are called


class Octet(_ctypes._SimpleCData):  # type: ignore[type-arg]  # typing knows of a generic
    """A char."""

    _type_ = "c"


class _Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "l"


class Function(_ctypes.CFuncPtr):
    """One of them; returns what it answers, and `errno_of_call` says why it has failed."""

    _flags_ = CDECL | WITH_ERRNO
    _restype_ = _Long
    _argtypes_ = (_Long, _Long, _Long, _Long, _Long)


def function(name: str) -> Function:
    """Return a function of five integers or fewer; those that it has no use for are 0."""
    everything = _ctypes.dlopen(None, os.RTLD_NOW)  # type: ignore[arg-type]  # what is loaded already
    return Function(_ctypes.dlsym(everything, name))


def errno_of_call() -> int:
    """Return why the last one of them has failed."""
    return _ctypes.get_errno()


def in_memory(octets: bytes) -> _ctypes.Array[Octet]:
    """Return a copy of `octets` with an address that stays the same (`address_of`)."""
    return (Octet * len(octets)).from_buffer_copy(octets)


def address_of(copy: _ctypes.Array[Octet]) -> int:
    """Return where that copy is."""
    return _ctypes.addressof(copy)
