"""YAML files and `key=value` overrides into a checked `RunConfig`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from stepwiser.config.aliases import RENAMED, current_key, rename_keys
from stepwiser.config.impossible import refuse_impossible
from stepwiser.config.models import OPERATIONAL_KEYS, OPERATIONAL_SECTIONS, RunConfig
from stepwiser.errors import UserError

# `answer_delimiter: ####`, as people write GSM8K's: nothing, to YAML.
_HIDDEN_DELIMITER = re.compile(r"(?m)^\s*answer_delimiter:[ \t]+(#[^\s].*?)\s*$")


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read one scenario, or only defaults without one; `overrides` are `section.key=value`.

    The value of a key that holds text is that text, `#` and `: ` included; every other value is in
    YAML notation. Either may be put in YAML's quotes, which changes nothing but `null`.

    Raises UserError for a missing file, an unknown key (naming the nearest valid one), a value of
    the wrong type (naming key, value and what was expected), or settings that can never work.
    """
    raw, where = (_read(Path(path)), str(path)) if path is not None else ({}, "defaults")
    return override_config(raw, where, overrides)


def override_config(raw: dict[str, Any], where: str, overrides: Sequence[str]) -> RunConfig:
    """`load_config` of a mapping, which is changed; ``where``: what errors call it."""
    # Before the overrides, so that a key is said to be unknown where it stands.
    _refuse_unknown(raw, where)
    overridden = {}
    for override in overrides:
        key = _apply(raw, override)
        _refuse_unknown(raw, f"override {override!r}")
        overridden[key] = f"override {override!r}"
    config = parse_config(raw, where, overridden)
    refuse_impossible(config, where)
    return config


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        known = sorted(p.name for p in file.parent.glob("*.yaml")) if file.parent.is_dir() else []
        raise UserError(f"config {file} does not exist; in that folder are: {known or 'none'}")
    try:
        # A signature (BOM) at the start, as some editors write it, is no part of the first key.
        text = file.read_text("utf-8-sig")
        raw = yaml.safe_load(text) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"config {file} is not valid YAML: {error}") from error
    if hidden := _HIDDEN_DELIMITER.search(text):
        raise UserError(
            f"config {file}: {hidden[0].strip()} is a comment to YAML, so that answer_delimiter "
            f'has no value: put it in quotes, answer_delimiter: "{hidden[1]}"'
        )
    if not isinstance(raw, dict):
        raise UserError(f"config {file} must be a mapping of keys, not {type(raw).__name__}")
    return raw


def parse_config(
    raw: dict[str, Any], where: str = "config", overridden: Mapping[str, str] = MappingProxyType({})
) -> RunConfig:
    """Check a mapping against the schema.

    ``overridden``: what to name instead of ``where`` for the value of a dotted key.
    """
    if not isinstance(raw, dict):
        raise UserError(f"{where} must be a mapping of keys, not {type(raw).__name__}")
    raw = rename_keys(raw, where)
    _refuse_unknown(raw, where)
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        wrong: dict[str, list[str]] = {}
        for one in error.errors():
            key = ".".join(map(str, one["loc"]))
            # A value in a list, or one of several types, has more to its name.
            known = [name for name in overridden if f"{key}.".startswith(f"{name}.")]
            wrong.setdefault(overridden[known[-1]] if known else where, []).append(_explain(one))
        raise UserError(
            "; ".join(f"{where}: {'; '.join(reasons)}" for where, reasons in wrong.items())
        ) from error


def _apply(raw: dict[str, Any], override: str) -> str:
    """Returns the dotted key that is set."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"override {override!r} is not of the form key=value")
    where = f"override {override!r}"
    set_key(raw, key, value_of(key, text, where), where)
    return RENAMED.get(key, key)


def value_of(key: str, text: str, where: str) -> Any:
    """What an override's text stands for: text where the key holds text, else YAML."""
    kinds = _kinds_of(RENAMED.get(key, key))
    is_list = text[:1] == "[" and any(get_origin(kind) is tuple for kind in kinds)
    if str not in kinds or is_list:
        return _yaml_value(text, where)
    if text in ("", "null", "~") and type(None) in kinds:
        return None
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        value = _yaml_value(text, where)
        return value if isinstance(value, str) else text
    return text


def _yaml_value(text: str, where: str) -> Any:
    if not text:
        return None
    try:
        value = yaml.safe_load(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: the value is not valid YAML: {error}") from error
    # What YAML takes for a comment was meant to be a part of the value, or is a mistake.
    rest = text if node is None else text[node.end_mark.index :]
    if rest.strip():
        raise UserError(
            f"{where}: {rest.strip()!r} is a comment to YAML and would be lost: leave it out, or "
            "put the value in quotes"
        )
    return value


def _kinds_of(key: str) -> set[Any]:
    """Types that the value of a dotted key may have; names to choose from are text. Empty for a
    key that does not exist, or one of a mapping."""
    kind: Any = RunConfig
    for name in key.split("."):
        fields = getattr(kind, "model_fields", {})
        if name not in fields:
            return set()
        kind = fields[name].annotation
    members = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    found: set[Any] = set()
    for member in members:
        while get_origin(member) is Annotated:
            member = get_args(member)[0]
        if get_origin(member) is Literal:
            found.update(type(choice) for choice in get_args(member))
        else:
            found.add(member)
    return found


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
    return f"{key or 'config'}: {error['msg']} (got {_short(error.get('input'))})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def valid_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted key the configuration knows, sections included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if section := section_of(field.annotation):
            yield from valid_keys(section, f"{prefix}{name}.")


def section_of(kind: Any) -> type[BaseModel] | None:
    """The section that a type is, or is a list of; None for a value."""
    for one in (kind, *get_args(kind)):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
    return None


# --- keys that do not exist -----------------------------------------------------------------------


def _refuse_unknown(raw: dict[str, Any], where: str) -> None:
    """Raise UserError with every key that does not exist, nor did by an old name."""
    unknown = [unknown_key(key) for key in _unknown(raw, RunConfig) if key not in RENAMED]
    if unknown:
        raise UserError(f"{where}: " + "; ".join(unknown))


def _unknown(raw: dict[Any, Any], model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, value in raw.items():
        key = f"{prefix}{name}"
        if name not in model.model_fields:
            yield from _leaves(value, key)
        elif section := section_of(model.model_fields[name].annotation):
            if isinstance(value, dict):
                yield from _unknown(value, section, f"{key}.")
            elif isinstance(value, list | tuple):
                for position, one in enumerate(value):
                    if isinstance(one, dict):
                        yield from _unknown(one, section, f"{key}.{position}.")


def _leaves(value: Any, key: str) -> Iterator[str]:
    """Keys of a section that does not exist: what each was meant to be says more than its name."""
    if not isinstance(value, dict) or not value:
        yield key
        return
    for name, inner in value.items():
        yield from _leaves(inner, f"{key}.{name}")


def unknown_key(key: str) -> str:
    """What to say of a key that does not exist: the nearest that do."""
    nearest = nearest_keys(key)
    if not nearest:
        return f"unknown key {key}; configs/README.md lists all"
    *others, last = nearest
    return (
        f"unknown key {key}; did you mean "
        + (", ".join(others) + " or " if others else "")
        + (f"{last}?")
    )


def nearest_keys(key: str) -> list[str]:
    """Keys that may have been meant, at most three: a slip in the name, in the section, in both."""
    section, _, name = re.sub(r"\.\d+(?=\.|$)", "", key).rpartition(".")
    known = [*valid_keys()]
    homes: dict[str, list[str]] = {}
    for one in known:
        home, _, leaf = one.rpartition(".")
        homes.setdefault(home, []).append(leaf)
    if section not in homes:
        section = next(iter(difflib.get_close_matches(section, homes, n=1)), section)
    within = homes.get(section, [])
    for cutoff, elsewhere in ((0.75, 0.8), (0.5, 0.7)):
        if close := difflib.get_close_matches(name, within, n=1, cutoff=cutoff):
            return [f"{section}.{close[0]}".lstrip(".")]
        # The same name elsewhere, in the same part of the configuration first.
        leaves = {leaf for names in homes.values() for leaf in names}
        for meant in difflib.get_close_matches(name, leaves, n=1, cutoff=elsewhere):
            found = [one for one in known if one.rpartition(".")[2] == meant]
            part = section.partition(".")[0]
            return sorted(found, key=lambda one: (one.split(".")[0] != part, one.count(".")))[:3]
    return []


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
