"""All keys of the configuration as a page: type, default, unit, meaning and an example of each.

    python -m stepwiser.config.reference > configs/README.md

writes it from the models, so that a key says what it is in one place. Examples are values of the
scenarios in `configs/`, and where none sets a key the one that its field gives.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from stepwiser.config.aliases import RENAMED
from stepwiser.config.base import PURE, Unit
from stepwiser.config.loading import section_of, unknown_key, value_of
from stepwiser.config.models import RunConfig
from stepwiser.errors import UserError

SCENARIOS = Path(__file__).resolve().parents[2] / "configs"
LONG = 40
"""Characters of a default that has a line of its own below the table."""


@dataclass(frozen=True)
class Setting:
    """One key."""

    key: str
    """Dotted; `[]` behind a list stands for any of its entries."""
    field: FieldInfo
    default: Any
    """As in a file; Ellipsis where there is none."""

    @property
    def meaning(self) -> str:
        return " ".join((self.field.description or "").split())

    @property
    def type(self) -> str:
        """In words of a file: whole number, text, one of some names."""
        return _type_of(self.field.annotation, self.field.metadata)

    @property
    def units(self) -> list[Unit]:
        """What a number counts or measures; empty for what is none."""
        return list(dict.fromkeys(_units(self.field)))


def settings(
    model: type[BaseModel] = RunConfig, prefix: str = "", default: BaseModel | None = None
) -> Iterator[Setting]:
    """Every key that holds a value, in the order of the models; sections are walked into."""
    for name, field in model.model_fields.items():
        key = prefix + name
        given = getattr(default, name) if default is not None else _default_of(field)
        inner = section_of(field.annotation)
        if inner is None:
            yield Setting(key, field, _plain(given))
            continue
        in_list = isinstance(given, tuple)
        if in_list:
            yield Setting(key, field, _plain(given))
        start = given if isinstance(given, BaseModel) else None
        yield from settings(inner, f"{key}[]." if in_list else f"{key}.", start)


def _default_of(field: FieldInfo) -> Any:
    return ... if field.is_required() else field.get_default(call_default_factory=True)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _units(field: FieldInfo) -> Iterator[Unit]:
    kinds: list[Any] = [field.annotation]
    yield from (one for one in field.metadata if isinstance(one, Unit))
    while kinds:
        kind = kinds.pop(0)
        if get_origin(kind) is Annotated:
            yield from (one for one in get_args(kind)[1:] if isinstance(one, Unit))
        kinds += [one for one in get_args(kind) if get_origin(kind) is not Literal]


# --- types in words -------------------------------------------------------------------------------

_NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", Any: "any"}


def _type_of(kind: Any, metadata: Any = ()) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _type_of(inner[0], (*inner[1:], *metadata))
    if origin in (Union, UnionType):
        # Names to choose from are one choice.
        names = [name for one in inner if get_origin(one) is Literal for name in get_args(one)]
        words = [_type_of(Literal[*names])] if names else []
        others = [one for one in inner if one is not NoneType and get_origin(one) is not Literal]
        words += [_type_of(one, metadata) for one in others]
        return ", or ".join([*dict.fromkeys(words), *(["null"] if NoneType in inner else [])])
    if origin is Literal:
        return "one of " + ", ".join(f"`{one}`" for one in inner)
    if origin in (tuple, list):
        held = section_of(kind)
        return "list of " + (
            "{" + ", ".join(held.model_fields) + "}" if held else _type_of(inner[0])
        )
    if origin is dict:
        return "mapping of " + " to ".join(_type_of(one) for one in inner)
    return _NAMES[kind] + _bounds(metadata)


def _bounds(metadata: Any) -> str:
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    found: dict[str, str] = {}
    for one in _flat(metadata):
        for name, word in words.items():
            if (bound := getattr(one, name, None)) is not None:
                found[word] = f"{bound:g}"
    return "".join(f", {word} {value}" for word, value in found.items())


def _flat(metadata: Any) -> Iterator[Any]:
    for one in metadata:
        yield from one.metadata if isinstance(one, FieldInfo) else (one,)


# --- examples -------------------------------------------------------------------------------------


def example_of(setting: Setting, scenarios: Mapping[str, Mapping[str, Any]]) -> str:
    """Overrides as a person types them: the field's own, else what a scenario sets."""
    value: Any = ...
    if setting.field.examples:
        value = setting.field.examples[0]
        if str(value).startswith(setting.key.partition("[")[0]):
            return str(value)  # whole, as it needs other keys, or a list around it
    else:
        others = [flat[setting.key] for flat in scenarios.values() if setting.key in flat]
        if setting.field.annotation is bool:
            others.append(not setting.default)
        elif get_origin(setting.field.annotation) is Literal:
            others += get_args(setting.field.annotation)
        value = next((one for one in others if one != setting.default), ...)
    if value is ...:
        return ""
    if "[]." in setting.key:
        key, _, name = setting.key.partition("[].")
        return f"{key}='[{{{name}: {_plain_text(value)}}}]'"
    return f"{setting.key}={_typed(value)}"


def _typed(value: Any) -> str:
    """A value as it is typed behind `key=` in a shell."""
    text = _plain_text(value)
    if isinstance(value, str) and ("\n" in value or value != value.strip()):
        return f"'{json.dumps(value, ensure_ascii=False)}'"
    return f"'{text}'" if re.search(r"[\s#{}\[\]*$\"<>]", text) else text


def _plain_text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def scenario_values() -> dict[str, dict[str, Any]]:
    """Dotted keys and values of each shipped scenario, by its name."""
    return {
        path.stem: dict(_dotted(yaml.safe_load(path.read_text(encoding="utf-8"))))
        for path in sorted(SCENARIOS.glob("*.yaml"), key=lambda path: (len(path.stem), path.stem))
    }


def _dotted(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        yield f"{prefix}{key}", value
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")


# --- a key, and a value for it --------------------------------------------------------------------


def accepts(word: str) -> None:
    """Raise UserError unless a key exists and could have the value that stands behind it.

    What is no key of its own, but stands for several (`train.live_*`, `annotate.…`), needs one that
    fits. Values in small dots or capitals (`…`, `N`) stand for any.
    """
    key, has_value, text = word.partition("=")
    key = RENAMED.get(key, key)
    if re.search(r"[*…]", key):
        pattern = re.escape(key).replace(r"\*", ".*").replace("…", ".*")
        if not any(re.fullmatch(pattern, one) for one in _all_keys()):
            raise UserError(f"no key fits {key}")
        return
    fields: Mapping[str, FieldInfo] = RunConfig.model_fields
    names = key.split(".")
    for position, name in enumerate(names):
        if name not in fields:
            raise UserError(unknown_key(key))
        field = fields[name]
        if get_origin(field.annotation) is dict:
            return
        if position < len(names) - 1:
            inner = section_of(field.annotation)
            fields = inner.model_fields if inner else {}
    if not has_value or re.search(r"…|\b[A-Z]+\b", text):
        return
    kind: Any = Annotated[field.annotation, PURE, *field.metadata]
    try:
        TypeAdapter(kind).validate_python(value_of(key, text, word))
    except ValidationError as error:
        raise UserError(f"{word}: {error.errors()[0]['msg']}") from error


def _all_keys() -> Iterator[str]:
    for setting in settings():
        yield setting.key.replace("[]", "")


# --- the page -------------------------------------------------------------------------------------

HEAD = """# All settings

Made by `python -m stepwiser.config.reference > configs/README.md`; change the models in
`stepwiser/config/` instead.

A scenario is a YAML file with these keys, a section under each heading; what it leaves out has its
default. On the command line `section.key=value` goes before the file, as in
`stepwiser train train.steps=20`. The value of a key that holds text is taken as it stands, or is in
YAML's quotes; any other is written as in YAML. An unknown key is refused, with the nearest known
one. `[]` stands for any entry of a list, which is set as a whole.
"""


def page() -> str:
    """The page, in Markdown."""
    groups: dict[str, list[Setting]] = {}
    for setting in settings():
        groups.setdefault(setting.key.rpartition(".")[0], []).append(setting)
    scenarios = scenario_values()
    return HEAD + "".join(
        _group(name, members, scenarios) for name, members in sorted(groups.items(), key=_first)
    )


def _first(group: tuple[str, Any]) -> int:
    """Sections in the order of the configuration, what is in them behind it."""
    section = re.split(r"[.\[]", group[0])[0]
    return [*RunConfig.model_fields].index(section) if section else -1


def _group(name: str, members: list[Setting], scenarios: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["", f"## {name or 'The run'}", "", _about(name), ""]
    lines += ["| key | type | default | unit | meaning | example |", "|---|---|---|---|---|---|"]
    long = []
    for setting in members:
        default = (
            "required" if setting.default is ... else f"`{_cell(_plain_text(setting.default))}`"
        )
        if isinstance(setting.default, str) and len(setting.default) > LONG:
            long.append(setting)
            default = "below"
        cells = (
            f"`{setting.key}`",
            setting.type,
            "empty" if setting.default == "" else default,
            _unit(setting),
            setting.meaning,
            f"`{_cell(example_of(setting, scenarios))}`",
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    for setting in long:
        lines += ["", f"`{setting.key}`:", "", "```text", setting.default, "```"]
    return "\n".join([*lines, ""])


def _about(name: str) -> str:
    """The first paragraph of the section's own words."""
    model: type[BaseModel] = RunConfig
    for part in re.findall(r"\w+", name):
        model = section_of(model.model_fields[part].annotation) or model
    return " ".join((model.__doc__ or "").partition("\n\n")[0].split())


def _unit(setting: Setting) -> str:
    return " or ".join(unit.name for unit in setting.units if unit != PURE) or "–"


def _cell(text: str) -> str:
    return text.replace("\n", "\\n")


if __name__ == "__main__":
    sys.stdout.write(page())
