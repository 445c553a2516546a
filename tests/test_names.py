"""Names: those of the field in the code, and in the documents only those that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from stepwiser.config.loading import valid_keys
from tests.support.paths import ROOT
from tests.test_house import PACKAGES, sources

# Words that named modules and classes here once and told a reader of verl, vLLM or TRL nothing.
PRIVATE = {
    "board", "company", "keeper", "roster", "lent", "tally", "ticket", "attempt", "attempts",
    "draws", "trusting", "feeding", "watching", "reviewing", "review", "reviews",
}  # fmt: skip
# Plain English in a function or a variable, no name for a module, a class or a setting.
PLAIN = {"line", "given", "judged", "draw"}


def _parts(name: str) -> set[str]:
    return {part.lower() for part in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)}


def _public(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    """Names of a module that others may use, and whether each is a class."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield node.name, True
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, False
            yield from ((argument.arg, False) for argument in node.args.args + node.args.kwonlyargs)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, False
    for node in tree.body:
        if isinstance(node, ast.Assign):
            yield from ((t.id, False) for t in node.targets if isinstance(t, ast.Name))


def test_modules_and_public_names_use_words_of_the_field() -> None:
    wrong = []
    for package in PACKAGES:
        for path in sources(package):
            where = str(path.relative_to(ROOT))
            if _parts(path.stem) & (PRIVATE | PLAIN):
                wrong.append(where)
            for name, is_class in _public(ast.parse(path.read_text(), where)):
                banned = PRIVATE | PLAIN if is_class else PRIVATE
                if not name.startswith("_") and _parts(name) & banned:
                    wrong.append(f"{where}: {name}")
    assert not wrong, "\n".join(wrong)


def test_settings_use_words_of_the_field() -> None:
    wrong = [key for key in valid_keys() if _parts(key.replace(".", "_")) & (PRIVATE | PLAIN)]
    assert not wrong


def _defined(path: Path) -> set[str]:
    """Classes, functions and constants of a module, methods as Class.method."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(), str(path)).body:
        if isinstance(node, ast.ClassDef):
            found.add(node.name)
            found |= {
                f"{node.name}.{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
            }
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_documents_name_what_exists(document: Path) -> None:
    """Every file in backquotes, and every name that stands in backquotes behind one."""
    text = document.read_text()
    base = ROOT / "stepwiser" if document.stem == "glossary" else ROOT
    wrong = []
    for match in re.finditer(r"`([\w.-]+/[\w./-]*\w\.py)`((?:,? `[A-Za-z_][\w.]*`)*)", text):
        path = next((p for p in (base / match[1], ROOT / match[1]) if p.is_file()), None)
        if path is None:
            wrong.append(match[1])
            continue
        names = re.findall(r"`([\w.]+)`", match[2])
        wrong += [f"{match[1]}: {name}" for name in names if name not in _defined(path)]
    wrong += [
        link
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
        if not (document.parent / link).exists()
    ]
    assert not wrong, f"{document.name} names what is not there: {wrong}"
