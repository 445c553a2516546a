"""What a fork of `server.py` does to be the process that asked for it, and how it ends."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import random
import re
import runpy
import signal
import sys
import tempfile
import threading
import weakref
from itertools import dropwhile
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

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
    "LD_LIBRARY_PATH",  # read when a process begins; vLLM's imports set it, for what is started
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
    "TORCHDYNAMO_DISABLE",  # this and the next an engine sets, to whose process it is the same
    "TORCHINDUCTOR_CPP_DYNAMIC_THREADS",
    "TORCHINDUCTOR_CACHE_DIR",
    "TORCH_EXTENSIONS_DIR",  # read when it is used
    "VLLM_CONFIG_ROOT",  # read when it is used
    "XDG_CACHE_HOME",  # vLLM and the Hub's library have folders by other variables, see conftest
    "XDG_CONFIG_HOME",
}
"""Variables that imports read, and by which they become no other."""
PR_SET_PDEATHSIG = 1
CONTEXT = "--serialized-runtime-env-context="
made_of: dict[str, Any] = {}
"""In a fork: what it was asked for, and what had been imported until then."""


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
    made_of.update(request)
    _configure_ray(request["of_ray"])
    for final in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        final.atexit = False  # of the imports
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


def ended(words: list[str]) -> int:
    """Run that, and return the code that the process is to end with."""
    try:
        run(words)
    except SystemExit as exit:
        if exit.code is None or isinstance(exit.code, int):
            return exit.code or 0
        print(exit.code, file=sys.stderr)
        return 1
    return 0


def leave(code: int) -> NoReturn:
    """As the interpreter ends, but that what was imported is not taken apart, object by object: for
    a fork these are copies to make of pages that it shares, half a second of CPU time."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it, it is closed
            stream.flush()
    os._exit(code)


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
