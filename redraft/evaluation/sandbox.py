"""The inside of ``execution``: a program of its own, run by path, that locks itself in and then runs foreign code.

It needs nothing but the standard library. ``argv``: the file of the program, whose first line is a secret; the limits,
bytes of memory, CPU seconds and bytes of output; and the file descriptor on which it says that it is locked in, and
then the secret, once the program has come to its end. Where any lock fails nothing is run.

- rlimits: address space, CPU time, size of what is written, open files, no core file
- Landlock: no file is opened but those of Python and the system's libraries, and those to read only
- seccomp: no process, thread, program, socket, signal, shared memory, change of a file's owner, mode or times, or of
  another process's priority; nothing is emptied, which Landlock knows from its third version on only
- no capability is left to it, whoever started it
"""

import ctypes
import os
import platform
import resource
import struct
import sys

LOCKED = b"locked\n"
FILES = 32
"""How many may be open."""
READABLE = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/dev/null", "/dev/urandom")
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_SHARED = {
    *(425, 424, 434, 435, 452, 463),  # io_uring_setup, pidfd_send_signal, pidfd_open, clone3, fchmodat2, setxattrat
    *(438, 440, 442, 429, 448),  # pidfd_getfd, process_madvise, mount_setattr, move_mount, process_mrelease
    437,  # openat2, whose flags stand where they cannot be looked at
}
_DENIED = {
    "x86_64": {
        *(56, 57, 58, 59, 322),  # clone, fork, vfork, execve, execveat
        *(41, 53),  # socket, socketpair
        *(62, 200, 234, 129, 297),  # kill, tkill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo
        *(101, 310, 311, 302),  # ptrace, process_vm_readv, process_vm_writev, prlimit64
        *(298, 321, 323),  # perf_event_open, bpf, userfaultfd
        *(165, 272, 308, 248, 249, 250),  # mount, unshare, setns, add_key, request_key, keyctl
        *(29, 64, 68, 240),  # shmget, semget, msgget, mq_open
        *(90, 91, 92, 93, 94, 260, 268),  # chmod, fchmod, chown, fchown, lchown, fchownat, fchmodat
        *(132, 235, 261, 280, 188, 189, 190, 197, 198, 199),  # utime and its kin, setxattr, removexattr and theirs
        *(141, 251, 142, 144, 203, 314),  # setpriority, ioprio_set, sched_set: param, scheduler, affinity, attr
        *(76, 256, 279),  # truncate, migrate_pages, move_pages
    },
    "aarch64": {
        *(220, 221, 281),  # clone, execve, execveat
        *(198, 199),  # socket, socketpair
        *(129, 130, 131, 138, 240),  # kill, tkill, tgkill, rt_sigqueueinfo, rt_tgsigqueueinfo
        *(117, 270, 271, 261),  # ptrace, process_vm_readv, process_vm_writev, prlimit64
        *(241, 280, 282),  # perf_event_open, bpf, userfaultfd
        *(40, 97, 268, 217, 218, 219),  # mount, unshare, setns, add_key, request_key, keyctl
        *(194, 190, 186, 180),  # shmget, semget, msgget, mq_open
        *(52, 53, 54, 55, 88),  # fchmod, fchmodat, fchownat, fchown, utimensat
        *(5, 6, 7, 14, 15, 16),  # setxattr, removexattr and their kin
        *(140, 30, 118, 119, 122, 274),  # setpriority, ioprio_set, sched_set: param, scheduler, affinity, attr
        *(45, 238, 239),  # truncate, migrate_pages, move_pages
    },
}
_ALL, _OWN = 0xFFFFFFFF, (8, 10, 15)
"""F_SETOWN, F_SETSIG, F_SETOWN_EX: who is signalled when a file has something to read, and by what."""
_EMPTIES = (2, os.O_TRUNC | os.O_ACCMODE, (os.O_TRUNC | os.O_RDONLY,))
"""To open a file to read it and empty it."""
_DENIED_ARGUMENTS = {
    "x86_64": {72: (1, _ALL, _OWN), 16: (1, _ALL, (0x8901, 0x8902)), 257: _EMPTIES, 2: (1, *_EMPTIES[1:])},
    "aarch64": {25: (1, _ALL, _OWN), 29: (1, _ALL, (0x8901, 0x8902)), 56: _EMPTIES},
}
"""fcntl, ioctl (FIOSETOWN, SIOCSPGRP), openat and open: which argument, what of it, and the values refused."""
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
"""How many rights over files each version of Landlock knows; 16 from the fifth on."""
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_KILL, _REFUSE, _ALLOW = 0x80000000, 0x00050001, 0x7FFF0000
_CAPABILITIES = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    path, (memory, seconds, written, status) = sys.argv[1], map(int, sys.argv[2:])
    with open(path, encoding="utf-8") as file:
        secret, _, code = file.read().partition("\n")
    sys.argv, sys.dont_write_bytecode = ["program.py"], True
    try:
        _limit(memory, seconds, written)
        _checked(_libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "prctl")
        _shut_files()
        _drop()
        _shut_calls()
        _try_the_locks(path)
    except OSError as error:
        os.write(status, f"{error}\n".encode())
        sys.exit(1)
    os.write(status, LOCKED)
    exec(compile(code, "program.py", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
    sys.stdout.flush()
    os.write(status, secret.encode())


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _limit(memory: int, seconds: int, written: int) -> None:
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, written),
        (resource.RLIMIT_NOFILE, FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def _shut_files() -> None:
    """Landlock: whatever is no file to be read for Python's sake cannot be opened, made, removed or renamed."""
    version = _checked(_libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1)), "Landlock")
    handled = struct.pack("=Q", (1 << _RIGHTS.get(version, 16)) - 1)
    rules = _checked(_libc.syscall(_LANDLOCK_CREATE, handled, ctypes.c_size_t(8), ctypes.c_uint32(0)), "Landlock")
    for place in {sys.prefix, sys.base_prefix, os.path.dirname(os.path.realpath(sys.executable)), *READABLE}:
        if not os.path.exists(place):
            continue
        allowed = _READ_FILE | _READ_DIR if os.path.isdir(place) else _READ_FILE
        allowed |= _WRITE_FILE if place == os.devnull else 0
        at = os.open(place, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", allowed, at)
        _checked(_libc.syscall(_LANDLOCK_ADD, rules, 1, rule, ctypes.c_uint32(0)), "Landlock")
        os.close(at)
    _checked(_libc.syscall(_LANDLOCK_RESTRICT, rules, ctypes.c_uint32(0)), "Landlock")
    os.close(rules)


def _drop() -> None:
    """No capability, which root would have: uid 0 is then a user like others."""
    _checked(_libc.capset(struct.pack("=Ii", _CAPABILITIES, 0), bytes(24)), "capset")


def _shut_calls() -> None:
    """seccomp: the calls denied fail with EPERM, and those of another architecture end the process."""
    machine = platform.machine()
    if machine not in _DENIED:
        raise OSError(0, f"seccomp: the calls of {machine} are not known")
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _ARCHITECTURES[machine]), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    steps += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _REFUSE)]  # x32's names of the same calls
    for number in sorted(_DENIED[machine] | _SHARED):
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    for number, (argument, part, values) in _DENIED_ARGUMENTS[machine].items():
        inside = [(_LOAD, 0, 0, 16 + 8 * argument), (_AND, 0, 0, part)]  # its lower half, which is all that is read
        for value in values:
            inside += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, _REFUSE)]
        inside.append((_LOAD, 0, 0, 0))
        steps += [(_EQUAL, 0, len(inside), number), *inside]
    steps.append((_RETURN, 0, 0, _ALLOW))
    table = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(table))
    _checked(_libc.prctl(_SECCOMP, _FILTER, program, 0, 0), "seccomp")


def _try_the_locks(path: str) -> None:
    """Errors: ``OSError`` where a process can be started, or a file of someone's read, after all."""
    try:
        child = os.fork()
    except PermissionError:
        pass
    else:
        if child == 0:
            os._exit(0)
        raise OSError(0, "seccomp does not hold")
    try:
        os.close(os.open(path, os.O_RDONLY))
    except PermissionError:
        return
    raise OSError(0, "Landlock does not hold")


if __name__ == "__main__":
    main()
