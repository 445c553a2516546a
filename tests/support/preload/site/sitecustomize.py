"""Run by every Python that starts with the tests' `PYTHONPATH`: a worker or daemon of Ray asks
`server.py` for a fork, and ends as that ends; so does a command that is only waited for
(`FORKED_COMMAND`), and a process that `multiprocessing` spawns with that variable. Anything else
starts as always.
"""

import os
import sys


def _become_fork(socket_name: str, with_ray: bool = False) -> None:
    import array
    import json
    import signal
    import socket
    import struct
    import time

    files = array.array("i", [0, 1, 2])
    if _IS_SPAWNED:  # is handed connections by their numbers
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
        files.extend(n for n in numbers if n > 2 and os.path.exists(f"/proc/self/fd/{n}"))
    request = {
        "command": [sys.executable, *sys.orig_argv[1:]],
        "environment": dict(os.environ),
        "path": sys.path,
        "folder": os.getcwd(),
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "ignored": [
            number
            for number in signal.valid_signals()
            if signal.getsignal(number) is signal.SIG_IGN
        ],
        "files": files.tolist(),
    }
    sent = json.dumps(request).encode()
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    line.settimeout(_PATIENCE_S)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)]
    try:
        try:
            line.connect(f"{socket_name}.with-ray" if with_ray else socket_name)
        except OSError:  # not yet
            line.connect(socket_name)
        line.sendmsg([struct.pack("<I", len(sent))], rights)
        line.sendall(sent)
        if line.recv(1) != b"G":
            raise OSError("it has ended")
        line.sendall(b"G")
    except OSError:  # it imports for too long, or the run that it was for has ended
        line.close()
        return
    # Ray knows the fork by the number that it tells itself, and this process until then. Workers
    # end by themselves when their raylet has, but not those that were forked with Ray's library,
    # which reads who that is when it is loaded.
    raylet, alone_since = os.getppid(), None
    line.settimeout(1.0)
    while True:
        try:
            status = line.recv(4)
            break
        except TimeoutError:
            if os.getppid() != raylet:
                alone_since = alone_since or time.monotonic()
                if time.monotonic() > alone_since + _ALONE_S:
                    os._exit(1)  # the fork is killed for it
    code = struct.unpack("<i", status)[0] if len(status) == 4 else -signal.SIGKILL
    if code < 0:  # by a signal
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


_ALONE_S = 1.0
_PATIENCE_S = 20.0
"""Ray gives a worker 60 seconds to start in, and a driver waits for its first ones for ever."""
_WORKERS = tuple(f"/ray/_private/workers/{name}_worker.py" for name in ("setup", "default"))
_SOCKET = os.environ.get("STEPWISER_TESTS_PRELOADED")
# Only of the command itself: what it starts is no such one.
_IS_COMMAND = os.environ.pop("STEPWISER_TESTS_FORKED_COMMAND", None) is not None
_WORDS = [word for word in sys.orig_argv[1:4] if word not in ("-B", "-u")] + ["", ""]
_CODE = _WORDS[1] if _WORDS[0] == "-c" else ""
_IS_SPAWNED = _IS_COMMAND and "multiprocessing.spawn " in _CODE
if "multiprocessing.resource_tracker " in _CODE:  # is started before what is spawned
    _IS_COMMAND = False
_IS_WORKER = _WORDS[0].endswith(_WORKERS)
# Ray's own programs, of which each start of Ray has five.
_DAEMONS = (
    "/ray/autoscaler/_private/monitor.py",
    "/ray/dashboard/agent.py",
    "/ray/dashboard/dashboard.py",
    "/ray/_private/log_monitor.py",
    "/ray/_private/runtime_env/agent/main.py",
)
_IS_DAEMON = _WORDS[0].endswith(_DAEMONS)
if _SOCKET and (_IS_COMMAND or _IS_WORKER or _IS_DAEMON):
    # Ray's library reads the job when it is loaded; all but the first are rare.
    _with_ray = not _IS_DAEMON and not _WORDS[0].endswith("/preload/server.py")
    _with_ray = _with_ray and (_IS_COMMAND or os.environ.get("RAY_JOB_ID") == "01000000")
    _become_fork(f"{_SOCKET}.daemons" if _IS_DAEMON else _SOCKET, _with_ray)
    if _IS_WORKER:  # and nothing that it starts asks again; the workers of a command do
        del os.environ["STEPWISER_TESTS_PRELOADED"]
