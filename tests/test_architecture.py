"""The floors of the package: what imports what."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "trpo_brax"
FLOORS = {
    "errors": 1,
    "randomness": 1,
    "algorithm": 1,
    "checked": 2,
    "config": 3,
    "presets": 4,
    "host": 4,
    "diagnosis": 4,
    "environments": 4,
    "policy": 4,
    "evaluation": 5,
    "learner": 5,
    "runs": 6,
    "forensics": 7,
    "views": 7,
    "certification": 7,
    "benchmark": 8,
    "deployment": 8,
    "training": 8,
    "__init__": 9,
    "__main__": 9,
    "cli": 9,
}


def imported(file: Path) -> set[str]:
    """Return the parts of the package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] if "." in name else "__init__" for name in names if name.startswith("trpo_brax")}
    return found


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_import_runs_up(file: Path) -> None:
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert {part for part in imported(file) if part != own and FLOORS[part] >= FLOORS[own] < 9} == set()
