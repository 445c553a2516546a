"""Forks workers of Ray, and commands, from a process that has imported what they import: see
`sitecustomize`.

One a run of the tests, started with the name of its socket; it imports when it is first asked, and
ends with the process that started it, and its forks with it.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import random
import re
import runpy
import selectors
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import dropwhile, takewhile
from pathlib import Path
from pkgutil import walk_packages
from types import ModuleType
from typing import Any

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
)
"""None of the project's own, of which two trees may be tested, nor Ray, whose library reads the
variables of a worker when it is loaded."""
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
READ_BY_LIBRARIES = re.compile(r"(GOMP|KMP|LD|MALLOC|MKL|OMP|OPENBLAS)_|PYTHON(?!PATH$)")
"""Variables that shared libraries and the interpreter read; what modules read is seen."""
READ_BY_RAY = re.compile(r"RAY_([a-z]\w+|AUTH_MODE)")
"""Variables that Ray's library reads when it is loaded; a fork tells it its own."""
OF_AGENTS = "RAY_enable_pipe_based_agent_to_parent_health_check"
"""Variable of those daemons that have a raylet for their parent; no other one asks for it."""
INDIFFERENT = {
    "COLUMNS",
    "CUDA_CACHE_PATH",
    "CUDA_VISIBLE_DEVICES",  # there is no such device, see `_preload`
    "DO_NOT_TRACK",
    "DS_ACCELERATOR",  # there is but one, see `_preload`
    "HYPOTHESIS_STORAGE_DIRECTORY",
    "LD_PRELOAD",  # an allocator, of two of Ray's daemons
    "LINES",
    OF_AGENTS,
    "PYTHONPATH",  # see `become`
    "PYTEST_CURRENT_TEST",
    "PYTHONBREAKPOINT",  # of Ray, in every process that has been a driver once
    "PYTHONWARNINGS",  # applied when it starts; Ray asks for none in some workers
    "RAY_AUTH_TOKEN",
    "RAY_DEDUP_LOGS",  # of drivers, which are no forks of the daemons'
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",  # of whoever starts Ray: daemons are told their address
    "RAY_TMPDIR",
    "TMPDIR",  # each worker of xdist has its own; see `become`
    "TORCHINDUCTOR_CACHE_DIR",
    "TORCH_EXTENSIONS_DIR",  # read when it is used
    "VLLM_CONFIG_ROOT",  # read when it is used
    "XDG_CACHE_HOME",  # vLLM and the Hub's library have folders by other variables, see conftest
    "XDG_CONFIG_HOME",
}
"""Variables that imports read, and by which they become no other."""
PR_SET_PDEATHSIG = 1
GO = b"G"
ANSWER_S = 5.0
FILES = 64
"""At most, of a process that asks."""
CONTEXT = "--serialized-runtime-env-context="


class Server:
    """Takes requests, forks, and tells whoever asked how the fork has ended."""

    def __init__(self, name: str, modules: Sequence[str]) -> None:
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
        self._read: dict[str, str | None] = {}
        """Variables that imports have read, as they were; PATH at least once they are done."""
        self._written: dict[str, str] = {}
        """Variables that imports have set."""
        self._of_ray: dict[str, str] = {}
        """Variables of Ray's library."""
        self._added: list[str] = []
        """Where Ray has its own copies of packages, which go before all others."""

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
                    # Who asked says no more than that: it has ended, and its fork has to.
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
            if not self._read:
                self._preload()
            # Whoever did not want to wait so long has started by itself.
            line.settimeout(ANSWER_S)
            line.sendall(GO)
            gone = request is None or line.recv(len(GO)) != GO
            line.settimeout(None)
        except (struct.error, ValueError, OSError):  # it was ended meanwhile
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
        read = {name for name in before if READ_BY_LIBRARIES.match(name)}
        ask = os._Environ.__getitem__

        def noted(environment: Any, name: str) -> str:
            if isinstance(name, str):  # not of the bytes' copy, `os.environb`
                read.add(name)
            return ask(environment, name)

        os._Environ.__getitem__ = noted  # type: ignore[method-assign, assignment]
        if self._modules is WORKERS:
            sys.modules["ray"] = None  # type: ignore[assignment]  # vLLM asks whether it is there
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
        self._read = {name: before.get(name) for name in {*read, "PATH"} - INDIFFERENT}
        self._of_ray = {name: before[name] for name in before if READ_BY_RAY.fullmatch(name)}
        self._added = list(takewhile(lambda entry: entry not in path, sys.path))
        self._written = {name: os.environ[name] for name in os.environ.keys() - before.keys()}
        gc.collect()
        gc.freeze()  # else every fork writes to all that it shares

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
                with contextlib.suppress(OSError):  # it has ended as well
                    self._lines[pid].sendall(struct.pack("<i", code))
                self._forget(pid)


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


def end_with_parent() -> None:
    """The kernel kills this process when the thread that started it has ended."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def become(request: dict[str, Any]) -> list[str]:
    """Turn this fork into the process that asked; returns what to run as the main program, with
    its arguments: a script, or `-m` and a module, or `-c` and code."""
    end_with_parent()
    os.setpgid(0, 0)  # Ray ends a worker's group with it
    os.chdir(request["folder"])
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])
    os.environ.clear()
    os.environ.update(request["environment"])
    command = request["command"]
    started = list(dropwhile(("-B", "-u").__contains__, command[1:]))
    words: list[str] | None = started
    if started[0].endswith("setup_worker.py"):
        words = _set_up(started[1:])
    others = _others(request["read"], request["written"])
    if words is None or others:
        with Path(f"{sys.argv[1]}.log").open("a") as log:
            print(f"starts by itself, for {others} differ: {command}", file=log)
        if started[0] not in ("-c", "-m"):  # a command's own workers may yet be forks
            del os.environ["STEPWISER_TESTS_PRELOADED"]
        os.execv(command[0], command)
    os.environ.update(request["written"])
    _configure_ray(request["of_ray"])
    random.seed()
    tempfile.tempdir = None
    if "-u" in command[: -len(started)]:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    old = request["environment"].get("PYTHONPATH", "").split(os.pathsep)
    new = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    rest = [entry for entry in request["path"] if entry not in old]
    own = os.getcwd() if words[0] in ("-c", "-m") else str(Path(words[0]).parent)
    sys.path[:] = dict.fromkeys([own, *request["added"], *filter(None, new), *rest])
    return [str(word) for word in words]


def run(words: list[str]) -> None:
    """As the interpreter runs a script, `-m` and a module, or `-c` and code."""
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(words[1], main.__dict__)
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def _configure_ray(before: dict[str, str]) -> None:
    """Tell Ray's library what it would have read if it were loaded now."""
    now = {name: os.environ[name] for name in os.environ if READ_BY_RAY.fullmatch(name)}
    changed = {}
    for name, value in now.items():
        if before.get(name) != value:
            known = name.removeprefix("RAY_")
            changed[known] = value if known.isupper() else json.loads(value)
    if changed and "ray" in sys.modules:
        from ray._raylet import Config

        Config.initialize(json.dumps(changed))


def _set_up(words: list[str]) -> list[str] | None:
    """What Ray's `setup_worker` does before it starts the worker; None: it has more to do."""
    rest = []
    for word in words:
        if word.startswith(CONTEXT):
            context = json.loads(word.removeprefix(CONTEXT))
            prefix = context["command_prefix"]
            if prefix[:1] == ["cd"] and prefix[2:] == ["&&"]:
                os.chdir(prefix[1])
                prefix = []
            if (
                prefix
                or context["override_worker_entrypoint"]
                or context["py_executable"] != sys.executable
                or any("$" in value for value in context["env_vars"].values())
            ):
                return None
            os.environ.update(context["env_vars"])
        elif not word.startswith("--language="):
            rest.append(word)
    return rest if rest and rest[0].endswith("default_worker.py") else None


def _others(read: dict[str, str | None], written: dict[str, str]) -> list[str]:
    """Variables that imports would have found otherwise in this worker.

    What they set themselves they may find set: a driver that has imported the same hands it on.
    """
    names = {name for name in os.environ if READ_BY_LIBRARIES.match(name)} - INDIFFERENT
    others = [
        name
        for name in sorted(names | read.keys())
        if os.environ.get(name) not in (read.get(name), written.get(name))
    ]
    known, now = ((of.get("PATH") or "").split(os.pathsep) for of in (read, os.environ))
    if "PATH" in others and set(known) <= set(now):
        others.remove("PATH")  # with more folders, imports would have found the same programs
    return others


if __name__ == "__main__":
    end_with_parent()
    if os.fork():
        server = Server(sys.argv[1], WORKERS)
    else:
        end_with_parent()
        os.environ[OF_AGENTS] = "1"
        server = Server(f"{sys.argv[1]}.daemons", DAEMONS)
    run(become(server.serve()))
