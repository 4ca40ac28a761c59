"""`hwsim bench --report DIR`: every table of speed and memory in turn, a figure, and a page that says what they say.

Each of `bench_parts.PARTS` is run as its own `hwsim bench` command and writes speed-NAME.csv. A table is kept when its
command, hwsim's code, the machine's processor and torch are those of speed.json, so that an interrupted report goes on.
Ratios of the page and of the figure compare ways with their better allocator each; memory is with the default one.
"""

import contextlib
import csv
import hashlib
import json
import math
import os
import platform
import re
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from hwsim.bench_parts import PARTS, Part, Target
from hwsim.bench_peers import PEERS, installed
from hwsim.config import RunError
from hwsim.recipe.checkpoint import write_json, write_whole
from hwsim.recipe.manifest import commit, versions
from hwsim.report.speed_figure import speed_figure

FORMAT = 1
"""Version of speed.json; a record of another version is not used."""
Row = dict[str, str]


def report(folder: Path, samples: int, parts: Sequence[Part] = PARTS, say: Callable[[str], None] = click.echo) -> str:
    """Measure what is not there yet, then write figure and page; returns the page.

    Raises `RunError` where the folder cannot be written, and what a `hwsim bench` command of a part raises.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise RunError(f"--report {folder}: cannot be made ({e.strerror}); give a folder that you may write to") from e
    record = _record(folder / "speed.json")
    for number, part in enumerate(parts, 1):
        wanted, file = about(part, samples), folder / f"speed-{part.name}.csv"
        kept = record.get(part.name, {})
        if file.exists() and kept.get("about") == wanted and kept.get("sha256") == _sha256(file):
            say(f"{number}/{len(parts)} {file.name}: measured before, kept")
            continue
        say(f"{number}/{len(parts)} {file.name}: {shlex.join(wanted['command'])}")
        start = time.monotonic()
        say(measure([*wanted["command"][2:], "--csv", str(file)]))
        record[part.name] = {
            "about": wanted, "sha256": _sha256(file), "seconds": round(time.monotonic() - start, 1),
            "commit": commit(), "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }  # fmt: skip
        write_json(folder / "speed.json", {"format": FORMAT, "parts": record})
    tables = {part.name: _read(folder / f"speed-{part.name}.csv") for part in parts}
    compared = [row for part in parts for row in compare(part, tables[part.name])]
    title = f"Speed and memory against the yardstick of each measure; {processor()}, {samples} samples, minima"
    write_whole(folder / "speed.png", speed_figure(compared, title))
    text = page(parts, tables, record, samples)
    write_whole(folder / "speed.md", text.encode())
    return text


def measure(options: Sequence[str]) -> str:
    """What `hwsim bench OPTIONS` prints."""
    import io

    from hwsim.cli_bench import bench

    with contextlib.redirect_stdout(io.StringIO()) as out:
        bench.main(list(options), prog_name="hwsim bench", standalone_mode=False)
    return out.getvalue().rstrip()


def about(part: Part, samples: int) -> dict:
    """All that a part's table depends on: its command, the code, the versions and the processor."""
    command = ["hwsim", "bench", *part.options]
    command += ["--samples", str(samples)] if part.sampled else []
    command += ["--peers"] if part.peers and installed() else []
    found = versions()
    peers = {name: _version(name) for name in installed()} if part.peers else {}
    used = {name: found[name] for name in ("python", "torch", "numba", "numpy") if name in found}
    return {"command": command, "code": code(), "versions": used | peers, "processor": processor()}


def code() -> str:
    """sha256 over hwsim's own modules: equal where equal code would be measured, whatever the commit is."""
    root = Path(__file__).parent
    total = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        total.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return total.hexdigest()


def processor() -> str:
    """The processor's name, and how many logical ones of it there are."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.M) if info.exists() else None
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return f"{os.cpu_count()} x {name}"


def compare(part: Part, rows: Sequence[Row]) -> list[dict]:
    """measure, way, seconds, mb, speed, memory, speed_target, memory_target of each contestant, yardstick first.

    speed: how many times as fast as the yardstick, each with its better allocator (BITnet: a time step of it, since its
    yardstick has fewer). memory: share of the yardstick's, both with the default allocator.
    """
    out = []
    for name in dict.fromkeys(row.get("network", "") for row in rows):
        own = [row for row in rows if row.get("network", "") == name and _is_compared(row, rows)]
        ways: dict[str, list[Row]] = {}
        for row in own:
            ways.setdefault(_way(row), []).append(row)
        unit = f" {own[0]['unit']}" if name else ""
        first = None
        for way, of in ways.items():
            seconds = min(_seconds(row) for row in of)
            mb = float(next(row for row in of if row["allocator"] == "default")["peak_mb_above_imports"])
            first = first or (seconds, mb)
            targets = [t for t in part.targets if t.way == way and t.against == "yardstick"]
            out.append({
                "measure": f"{name}{unit}" if name else part.title, "way": way, "seconds": seconds, "mb": mb,
                "speed": first[0] / seconds, "memory": mb / first[1] if first[1] > 0 and mb > 0 else math.nan,
                "speed_target": next((t.speed for t in targets if t.speed), ""),
                "memory_target": next((t.memory for t in targets if t.memory), ""),
            })  # fmt: skip
    return out


def verdicts(part: Part, compared: Sequence[dict]) -> list[dict]:
    """measure, what, target, found, reached of each target of a part; found is None where it could not be measured."""
    out = []
    of = {row["way"]: row for row in compared}
    for target in part.targets:
        way, others = of.get(target.way), [of[p] for p in PEERS if p in of]
        if target.speed is not None:
            reference = next(iter(of.values())) if target.against == "yardstick" else None
            if target.against == "peers" and others:
                reference = min(others, key=lambda row: row["seconds"])
            found = reference["seconds"] / way["seconds"] if way and reference else None
            against = reference["way"] if reference else "best peer"
            out.append(_verdict(part, target, f"times as fast as {against}", target.speed, found, found_is_least=True))
        if target.memory is not None:
            found = way["memory"] if way else None
            out.append(_verdict(part, target, "memory of the yardstick", target.memory, found, found_is_least=False))
    return out


def _verdict(part: Part, target: Target, what: str, wanted: float, found: float | None, found_is_least: bool) -> dict:
    at_all = found is not None and not math.isnan(found)
    reached = at_all and (found >= wanted if found_is_least else found <= wanted)
    return {
        "measure": part.title, "what": f"{target.way}: {what}",
        "target": f"{'at least' if found_is_least else 'at most'} {wanted:g}",
        "found": f"{found:.2f}" if at_all else "not measured", "reached": "yes" if reached else "no" if at_all else "",
    }  # fmt: skip


def page(parts: Sequence[Part], tables: dict[str, list[Row]], record: dict, samples: int) -> str:
    """speed.md: the machine, what was to be reached, and every measure with its command."""
    used: dict[str, str] = {}
    for part in parts:
        used |= record[part.name]["about"]["versions"]
    measured = {record[part.name]["commit"] or "not a checkout" for part in parts}
    aims = [row for part in parts for row in verdicts(part, compare(part, tables[part.name]))]
    lines = [
        "# Speed and memory", "",
        f"{processor()}; {', '.join(f'{k} {v}' for k, v in used.items())}; commit {', '.join(sorted(measured))}; "
        f"{samples} samples. Each table lies beside this page as speed-NAME.csv, with minima and medians for both "
        "allocators. Below: the minimum with the better allocator (BITnet: of one time step), memory above imports "
        "with the default one, and both relative to the first line of each measure.", "",
        "![Speed and memory](speed.png)", "", "## What was to be reached", "",
        *_table(aims), "", "## Measures", "",
    ]  # fmt: skip
    for part in parts:
        done = record[part.name]
        lines += [f"`{shlex.join(done['about']['command'])}` ({done['seconds']:.0f} s, `speed-{part.name}.csv`)", ""]
        lines += [*_table([_shown(row) for row in compare(part, tables[part.name])]), ""]
    return "\n".join(lines)


def _shown(row: dict) -> dict:
    memory = "" if math.isnan(row["memory"]) else f"{row['memory']:.2f}"
    return {
        "measure": row["measure"], "way": row["way"], "ms": f"{1000 * row['seconds']:.4g}",
        "times as fast": f"{row['speed']:.2f}", "MB": f"{row['mb']:.0f}", "of its memory": memory,
    }  # fmt: skip


def _table(rows: Sequence[dict]) -> list[str]:
    if not rows:
        return ["Nothing."]
    lines = [" | ".join(rows[0]), "|".join("---" for _ in rows[0]), *(" | ".join(map(str, r.values())) for r in rows)]
    return [f"| {line} |" if "---" not in line else f"|{line}|" for line in lines]


def _way(row: Row) -> str:
    if "surrogate" not in row:
        return row["variant"]
    return "published" if row["memory"] == "autograd" else f"{row['surrogate']} {row['memory']}"


def _is_compared(row: Row, rows: Sequence[Row]) -> bool:
    """All rows but those of BITnet with other steps than the yardstick's first and the longest."""
    return "surrogate" not in row or row["steps"] == (rows[0] if row["memory"] == "autograd" else rows[-1])["steps"]


def _seconds(row: Row) -> float:
    return float(row["seconds"]) / int(row["steps"]) if "surrogate" in row else float(row["min_s"])


def _read(file: Path) -> list[Row]:
    with file.open(newline="") as f:
        return list(csv.DictReader(f))


def _record(file: Path) -> dict[str, dict]:
    """What speed.json says of the tables; nothing where it is absent, damaged or of another version."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found["parts"] if isinstance(found, dict) and found.get("format") == FORMAT else {}


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _version(package: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(package)
