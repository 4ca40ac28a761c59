"""CSV files: one header, units in the column names, the same bytes for the same numbers."""

import csv
import io
from collections.abc import Iterable, Sequence


def csv_bytes(rows: Iterable[dict], columns: Sequence[str]) -> bytes:
    """Rows as CSV in the order of `columns`. Floats have 10 significant digits; a row with other keys is an error."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.10g}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue().encode()


def aligned(rows: Sequence[dict], columns: Sequence[str] | None = None) -> str:
    """Rows as a text table for the screen: numbers right, text left."""
    columns = columns or list(rows[0])
    cells = [[_cell(row.get(c, "")) for c in columns] for row in rows]
    widths = [max(len(str(c)), *(len(r[i]) for r in cells)) for i, c in enumerate(columns)]
    right = [all(isinstance(row.get(c, ""), int | float) for row in rows) for c in columns]

    def line(values: Sequence[str]) -> str:
        pairs = zip(values, widths, right, strict=True)
        return "  ".join(v.rjust(w) if r else v.ljust(w) for v, w, r in pairs).rstrip()

    return "\n".join([line(columns), *(line(r) for r in cells)])


def _cell(value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
