"""Every command, block and setting that the documents show holds as it is written.

What starts nothing runs here. What starts engines is read by its own program and planned, and
`table.py` says which test runs it, or what no test has that it needs.
"""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from pipelines.cli import app
from stepwiser.config import RunConfig, load_config
from stepwiser.config.reference import accepts, settings
from stepwiser.errors import UserError
from stepwiser.training.ablation import arms_of
from tests.documents import table
from tests.documents.blocks import (
    COMMENTED,
    DOCUMENTS,
    Block,
    carried,
    comments,
    console,
    fences,
    is_command,
    spans,
)
from tests.documents.place import furnish
from tests.documents.reading import (
    NotAsWritten,
    UsageError,
    json_of,
    read,
    run_stepwiser,
    serve_application,
)
from tests.documents.shell import Call, Shell
from tests.support.paths import ROOT

STAND_INS = {
    "/path/to/hf/model": "model",
    "/models/judge": "model",
    "/shared/": "shared/",
    "RUN/": "runs/embedded/",
}
METAVARIABLES = {"<stage>": "annotate", "RUN": "runs/embedded", "SOURCE": "train.jsonl"}
SUFFIXES = {"json", "jsonl", "parquet", "csv", "tsv", "md", "py", "yaml", "html", "svg", "pt"}


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    shell = Shell(tmp_path_factory.mktemp("documents"))
    furnish(shell.place)
    return shell


class Findings:
    """What is not as written, with its place; all of a document at once."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.wrong: list[str] = []

    def try_(self, where: object, what: Callable[[], str | None]) -> None:
        try:
            how = what()
        except (
            *(AssertionError, UserError, ValueError, TypeError, KeyError, SyntaxError),
            *(yaml.YAMLError, OSError, ImportError, AttributeError),
            *UsageError,
        ) as error:
            message = error.format_message() if isinstance(error, UsageError) else str(error)  # type: ignore[attr-defined]
            self.wrong.append(f"{where}: {message or repr(error)}")
        else:
            assert how, f"{where} is held by nothing"
            self.held.append(f"{where}: {how}")


def _stand_in(text: str) -> str:
    for old, new in STAND_INS.items():
        text = text.replace(old, new)
    return text


# --- blocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_blocks(document: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    findings = Findings()
    blocks = fences(document)
    for block in blocks:
        if block.language in ("sh", "bash"):
            for call in shell.read(str(block), _stand_in(block.text)):
                findings.try_(call, lambda call=call: read(call, shell.place, monkeypatch))  # type: ignore[misc]
        elif block.language == "console":
            for line, shown in console(block):
                findings.try_(
                    f"{block}: {line}",
                    lambda line=line, shown=shown: _terminal(line, shown, shell, monkeypatch),  # type: ignore[misc]
                )
        else:
            findings.try_(block, lambda block=block: _OTHER[block.language](block, shell.place))  # type: ignore[misc]
    assert not findings.wrong, "\n".join(findings.wrong)
    assert bool(findings.held) == bool(blocks)


def _terminal(line: str, shown: list[str], shell: Shell, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a command prints has the shape that is shown; of arithmetic, the very same text."""
    how, output = run_stepwiser(_stand_in(line), shell.place, monkeypatch)
    exact = line.startswith("stepwiser plan ")
    printed = [_shape(one, exact) for one in output.splitlines()]
    expected = [_shape(one, exact) for one in shown if one.strip() not in ("", "…")]
    printed, expected = ([one for one in lines if one] for lines in (printed, expected))
    missing = [one for one in expected if one not in printed]
    if missing:
        raise NotAsWritten(f"it does not print {missing}, but\n{output}")
    rows = [[one for one in lines if one.startswith("│")] for lines in (printed, expected)]
    if not exact and rows[0] != rows[1]:
        raise NotAsWritten(f"its table has the rows {rows[0]}, not {rows[1]}")
    return how


def _shape(line: str, exact: bool) -> str:
    if exact:
        return line.rstrip()
    if line.startswith("│"):
        return "│" + line.split("│")[1].strip()
    if line[:1] in "┌└├":
        return ""
    return re.sub(r"\d[\d.,]*", "#", line.strip())


def _python(block: Block, place: Path) -> str:
    """Its imports are there and its calls fit them; a file is written for what follows."""
    tree = ast.parse(block.text)
    names: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            module = import_module(node.module)
            names |= {
                alias.asname or alias.name: getattr(module, alias.name) for alias in node.names
            }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
            words = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            inspect.signature(names[node.func.id]).bind(*[None] * len(node.args), **words)
    if match := re.match(r"# (\w+\.py)\b", block.text):
        exec(compile(tree, str(block), "exec"), {})
        (place / match[1]).write_text(block.text)
        return f"runs here, as {match[1]}"
    return "compiled here; its imports and calls fit"


def _yaml(block: Block, place: Path) -> str:
    file = place / "block.yaml"
    file.write_text(block.text)
    raw = yaml.safe_load(block.text)
    if "applications" in raw:
        from ray.serve.schema import ServeDeploySchema

        for one in ServeDeploySchema.model_validate(raw).applications:
            serve_application(one.import_path, one.args)
        return "is a file for `serve deploy`"
    config = load_config(file)
    if config.ablate.arms:
        arms_of(config)
    return "is a configuration"


def _json(block: Block, _: Path) -> str:
    json_of(block.text, str(block))
    return "is JSON"


def _text(block: Block, _: Path) -> str:
    for line in block.text.splitlines():
        if is_command(line.strip().removeprefix("$ ")):
            raise NotAsWritten(f"{line} is a command in a block of text")
    return "is no command"


_OTHER: dict[str, Callable[[Block, Path], str]] = {
    "python": _python,
    "yaml": _yaml,
    "json": _json,
    "text": _text,
}


# --- commands and settings in the text, in comments and in the help -------------------------------


def _span(block: Block, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> str:
    """A command that is named, perhaps with placeholders: its words are those of its program."""
    words = [METAVARIABLES.get(word, word) for word in shlex.split(_stand_in(block.text))]
    words = [word.split("|")[0] for word in words if word not in ("…", "...")]
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    call = Call(str(block), words[0].removeprefix(".venv/bin/"), tuple(words[1:]))
    try:
        return read(call, shell.place, monkeypatch, execute=False)
    except UsageError as error:
        if type(error).__name__ != "MissingParameter":
            raise
        return "is named, not given"


def _settings(text: str) -> Iterator[str]:
    """Words that look like a setting: `section.key`, or either with a value."""
    for word in shlex.split(text) if text.count("'") % 2 == text.count('"') % 2 == 0 else ():
        key, has_value, _ = word.partition("=")
        first, *rest = key.split(".")
        if not re.fullmatch(r"[a-z_]+(\.[\w…*]+)*", key) or first not in RunConfig.model_fields:
            continue
        if (rest and rest[-1] not in SUFFIXES) or has_value:
            yield word


def _check_settings(block: Block) -> str:
    for word in _settings(block.text):
        accepts(word)
    return "names settings that are"


def _check_text(blocks: list[Block], shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = Findings()
    for block in blocks:
        where = f"{block}: {block.text.strip()}"
        if block.language == "sh":
            for call in shell.read(str(block), _stand_in(block.text)):
                findings.try_(call, lambda call=call: read(call, shell.place, monkeypatch))  # type: ignore[misc]
        elif is_command(block.text):
            findings.try_(where, lambda block=block: _span(block, shell, monkeypatch))  # type: ignore[misc]
        else:
            findings.try_(where, lambda block=block: _check_settings(block))  # type: ignore[misc]
    assert not findings.wrong, "\n".join(findings.wrong)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_what_the_text_names(document: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    _check_text([*spans(document)], shell, monkeypatch)


@pytest.mark.parametrize(
    "file",
    [*COMMENTED, ROOT / "cluster" / "Dockerfile"],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_what_comments_and_cluster_files_name(
    file: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = [*comments(file)]
    if file.is_relative_to(ROOT / "cluster"):
        blocks += carried(file)
        assert blocks or file.parent.name == "iam", "there are commands in it"
    _check_text(blocks, shell, monkeypatch)


def _helps(command: Any, name: str) -> Iterator[tuple[str, str]]:
    for text in (command.help, command.epilog):
        yield name, text or ""
    for parameter in command.params:
        yield f"{name} {parameter.name}", getattr(parameter, "help", None) or ""
    for inner, further in getattr(command, "commands", {}).items():
        yield from _helps(further, f"{name} {inner}")


def test_what_the_help_and_the_descriptions_of_keys_name(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*_helps(typer.main.get_command(app), "stepwiser")]
    texts += [(setting.key, setting.meaning) for setting in settings()]
    blocks = [
        Block(ROOT / "pipelines" / "cli" / "app.py", 1, where, " ".join(match.split()))
        for where, text in texts
        for match in re.findall(r"`([^`]+)`", text)
    ]
    assert any("train.steps=20 run_dir=runs/mine" in block.text for block in blocks)
    _check_text(blocks, shell, monkeypatch)


# --- the table ------------------------------------------------------------------------------------


def test_every_scenario_runs_in_a_test_or_says_what_it_needs() -> None:
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml")}
    assert files == table.CONFIG_RUNS_IN.keys() | table.CONFIG_CANNOT.keys()
    assert not table.CONFIG_RUNS_IN.keys() & table.CONFIG_CANNOT.keys()
    for name in table.CONFIG_CANNOT:
        assert load_config(ROOT / name).cluster.expected_gpus > 0, f"{name} needs no GPU: run it"


def test_the_tests_that_the_table_names_exist() -> None:
    named = {*table.RUNS_IN.values(), *table.CONFIG_RUNS_IN.values(), *table.JOBS.values()}
    for test in named | set(table.PROGRAM_RUNS_IN.values()):
        file, _, function = test.partition("::")
        assert f"def {function}(" in (ROOT / file).read_text(), test


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("stepwiser trian", "no command 'trian'"),
        ("stepwiser train --plam", "No such option"),
        ("stepwiser train train.step=3", "train.steps"),
        ("stepwiser train train.steps=many", "'many'"),
        ("stepwiser train -c configs/none.yaml", "configs/none.yaml does not exist"),
        ("stepwiser annotate data.source=none.jsonl", "none.jsonl is no file"),
        ("stepwiser evaluate evaluate.source=none.json", "none.json"),
        ("stepwiser train policy_model=some/folder/of/mine", "is no folder and no name"),
        ("stepwiser train -c configs/gsm8k.yaml cluster.expected_gpus=0", "short"),
        ("stepwiser ablate --only nothing", "none of ablate.arms"),
        ("stepwiser quickstart train.group_size=1", "teaches nothing"),
        ("stepwiser status runs/none", "not a run directory"),
        ("stepwiser plan annotate --gpu 8xA100", "No such option"),
        ("make nothing", "nothing"),
        ("pytest tests/nowhere", "tests/nowhere does not exist"),
        ("python -m benchmarks.nothing", "no module"),
        ("python -m benchmarks.annotation --only everything", "does not take"),
        ("ray up nothing.yaml/x", "does not exist"),
        ("ray job submit --adress x -- stepwiser train", "No such option"),
        ("ray job submit -- stepwiser train --shard 0/2", "No such option"),
        ("pip install -e .[tpu]", "no extra"),
        ("kubectl logs -f job/another", "is called stepwiser-annotate"),
        ("docker build -f cluster/None .", "does not exist"),
        ("curl localhost:8000/v1/judges -d '{}'", "none of"),
        ("curl localhost:8000/v1/judge -H 'content-type: application/json' -d '{}'", "problem"),
        ("hf download nowhere", "no name on the Hub"),
        ("hf download a/model --repo-typ dataset", "No such option"),
        ("uptime", "nobody reads"),
    ],
)
def test_what_is_not_as_written_is_found(
    line: str, words: str, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = Findings()
    (call,) = shell.read("here", line)
    findings.try_(call, lambda: read(call, shell.place, monkeypatch))
    (wrong,) = findings.wrong
    assert words in " ".join(wrong.split())
