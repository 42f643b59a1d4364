"""A launcher: becomes another program, which dies with its parent.

Usage: python launch.py PROGRAM [ARGUMENT...]

Runs between fork and exec as a program of its own: a preexec_fn would do the same
inside a copy of a process that may have threads, which can deadlock.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

parent = os.getppid()
if sys.platform == "linux":
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)
os.execvp(sys.argv[1], sys.argv[1:])
