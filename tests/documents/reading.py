"""Reads one command as its program would, runs it where that starts nothing, and says how."""

from __future__ import annotations

import argparse
import json
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml
from typer.testing import CliRunner

from pipelines.cli import app
from stepwiser.config import RunConfig, load_config
from stepwiser.config.impossible import refuse_impossible
from stepwiser.data.presets import PRESETS
from stepwiser.data.step_items import read_step_items
from stepwiser.training.ablation import arms_of
from tests.documents import table
from tests.documents.shell import Call
from tests.support.paths import ROOT

STARTS_NOTHING = ("status", "merge", "export", "plan", "data", "keys", "version")
"""Commands of `stepwiser` that are run as they stand."""
UsageError = (click.UsageError, typer.BadParameter.__mro__[1])
"""Of Ray's click and of typer's own: words that a program does not take."""
HUB = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


class NotAsWritten(AssertionError):
    """A command that does not do what the document says."""


class _Read(Exception):
    """The arguments of a program were read; it goes no further."""


def read(call: Call, place: Path, monkeypatch: pytest.MonkeyPatch, execute: bool = True) -> str:
    """Which test runs this command, or why none can; or that it ran here.

    ``execute``: whether what starts nothing may run; what is only named has no files to read.

    Raises NotAsWritten, or what the program raised.
    """
    monkeypatch.chdir(place)
    program, arguments = call.program, list(call.arguments)
    if program == "stepwiser" or (program, *arguments[:2]) == ("python", "-m", "pipelines.cli"):
        own = arguments if program == "stepwiser" else arguments[2:]
        monkeypatch.setenv("PYTHONPATH", call.python_path)
        return _stepwiser(own, place, monkeypatch, execute)[0]
    reader = _READERS.get(program)
    if reader is None:
        raise NotAsWritten(f"nobody reads {program}: add it to tests/documents/reading.py")
    return reader(call, arguments, monkeypatch)


def run_stepwiser(line: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A command as it stands at a prompt: how it is held, and what it printed here."""
    monkeypatch.chdir(place)
    program, *arguments = shlex.split(line)
    assert program == "stepwiser", line
    return _stepwiser(arguments, place, monkeypatch)


# --- stepwiser ------------------------------------------------------------------------------------


def _parameters(arguments: Sequence[str], command: Any) -> tuple[list[str], dict[str, Any]]:
    """The names of a command and what its words mean; raises a UsageError."""
    words, names = list(arguments), []
    while hasattr(command, "commands"):
        if not words or words[0] not in command.commands:
            raise NotAsWritten(f"there is no command {' '.join([*names, *words[:1]])!r}")
        names.append(words.pop(0))
        command = command.commands[names[-1]]
    with command.make_context(names[-1], words) as context:
        return names, context.params


def _stepwiser(
    arguments: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, execute: bool = True
) -> tuple[str, str]:
    if arguments in (["--help"], ["version"]):
        return "runs here", _invoke(arguments)
    here = [word.replace("/opt/stepwiser/", "") for word in arguments]
    names, parameters = _parameters(here, typer.main.get_command(app))
    if names[0] in table.JOBS:
        if names[0] == "submit":
            with (
                typer.main.get_command(app)
                .commands["submit"]
                .make_context("submit", here[1:]) as one
            ):  # type: ignore[attr-defined]
                _stepwiser([one.params["command"], *one.args], place, monkeypatch, execute)
        return f"read here, runs in {table.JOBS[names[0]]}", ""
    if names[0] in STARTS_NOTHING and not execute:
        return "read here", ""
    if names[0] in STARTS_NOTHING:
        return "runs here", _invoke(arguments)
    scenario = parameters["config"]
    default = "ablate-embedded" if names == ["ablate"] else "embedded"
    path = Path(scenario or ROOT / "configs" / f"{default}.yaml")
    config = load_config(path, parameters["overrides"] or [])
    _names_what_exists(config, monkeypatch, place)
    if names == ["ablate"]:
        arms_of(config, parameters["only"] or [])
        return _held(names[0], path, place), ""
    refuse_impossible(config, str(path), list(table.RUNS_IN) if names == ["quickstart"] else names)
    planned = [word for word in arguments if word != "--plan"]
    output = _invoke([planned[0], "--plan", *planned[1:]], codes=(0, 1))
    short = re.search(r"needs .* short", " ".join(output.split()))
    if bool(short) != (config.cluster.expected_gpus == 6):  # the one that is shown to be too small
        raise NotAsWritten(f"its plan says {short[0] if short else 'that all fits'}")
    return _held(names[0], path, place), output


def _invoke(arguments: Sequence[str], codes: Sequence[int] = (0,)) -> str:
    words = [word.replace("/opt/stepwiser/", "") for word in arguments]
    result = CliRunner().invoke(app, words)
    if result.exit_code not in codes:
        raise NotAsWritten(f"it ends with {result.exit_code}: {result.output} {result.exception}")
    return result.output


def _held(stage: str, config: Path, place: Path) -> str:
    """By which test, or why by none."""
    name = str(config.absolute()).removeprefix(f"{place}/").removeprefix(f"{ROOT}/")
    if why := table.CONFIG_CANNOT.get(name):
        return f"planned here; it needs {why}"
    if name == "configs/gsm8k.yaml" or stage not in table.RUNS_IN:
        return f"planned here, runs in {table.CONFIG_RUNS_IN[name]}"
    return f"planned here, runs in {table.RUNS_IN[stage]}"


def _names_what_exists(config: RunConfig, monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Every source and every model is a file that is there, a known name, or one of the Hub."""
    models = (config.policy_model, config.judge_model, config.segment.segmenter_model)
    for model in models:
        if (
            model not in (None, "embedded")
            and not Path(model).is_dir()
            and not HUB.fullmatch(model)
        ):
            raise NotAsWritten(f"{model} is no folder and no name")
    for data in (config.data, config.evaluation_data):
        known = data.source == "embedded" or data.source in PRESETS
        if (
            not known
            and not Path(data.source).exists()
            and ("." in data.source or not HUB.fullmatch(data.source))
        ):
            raise NotAsWritten(f"{data.source} is no file, and no name of a data set")
    sets = [config.evaluate.source, *(one.source for one in config.evaluate.more)]
    for source in [*sets, *([config.annotate.source] if config.annotate.source else [])]:
        if source != "embedded":
            read_step_items(source, None)
    if ":" in config.answer_checker and "://" not in config.answer_checker:
        module, _, function = config.answer_checker.partition(":")
        monkeypatch.syspath_prepend(place)
        if not callable(runpy.run_path(str(place / f"{module}.py"))[function]):
            raise NotAsWritten(f"{config.answer_checker} is no function")


# --- other programs -------------------------------------------------------------------------------


def _cannot(name: str) -> str:
    return f"read here; not run: {table.PROGRAM_CANNOT[name]}"


def _files_exist(words: Sequence[str]) -> None:
    for word in words:
        if "/" in word and not word.startswith(("-", "http")) and not (ROOT / word).exists():
            raise NotAsWritten(f"{word} does not exist")


def _make(call: Call, arguments: list[str], _: pytest.MonkeyPatch) -> str:
    done = subprocess.run(
        ["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NotAsWritten(done.stderr)
    return _cannot("make")


def _pytest(call: Call, arguments: list[str], _: pytest.MonkeyPatch) -> str:
    named, marker = (
        arguments[arguments.index(option) + 1] if option in arguments else ""
        for option in ("-k", "-m")
    )
    if marker and marker not in _markers():
        raise NotAsWritten(f"no marker is called {marker}")
    paths = [word for word in arguments if word not in ("-k", named, "-m", marker)]
    for path in paths:
        if not (ROOT / path).exists():
            raise NotAsWritten(f"{path} does not exist")
    files = [file for path in paths for file in (ROOT / path).rglob("test_*.py")]
    if named and not any(named in file.name + file.read_text() for file in files):
        raise NotAsWritten(f"no test of {paths} is called {named}")
    return _cannot("pytest")


def _markers() -> set[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    return {line.partition(":")[0] for line in settings["markers"]}


def _python(call: Call, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    if arguments == ["-"]:
        exec(compile(call.input, call.where, "exec"), {"__name__": "__main__"})
        return "runs here"
    if arguments[:2] == ["-m", "venv"]:
        return _cannot("python -m venv")
    if arguments[:1] != ["-m"]:
        raise NotAsWritten(f"python {' '.join(arguments)} is read by nobody")
    module, *words = arguments[1:]
    if find_spec(module) is None:
        raise NotAsWritten(f"there is no module {module}")
    package = module.partition(".")[0]
    if package == "benchmarks":
        _arguments_of(module, words, monkeypatch)
    return _cannot(package)


def _arguments_of(module: str, words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a program with argparse read its words, and stop there."""
    parse = argparse.ArgumentParser.parse_args

    def only_read(parser: argparse.ArgumentParser, *_: Any) -> Any:
        try:
            parse(parser, list(words))
        except SystemExit:
            raise NotAsWritten(f"{module} does not take {' '.join(words)}") from None
        raise _Read

    with monkeypatch.context() as patch, pytest.raises(_Read):
        patch.setattr(argparse.ArgumentParser, "parse_args", only_read)
        runpy.run_module(module, run_name="__main__")


def _ray(call: Call, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    from ray.scripts.scripts import cli

    names, parameters = _parameters(arguments, cli)
    rest = list(parameters.get("entrypoint") or ())
    if file := parameters.get("cluster_config_file"):
        _files_exist([file])
    if rest:
        inner = Call(call.where, rest[0], tuple(rest[1:]))
        how = read(inner, Path.cwd(), monkeypatch)
        return f"{how}; submitted in {table.PROGRAM_RUNS_IN['ray job']}"
    return _cannot(f"ray {names[0]}")


def _curl(call: Call, arguments: list[str], _: pytest.MonkeyPatch) -> str:
    from serve.ingress import router

    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("-s", action="store_true")
    parser.add_argument("-H", action="append")
    parser.add_argument("-d")
    words = parser.parse_args(arguments)
    path = words.url.partition("/")[2] if "://" not in words.url else words.url.split("/", 3)[3]
    method = "GET" if words.d is None else "POST"
    served = {(r.path, how): r for r in router.routes for how in getattr(r, "methods", ())}
    if (f"/{path}", method) not in served:
        raise NotAsWritten(f"{method} /{path} is none of {sorted(served)}")
    if words.d is not None:
        if words.H != ["content-type: application/json"]:
            raise NotAsWritten(f"the service reads JSON, and {words.H} does not say so")
        body = served[f"/{path}", method].body_field.field_info.annotation
        body.model_validate_json(words.d)
    return f"read here, asked in {table.PROGRAM_RUNS_IN['curl']}"


def _serve(call: Call, arguments: list[str], _: pytest.MonkeyPatch) -> str:
    command, target, *words = arguments
    if command != "run":
        raise NotAsWritten(f"serve {command}: only `serve run` is read here")
    serve_application(target, dict(word.split("=", 1) for word in words))
    return table.PROGRAM_CANNOT["serve run"]


def serve_application(target: str, arguments: dict[str, str]) -> None:
    """Raises where there is no such builder of an application, or no such configuration."""
    module, _, function = target.partition(":")
    assert callable(getattr(import_module(module), function)), target
    overrides = [f"{key}={value}" for key, value in arguments.items() if key != "config"]
    load_config(Path(arguments["config"]), overrides)


def _installs(call: Call, arguments: list[str], _: pytest.MonkeyPatch) -> str:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for words in arguments:
        for named in re.findall(r"\[([\w,]+)\]", words):
            if unknown := set(named.split(",")) - extras.keys():
                raise NotAsWritten(f"pyproject.toml has no extra {unknown}")
    for option in ("--extra",):
        if option in arguments and arguments[arguments.index(option) + 1] not in extras:
            raise NotAsWritten(f"pyproject.toml has no {option} {arguments}")
    for option in ("--constraint", "--overrides", "-r"):
        if option in arguments and not Path(arguments[arguments.index(option) + 1]).is_file():
            raise NotAsWritten(f"the file of {option} does not exist")
    return _cannot(call.program)


def _kubectl(call: Call, arguments: list[str], _: pytest.MonkeyPatch) -> str:
    if arguments[:2] == ["apply", "-f"]:
        _files_exist(arguments[2:])
    elif arguments[:2] == ["logs", "-f"]:
        job = yaml.safe_load((ROOT / "cluster" / "kuberay" / "rayjob.yaml").read_text())
        if arguments[2] != f"job/{job['metadata']['name']}":
            raise NotAsWritten(f"the job is called {job['metadata']['name']}")
    elif arguments[:3] == ["create", "secret", "generic"]:
        mounted = (ROOT / "cluster" / "kuberay" / "rayservice.yaml").read_text()
        if f"secretName: {arguments[3]}" not in mounted:
            raise NotAsWritten(f"nothing mounts a secret {arguments[3]}")
    elif arguments[:2] == ["get", "secret"]:
        # The operator calls it after the cluster.
        cluster = yaml.safe_load((ROOT / "cluster" / "kuberay" / "raycluster.yaml").read_text())
        if arguments[2] != cluster["metadata"]["name"]:
            raise NotAsWritten(f"the cluster is called {cluster['metadata']['name']}")
    elif arguments[0] == "port-forward":
        known = [f"service/{one}" for one in _services()]
        if arguments[1] not in known:
            raise NotAsWritten(f"{arguments[1]} is none of {known}")
    else:
        raise NotAsWritten(f"kubectl {arguments} is read by nobody")
    return _cannot("kubectl")


def _services() -> Iterator[str]:
    """Names that KubeRay gives to the services of our manifests."""
    for file in (ROOT / "cluster" / "kuberay").glob("*.yaml"):
        manifest = yaml.safe_load(file.read_text())
        kind = "serve" if manifest["kind"] == "RayService" else "head"
        yield f"{manifest['metadata']['name']}-{kind}-svc"


def _docker(call: Call, arguments: list[str], _: pytest.MonkeyPatch) -> str:
    if arguments[0] == "build":
        _files_exist([arguments[arguments.index("-f") + 1]])
    return _cannot("docker")


def _hub(call: Call, arguments: list[str], _: pytest.MonkeyPatch) -> str:
    _is_installed("hf")
    # With --help it reads its words, refuses those that it does not know, and does nothing.
    done = subprocess.run(
        [Path(sys.executable).with_name("hf"), *arguments, "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise NotAsWritten(done.stderr)
    if arguments[0] == "download" and not HUB.fullmatch(arguments[1]):
        raise NotAsWritten(f"{arguments[1]} is no name on the Hub")
    return _cannot("hf")


def _viewer(call: Call, arguments: list[str], _: pytest.MonkeyPatch) -> str:
    _is_installed(call.program)
    return _cannot("viewers")


def _is_installed(program: str) -> None:
    if not Path(sys.executable).with_name(program).exists():
        raise NotAsWritten(f"the environment has no {program}")


def _other(call: Call, arguments: list[str], _: pytest.MonkeyPatch) -> str:
    if call.program == "ruff":
        _is_installed(call.program)
    _files_exist([word for word in arguments if word.startswith("tests/")])
    return _cannot(call.program)


_READERS: dict[str, Callable[[Call, list[str], pytest.MonkeyPatch], str]] = {
    "make": _make,
    "pytest": _pytest,
    "python": _python,
    "python3": _python,
    "python3.11": _python,
    "python3.12": _python,
    "ray": _ray,
    "curl": _curl,
    "serve": _serve,
    "pip": _installs,
    "uv": _installs,
    "kubectl": _kubectl,
    "hf": _hub,
    "docker": _docker,
    **dict.fromkeys(("wandb", "tensorboard", "mlflow", "trackio"), _viewer),
    **dict.fromkeys(
        ("ruff", "apt-get", "rm", "base64", "dpkg", "mountpoint", "sudo", "tests/fresh.sh"), _other
    ),
}


def json_of(text: str, where: str) -> Any:
    """JSON of a document; a reply of the service fits its schema."""
    from serve.schema import JudgeResponse

    value = json.loads(text)
    if isinstance(value, dict) and "first_negative" in value:
        JudgeResponse.model_validate(value)
    return value
