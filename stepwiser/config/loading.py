"""YAML files and `key=value` overrides into a checked `RunConfig`."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from stepwiser.config.aliases import current_key, rename_keys
from stepwiser.config.models import OPERATIONAL_KEYS, OPERATIONAL_SECTIONS, RunConfig
from stepwiser.errors import UserError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read one scenario; `overrides` are `section.key=value`, the value in YAML notation.

    Raises UserError for a missing file, an unknown key (naming the nearest valid one) or a value
    of the wrong type (naming key, value and what was expected).
    """
    file = Path(path)
    if not file.is_file():
        known = sorted(p.name for p in file.parent.glob("*.yaml")) if file.parent.is_dir() else []
        raise UserError(f"config {file} does not exist; in that folder are: {known or 'none'}")
    try:
        raw = yaml.safe_load(file.read_text()) or {}
    except yaml.YAMLError as error:
        raise UserError(f"config {file} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"config {file} must be a mapping of keys, not {type(raw).__name__}")
    for override in overrides:
        _apply(raw, override)
    return parse_config(raw, where=str(file))


def parse_config(raw: dict[str, Any], where: str = "config") -> RunConfig:
    """Check a mapping against the schema."""
    if not isinstance(raw, dict):
        raise UserError(f"{where} must be a mapping of keys, not {type(raw).__name__}")
    try:
        return RunConfig.model_validate(rename_keys(raw, where))
    except ValidationError as error:
        raise UserError(f"{where}: " + "; ".join(_explain(e) for e in error.errors())) from error


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"override {override!r} is not of the form key=value")
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: the value is not valid YAML: {error}") from error
    set_key(raw, key, value, f"override {override!r}")


def set_key(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set a dotted key of a mapping as YAML gives it, making the sections that it names.

    A key that was renamed is set by its present name.
    """
    node = raw
    *parents, leaf = current_key(key, where).split(".")
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"{where}: {parent} is a value, not a section")
        node = child
    node[leaf] = value


def _explain(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(key, list(valid_keys()), n=1, cutoff=0.5)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        return f"unknown key {key}{hint}"
    return f"{key or 'config'}: {error['msg']} (got {_short(error.get('input'))})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def valid_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted key the configuration knows."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from valid_keys(kind, f"{prefix}{name}.")


def flatten(config: RunConfig) -> dict[str, Any]:
    """Dotted keys to plain values."""

    def walk(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return dict(walk(config.model_dump(mode="json"), ""))


def difference(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Keys that decide what a run computes and are not the same in both."""
    before, after = flatten(old), flatten(new)
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
        and key.split(".")[0] not in OPERATIONAL_SECTIONS
        and key not in OPERATIONAL_KEYS
    }
