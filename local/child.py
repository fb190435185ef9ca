"""Runs a module as a program that cannot outlive the cloud: `python child.py <module> <arguments>`.

The cloud holds the other end of standard input. When that closes (the cloud stopped or was killed),
this process ends, and with it all of its process group. Standard library only: the program's own
directory comes first on its path, not this file's.
"""

import os
import runpy
import signal
import sys
import threading


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    if os.getpgid(0) != os.getpid():
        os.setpgid(0, 0)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.path[0] = os.getcwd()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
