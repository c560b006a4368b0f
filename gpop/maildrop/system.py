"""
EDGE: every system call of this package, by name, in one place.

The one seam for tests of failure: they put a wrapper around each of these that fails the
n-th call, for n = 1, 2, 3 ..., and look at the maildrop afterwards. Nothing else is ever
replaced. `close` is missing here because there is nothing to be done about its failure.
"""

from __future__ import annotations

import fcntl
import os
import time

open_file = os.open
fstat = os.fstat
stat = os.stat
access = os.access
scandir = os.scandir
read = os.read
pread = os.pread
write = os.write
pwrite = os.pwrite
writev = os.writev
fdatasync = os.fdatasync
fsync = os.fsync
touch = os.utime
rename = os.rename
link = os.link
unlink = os.unlink
mkdir = os.mkdir
flock = fcntl.flock
sleep = time.sleep
