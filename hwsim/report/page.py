"""One HTML file that holds everything: text, tables and figures; no script, nothing that is fetched.

What is made here is `Html`; any other text is escaped where it is put in, so that no name can become markup. A number
of a table stands in a `data` element, whose value is what the CSV file says, to all its digits.
"""

import base64
import html
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.2; }
h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #8886; }
nav a { display: inline-block; margin-right: 0.8rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.85rem; overflow-wrap: normal; }
th, td { padding: 0.2rem 0.6rem; border-bottom: 1px solid #8884; text-align: left; vertical-align: top; }
td.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td.long { min-width: 14rem; }
@media (max-width: 40rem) { th, td { padding: 0.2rem 0.3rem; } }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; }
figcaption, .note { font-size: 0.85rem; opacity: 0.8; }
pre { overflow-x: auto; font-size: 0.8rem; }
@media (prefers-color-scheme: dark) { img { filter: invert(1) hue-rotate(180deg); } }
""".strip()
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
LONG = 40
"""Letters from which on a cell is given room to break lines in."""


class Html(str):
    """Text that is markup already."""


class Column(NamedTuple):
    """A column of a table: the key of its rows, its heading, and how its numbers are shown.

    scale: what is shown is this many times what the row (and the CSV) says. form: a format specification; without one
    numbers are shown with four significant digits, and whole where they are whole or large.
    """

    key: str
    heading: str = ""
    scale: float = 1
    form: str = ""


_PLAIN = Column("")


def escaped(text: object) -> Html:
    """Any text, so that it stands for itself.

    >>> escaped("<b> & 'c'")
    '&lt;b&gt; &amp; &#x27;c&#x27;'
    """
    return text if isinstance(text, Html) else Html(html.escape(str(text)))


def table(rows: Sequence[dict], columns: Iterable[Column | str]) -> Html:
    """Rows as a table; a key alone is a column under its own name."""
    columns = [Column(c) if isinstance(c, str) else c for c in columns]
    numeric = [all(_is_number(r.get(c.key, "")) or r.get(c.key, "") == "" for r in rows) for c in columns]
    out = ['<div class="wide"><table><thead><tr>']
    for c, right in zip(columns, numeric, strict=True):
        out.append(f'<th{_kind(right)} scope="col">{escaped(c.heading or c.key)}</th>')
    out.append("</tr></thead><tbody>")
    for r in rows:
        cells = (_cell(r.get(c.key, ""), c, right) for c, right in zip(columns, numeric, strict=True))
        out += ["<tr>", *cells, "</tr>"]
    return Html("".join((*out, "</tbody></table></div>")))


def figure(png: bytes, caption: str) -> Html:
    """A PNG inside the page."""
    data = base64.b64encode(png).decode()
    alt = html.escape(caption)
    return Html(f'<figure><img alt="{alt}" src="data:image/png;base64,{data}"><figcaption>{alt}</figcaption></figure>')


def folded(summary: str, *parts: str) -> Html:
    """Parts that are shown when their summary is clicked."""
    return Html(f"<details><summary>{escaped(summary)}</summary>{''.join(map(_part, parts))}</details>")


def verbatim(text: str) -> Html:
    """A file's text as it is."""
    return Html(f"<pre>{html.escape(text)}</pre>")


def page(title: str, sections: dict[str, Sequence[str]]) -> bytes:
    """The file: heading → parts, each a paragraph of plain text or `Html`. A heading "" has its parts on top."""
    named = [heading for heading in sections if heading]
    places = {heading: f"part-{i + 1}" for i, heading in enumerate(named)}
    links = "".join(f'<a href="#{places[h]}">{html.escape(h)}</a>' for h in named)
    body = [f"<h1>{html.escape(title)}</h1>", *map(_part, sections.get("", ())), f"<nav>{links}</nav>"]
    for heading in named:
        body.append(f'<section id="{places[heading]}"><h2>{html.escape(heading)}</h2>')
        body += [*map(_part, sections[heading]), "</section>"]
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{html.escape(title)}</title><style>\n{STYLE}\n</style>"
    )
    text = "\n".join(("<!doctype html>", f'<html lang="en"><head>{head}</head><body>', *body, "</body></html>\n"))
    return text.encode("utf-8", "backslashreplace")


def number(value: float, column: Column = _PLAIN) -> str:
    """What is shown of a number.

    >>> number(0.97714, Column("mean", scale=100, form=".2f")), number(1234567.8), number(0.00012345), number(7)
    ('97.71', '1 234 568', '0.0001234', '7')
    """
    value = value * column.scale
    if column.form and math.isfinite(value):
        return format(value, column.form)
    if not math.isfinite(value):
        return "unknown"
    whole = isinstance(value, int) or 1000 <= abs(value) < 1e15
    return f"{value:,.0f}".replace(",", " ") if whole else f"{value:.4g}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(right: bool) -> str:
    return ' class="number"' if right else ""


def _cell(value: object, column: Column, right: bool) -> str:
    if _is_number(value):
        exact = f"{value:.10g}" if isinstance(value, float) else str(value)
        return f'<td{_kind(right)}><data value="{exact}">{number(value, column)}</data></td>'
    long = ' class="long"' if len(str(value)) > LONG else _kind(right)
    return f"<td{long}>{escaped(value)}</td>"


def _part(part: str) -> str:
    return part if isinstance(part, Html) else f"<p>{html.escape(part)}</p>"
