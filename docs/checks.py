"""What mkdocs checks of these pages beyond their links; each finding is a warning, which fails a strict build.

Every name in a package's `__all__` stands on the API page, which shows only what has a docstring. Every file that
a page, the README or the changelog names or links to exists. Figures and records come from experiments/results.
"""

from __future__ import annotations

import ast
import logging
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
RESULTS = "experiments/results"
_LOG = logging.getLogger("mkdocs.hooks.checks")
_NAMED = re.compile(r"`((?:trpo_brax|tests|experiments|requirements|docs)/[^\s`*]*)`")
_LINKED = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the recorded results to the site."""
    for path in sorted((ROOT / RESULTS).rglob("*.*")):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Look for the files named, and turn links to results, which lie beside docs/, into links within the site."""
    _report(page.file.src_uri, (name for name in _NAMED.findall(markdown) if not (ROOT / name).exists()))
    return markdown.replace(f"](../{RESULTS}/", f"]({RESULTS}/")


def on_post_build(config: MkDocsConfig) -> None:
    """Look for what the pages outside docs/ name, and for the public names among the documented ones."""
    for page in ("README.md", "CHANGELOG.md"):
        text = (ROOT / page).read_text()
        _report(page, (name for name in _NAMED.findall(text) + _LINKED.findall(text) if not (ROOT / name).exists()))
    inventory = zlib.decompress((Path(config.site_dir) / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    documented = {line.split(" ", 1)[0] for line in inventory.splitlines()}
    # A function in a module of its own name is listed there: the package's page takes the module for it.
    missing = (name for name in _public_names() if not {name, f"{name}.{name.rpartition('.')[2]}"} & documented)
    _report("docs/api.md", missing, "has no entry, or no docstring")


def _public_names() -> Iterator[str]:
    for file in sorted((ROOT / "trpo_brax").rglob("__init__.py")):
        module = ".".join(file.parent.relative_to(ROOT).parts)
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                yield from (f"{module}.{name}" for name in ast.literal_eval(node.value))


def _report(page: str, names: Iterator[str], what: str = "does not exist") -> None:
    for name in names:
        _LOG.warning(f"{page}: {name} {what}")
