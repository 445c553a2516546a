"""Forks workers of Ray, and commands, from a process that has imported what they import: see
`sitecustomize`.

One a run of the tests, started with the name of its socket; it imports when it is first asked, and
ends with the process that started it, and its forks with it.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import takewhile
from pathlib import Path
from pkgutil import walk_packages
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.preload import forked
else:  # of two trees that may be tested, neither is to be there for the forks
    import forked

WORKERS = (
    "torch",
    "torch.distributed",
    "transformers",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.model_executor.models.llama",
    "deepspeed",
    "datasets",
    "pandas",
    "fastapi",
    "uvicorn",
    "jsonschema",
    "typer",
)
"""None of the project's own, of which two trees may be tested, nor Ray, whose library reads the
job of a worker when it is loaded: see `FIRST_JOB`."""
FIRST_JOB = "01000000"
"""Of nearly all workers: each module of tests, and each command, has a Ray of its own."""
WITH_RAY = (
    "ray.data",
    "ray.train.torch",
    "ray.tune",
    "ray.util.state",
    "vllm.v1.executor.ray_utils",
)
"""Beside the others, of workers of the first job, and of commands, which have none."""
OF_THOSE = ".with-ray"
"""Ends the name of their socket."""
DAEMONS = (
    "ray.dashboard.agent",
    "ray.dashboard.dashboard",
    "ray.dashboard.head",
    "ray.dashboard.modules.*",
    "ray._private.log_monitor",
    "ray.autoscaler._private.monitor",
    "ray.autoscaler.v2.monitor",
    "ray._private.runtime_env.agent.runtime_env_agent",
)
"""Of Ray's own programs, of which a start of Ray has five; they are no workers."""
GO = b"G"
ANSWER_S = 5.0
FILES = 64
"""At most, of a process that asks."""


class Server:
    """Takes requests, forks, and tells whoever asked how the fork has forked.ended."""

    def __init__(self, name: str, modules: Sequence[str]) -> None:
        self._name = name
        self._modules = modules
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(name)
        self._listener.listen(64)
        self._forks = Path(f"{name}.forks")
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._lines: dict[int, socket.socket] = {}
        self._wake, wake = socket.socketpair()
        self._wake.setblocking(False)
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno())
        self._waker = wake
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._read: dict[str, str | None] = dict(forked.made_of.get("read", {}))
        """Variables that imports have read, as they were; PATH at least once they are done."""
        self._written: dict[str, str] = dict(forked.made_of.get("written", {}))
        """Variables that imports have set."""
        self._of_ray: dict[str, str] = {}
        """Variables of Ray's library."""
        self._added: list[str] = []
        """Where Ray has its own copies of packages, which go before all others."""
        self._ready = False
        if forked.made_of:  # another such process is what this is a fork of
            self._preload()

    def serve(self) -> dict[str, Any]:
        """Returns in a fork alone, with what it was asked for."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    request = self._accept()
                    if request is not None:
                        return request
                elif key.fileobj is self._wake:
                    self._wake.recv(4096)
                    self._reap()
                elif key.data in self._lines:
                    # Who asked says no more than that: it has forked.ended, and its fork has to.
                    self._forget(key.data)
                    os.kill(key.data, signal.SIGKILL)

    def _accept(self) -> dict[str, Any] | None:
        line, _ = self._listener.accept()
        header, ancillary, _, _ = line.recvmsg(4, socket.CMSG_SPACE(FILES * 4))
        files = array.array("i")
        for _, _, data in ancillary:
            files.frombytes(data)
        try:
            size = struct.unpack("<I", header)[0]
            with line.makefile("rb") as reader:
                request = json.loads(reader.read(size))
            if not self._ready:
                self._preload()
            # Whoever did not want to wait so long has started by itself.
            line.settimeout(ANSWER_S)
            line.sendall(GO)
            gone = request is None or line.recv(len(GO)) != GO
            line.settimeout(None)
        except (struct.error, ValueError, OSError):  # it was forked.ended meanwhile
            gone = True
        if gone:
            for file in files:
                os.close(file)
            line.close()
            return None
        pid = os.fork()
        if pid:
            for file in files:
                os.close(file)
            self._lines[pid] = line
            self._selector.register(line, selectors.EVENT_READ, pid)
            asked = struct.unpack("iII", line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            with self._forks.open("a") as forks:
                print(asked[0], pid, file=forks)
            return None
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for end in (self._listener, self._wake, self._waker, line, *self._lines.values()):
            end.close()
        above = max(request["files"]) + 1
        for number, file in zip(request["files"], _moved(files, above), strict=True):
            os.dup2(file, number)
            os.close(file)
        preloaded = {"read": self._read, "written": self._written}
        return request | preloaded | {"of_ray": self._of_ray, "added": self._added}

    def _preload(self) -> None:
        before, path = dict(os.environ), list(sys.path)
        read = {name for name in before if forked.READ_BY_LIBRARIES.match(name)}
        ask = os._Environ.__getitem__

        def noted(environment: Any, name: str) -> str:
            if isinstance(name, str):  # not of the bytes' copy, `os.environb`
                read.add(name)
            return ask(environment, name)

        os._Environ.__getitem__ = noted  # type: ignore[method-assign, assignment]
        if self._modules is WORKERS:
            sys.modules["ray"] = None  # type: ignore[assignment]  # vLLM asks whether it is there
        with _names_of_its_own() if self._modules is WITH_RAY else nullcontext():
            for module in _named(self._modules):
                try:
                    importlib.import_module(module)
                except ImportError as error:  # a worker that needs it says so itself
                    print(f"{module}: {error}", file=sys.stderr, flush=True)
                if module == "torch" and sys.modules["torch"].cuda.is_available():
                    # A fork could not use the devices: every worker starts by itself.
                    read, before = set(), {}
                    break
        if self._modules is WORKERS:
            del sys.modules["ray"]
            _find_out()
        for name, found in list(sys.modules.items()):
            if getattr(found, "__dict__", {}).get("ray", found) is None:
                # It has noted that there is no Ray, and is imported again by the fork.
                package, _, own = name.rpartition(".")
                del sys.modules[name]
                delattr(sys.modules[package], own)
        os._Environ.__getitem__ = ask  # type: ignore[method-assign]
        self._ready = True
        found = {name: before.get(name) for name in {*read, "PATH"} - forked.INDIFFERENT}
        self._read = found | self._read
        self._of_ray = {name: before[name] for name in before if forked.READ_BY_RAY.fullmatch(name)}
        self._added = list(takewhile(lambda entry: entry not in path, sys.path))
        self._written |= {name: os.environ[name] for name in os.environ.keys() - before.keys()}
        gc.collect()
        gc.freeze()  # else every fork writes to all that it shares
        if self._modules is WORKERS and before:
            self._start_another()

    def _start_another(self) -> None:
        """A fork of this process with Ray beside the rest, which has forks in its turn."""
        settings = {
            "STEPWISER_TESTS_FORKED_COMMAND": "1",
            "RAY_JOB_ID": FIRST_JOB,
            "RAY_RAYLET_PID": str(os.getpid()),  # whose end workers look for: see sitecustomize
        }
        command = [sys.executable, __file__, f"{self._name}{OF_THOSE}"]
        subprocess.Popen(command, env=os.environ | settings)

    def _forget(self, pid: int) -> None:
        line = self._lines.pop(pid)
        self._selector.unregister(line)
        line.close()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._lines:
                code = os.waitstatus_to_exitcode(status)
                with contextlib.suppress(OSError):  # it has forked.ended as well
                    self._lines[pid].sendall(struct.pack("<i", code))
                self._forget(pid)


@contextmanager
def _names_of_its_own() -> Iterator[None]:
    """Has classes of actors named without Ray's generator, which is seeded by its first number: all
    forks would give the same names to what they ask for."""
    from ray import actor

    names = actor.ActorClassID
    drawn = SimpleNamespace(from_random=lambda: names(os.urandom(names.size())))
    actor.ActorClassID = drawn  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        actor.ActorClassID = names  # type: ignore[misc]


def _find_out() -> None:
    """Have the forks know what each would find out with processes of its own."""
    from torch._inductor import cpu_vec_isa
    from vllm.model_executor.models import registry

    cpu_vec_isa.valid_vec_isa_list()  # compiles, and loads, a program for each; kept
    # A process that is not to see a GPU before it forks looks at models in another: none is here.
    registry._run_in_subprocess = lambda look: look()


def _moved(files: Sequence[int], above: int) -> list[int]:
    """The files under numbers that are not below."""
    moved = [fcntl.fcntl(file, fcntl.F_DUPFD, above) for file in files]
    for file in files:
        os.close(file)
    return moved


def _named(modules: Sequence[str]) -> Iterator[str]:
    for module in modules:
        if module.endswith(".*"):
            package = importlib.import_module(module[:-2])
            yield from (found.name for found in walk_packages(package.__path__, module[:-1]))
        else:
            yield module


if __name__ == "__main__":
    forked.end_with_parent()
    if sys.argv[1].endswith(OF_THOSE):
        server = Server(sys.argv[1], WITH_RAY)
    elif os.fork():
        server = Server(sys.argv[1], WORKERS)
    else:
        forked.end_with_parent()
        os.environ[forked.OF_AGENTS] = "1"
        server = Server(f"{sys.argv[1]}.daemons", DAEMONS)
    forked.leave(forked.ended(forked.become(server.serve())))
