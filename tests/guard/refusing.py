"""Becomes a command below a filter that refuses system calls, as kernels and containers do that give no namespaces.

    python tests/guard/refusing.py WHAT,WHAT... COMMAND...

WHAT is ``unshare`` (no namespaces: Docker's profile), ``loopback`` (namespaces, and nothing can be done in them: what
Ubuntu's rule of AppArmor leaves) or ``filter`` (no seccomp filters).
"""

import ctypes
import os
import struct
import sys

EPERM = 1
# What -> the call's number on x86_64 and aarch64; which argument must be what, if any.
CALLS = {
    "unshare": (272, 97, None),
    "loopback": (16, 29, (1, 0x8914)),  # ioctl SIOCSIFFLAGS
    "filter": (157, 167, (0, 22)),  # prctl PR_SET_SECCOMP
}


def program(what):
    load, equal, leave = 0x20, 0x15, 0x06
    refuse = (leave, 0, 0, 0x00050000 | EPERM)
    lines = []
    for name in what:
        x86, arm, argument = CALLS[name]
        number = x86 if "x86" in os.uname().machine else arm
        lines += [(load, 0, 0, 0), (equal, 0, 1 if argument is None else 3, number)]
        if argument is not None:
            lines += [(load, 0, 0, 16 + 8 * argument[0]), (equal, 0, 1, argument[1])]
        lines += [refuse]
    return b"".join(struct.pack("=HBBI", *line) for line in [*lines, (leave, 0, 0, 0x7FFF0000)])


def main(what, command):
    libc = ctypes.CDLL(None, use_errno=True)
    code = program(what)
    kept = ctypes.create_string_buffer(code, len(code))
    told = struct.pack("@HP", len(code) // 8, ctypes.addressof(kept))
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, told):
        sys.exit(f"no filter: {os.strerror(ctypes.get_errno())}")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1].split(","), sys.argv[2:])
