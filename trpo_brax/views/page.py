"""Pages that a person reads: one self-contained HTML file each, which fetches nothing."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from typing import Any

# What the page may load is nothing but what is in it: a run folder's texts are anybody's.
_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --dim: #57606a; --line: #d0d7de; --paper: #fff; --tint: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --dim: #9198a1; --line: #3d444d; --paper: #0d1117; --tint: #151b23; } }
* { box-sizing: border-box; }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .4rem; }
p.sub, .dim, figcaption { color: var(--dim); }
img, video { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 6px; }
figure { margin: 1rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; }
pre { background: var(--tint); border: 1px solid var(--line); border-radius: 6px; padding: .8rem; overflow-x: auto;
  font-size: .85rem; }
ol.statements li { margin: .4rem 0; }
.problem { border-left: 4px solid #d55e00; padding-left: .8rem; margin: .6rem 0; }
.note { border-left: 4px solid #0072b2; padding-left: .8rem; margin: .6rem 0; }
"""


def document(title: str, body: str) -> str:
    """Return a whole page around HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def text(value: object) -> str:
    """Return anybody's text as HTML that shows it."""
    return html.escape(str(value), quote=True)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table; numbers stand to the right, and None is a dash."""
    rows = [list(row) for row in rows]
    right = [any(isinstance(row[at], (int, float)) for row in rows) for at in range(len(header))]
    head = "".join(_cell("th", name, number) for name, number in zip(header, right, strict=True))
    lines = ("".join(_cell("td", _shown(x), number) for x, number in zip(row, right, strict=True)) for row in rows)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'


def picture(png: bytes, caption: str) -> str:
    """Return a picture, inside the page."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<figure><img alt="{text(caption)}" src="{source}"><figcaption>{text(caption)}</figcaption></figure>'


def video(mp4: bytes, caption: str) -> str:
    """Return a video, inside the page; it waits to be started."""
    source = f"data:video/mp4;base64,{base64.b64encode(mp4).decode()}"
    return (
        f'<figure><video controls loop muted playsinline preload="metadata" src="{source}"></video>'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def _cell(tag: str, content: str, number: bool) -> str:
    kind = ' class="number"' if number else ""
    return f"<{tag}{kind}>{text(content)}</{tag}>"


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,.6g}" if isinstance(value, float) else str(value)
