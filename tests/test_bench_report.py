"""`hwsim bench --report`: what it runs, what it keeps, and what its page says."""

import csv
import json
import math

import pytest
from click.testing import CliRunner
from command_line import hwsim, refused

from hwsim import bench, bench_integer, bench_report
from hwsim.bench_parts import PARTS, Part, Target
from hwsim.bench_report import about, compare, page, report, verdicts
from hwsim.bench_ways import CHIP_WAYS, WAYS
from hwsim.cli_bench import bench as command
from hwsim.config import ConfigError
from hwsim.report.speed_figure import speed_figure

TINY = ("--net", "vgg5", "--width", "0.1", "--size", "8", "--steps", "2", "--batch", "2")


def speed_rows(seconds: dict[tuple[str, str], float], mb: dict[tuple[str, str], float] | None = None) -> list[dict]:
    """A table of bench, as read from its file."""
    mb = mb or dict.fromkeys(seconds, 100.0)
    return [
        {"variant": v, "allocator": a, "min_s": str(s), "peak_mb_above_imports": str(mb[v, a])}
        for (v, a), s in seconds.items()
    ]


def both(**ways: tuple[float, float]) -> dict[tuple[str, str], float]:
    return {(way, a): s for way, pair in ways.items() for a, s in zip(bench.ALLOCATORS, pair, strict=True)}


@pytest.fixture
def measured(monkeypatch) -> list[list[str]]:
    """Commands that were run; each writes a table in which everything takes a second."""
    commands: list[list[str]] = []

    def fake(options) -> str:
        commands.append(list(options))
        ways = CHIP_WAYS if "chips" in options else tuple(WAYS)
        rows = speed_rows({(w, a): 1.0 for w in ways for a in bench.ALLOCATORS})
        with open(options[-1], "w", newline="") as f:
            writer = csv.DictWriter(f, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        return "a table"

    monkeypatch.setattr(bench_report, "measure", fake)
    monkeypatch.setattr(bench_report, "speed_figure", lambda rows, title: b"figure of %d" % len(rows))
    return commands


SOME = (
    Part("one", "a step", ("--net", "vgg5"), (Target("fused", 3.0, 0.5),), peers=True),
    Part("two", "25 chips", ("--what", "chips"), (Target("shared", 0.5),)),
)


# ------------------------------------------------------------------------------------------------------- what is run


def test_what_the_issue_names_is_measured():
    options = [set(zip(p.options, p.options[1:], strict=False)) for p in PARTS]
    for what in ("step", "inference"):
        for net in ("vgg5", "vgg9"):
            for batch in ("16", "64"):
                assert any({("--what", what), ("--net", net), ("--batch", batch)} <= o for o in options)
    for wanted in ({("--what", "chips")}, {("--what", "digits")}, {("--steps", "50")}, {("--steps", "200")}):
        assert any(wanted <= o for o in options)
    assert any("--integer" in p.options for p in PARTS) and len({p.name for p in PARTS}) == len(PARTS)


@pytest.mark.parametrize("part", PARTS, ids=lambda p: p.name)
def test_every_command_parses_and_its_targets_are_of_ways_that_it_measures(part):
    words = about(part, 3)["command"]
    assert words[:2] == ["hwsim", "bench"]
    result = CliRunner().invoke(command, [*words[2:], "--help"])
    assert result.exit_code == 0, result.output
    context = command.make_context("bench", words[2:])  # without --help: values are checked too
    assert context.params["samples"] == (3 if part.sampled else 7)
    ways = CHIP_WAYS if context.params["what"] == "chips" else tuple(WAYS)
    assert {t.way for t in part.targets} <= set(ways)


def test_one_after_the_other_is_measured_and_written(tmp_path, measured):
    said: list[str] = []
    text = report(tmp_path / "new", 5, SOME, said.append)
    assert [c[:-2] for c in measured] == [["--net", "vgg5", "--samples", "5", *peers()], [
        "--what", "chips", "--samples", "5",
    ]]  # fmt: skip
    there = {p.name for p in (tmp_path / "new").iterdir()}
    assert there == {"speed-one.csv", "speed-two.csv", "speed.json", "speed.md", "speed.png"}
    assert (tmp_path / "new" / "speed.md").read_text() == text
    assert (tmp_path / "new" / "speed.png").read_bytes() == b"figure of %d" % (len(WAYS) + len(CHIP_WAYS))
    assert said[1] == "a table" and "1/2 speed-one.csv: hwsim bench --net vgg5" in said[0]


def peers() -> list[str]:
    return ["--peers"] if bench_report.installed() else []


def test_what_is_finished_is_kept(tmp_path, measured):
    first = report(tmp_path, 5, SOME, lambda s: None)
    said: list[str] = []
    assert report(tmp_path, 5, SOME, said.append) == first
    assert len(measured) == 2 and said == [
        f"{i}/2 speed-{n}.csv: measured before, kept" for i, n in ((1, "one"), (2, "two"))
    ]


def test_an_interrupted_report_goes_on(tmp_path, measured, monkeypatch):
    fake = bench_report.measure

    def breaks(options):
        if "chips" in options:
            raise KeyboardInterrupt
        return fake(options)

    monkeypatch.setattr(bench_report, "measure", breaks)
    with pytest.raises(KeyboardInterrupt):
        report(tmp_path, 5, SOME, lambda s: None)
    monkeypatch.setattr(bench_report, "measure", fake)
    report(tmp_path, 5, SOME, lambda s: None)
    assert [("chips" in c) for c in measured] == [False, True]


@pytest.mark.parametrize("change", ["samples", "code", "processor", "file", "missing", "record", "version", "options"])
def test_what_is_no_longer_the_same_is_measured_again(change, tmp_path, measured, monkeypatch):
    report(tmp_path, 5, SOME[:1], lambda s: None)
    parts, samples = SOME[:1], 5
    if change == "samples":
        samples = 6
    elif change in ("code", "processor"):
        monkeypatch.setattr(bench_report, change, lambda: "another")
    elif change == "file":
        file = tmp_path / "speed-one.csv"
        file.write_bytes(file.read_bytes().replace(b"1.0", b"2.0", 1))
    elif change == "missing":
        (tmp_path / "speed-one.csv").unlink()
    elif change == "record":
        (tmp_path / "speed.json").write_text("{")
    elif change == "version":
        (tmp_path / "speed.json").write_text(json.dumps({"format": 99, "parts": {}}))
    else:
        parts = (SOME[0]._replace(options=("--net", "vgg9")),)
    report(tmp_path, samples, parts, lambda s: None)
    assert len(measured) == 2


def test_the_code_is_that_of_every_module(tmp_path, monkeypatch):
    (tmp_path / "network").mkdir()
    (tmp_path / "bench_report.py").write_text("a")
    (tmp_path / "network" / "lif.py").write_text("b")
    monkeypatch.setattr(bench_report, "__file__", str(tmp_path / "bench_report.py"))
    first = bench_report.code()
    (tmp_path / "network" / "lif.py").write_text("c")
    assert bench_report.code() != first
    (tmp_path / "network" / "lif.py").write_text("b")
    assert bench_report.code() == first


def test_a_folder_that_cannot_be_made_and_other_options_are_explained(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be made" in refused("bench", "--report", tmp_path / "file" / "below")
    assert "of the other options only --samples fits" in refused("bench", "--report", tmp_path, "--net", "vgg5")
    with pytest.raises(ConfigError, match="there is no network 'vgg7'"):
        bench_report.measure(["--net", "vgg7"])


# ----------------------------------------------------------------------------------------------------- what it says


def test_ratios_take_the_better_allocator_and_memory_the_default_one():
    seconds = both(loop=(4.0, 3.0), folded=(5.0, 6.0), fused=(1.0, 1.5))
    mb = both(loop=(1000.0, 900.0), folded=(1100.0, 1.0), fused=(400.0, 1.0))
    loop, folded, fused = compare(SOME[0], speed_rows(seconds, mb))
    assert [(r["measure"], r["way"]) for r in (loop, folded, fused)] == [
        ("a step", w) for w in ("loop", "folded", "fused")
    ]
    assert (loop["speed"], folded["speed"], fused["speed"]) == (1.0, 3 / 5, 3.0)
    assert (loop["memory"], folded["memory"], fused["memory"]) == (1.0, 1.1, 0.4)
    assert (fused["speed_target"], fused["memory_target"], loop["speed_target"]) == (3.0, 0.5, "")


def test_targets_are_reached_or_not_or_not_measured():
    seconds = both(loop=(4.0, 3.0), fused=(1.0, 1.5), snntorch=(2.6, 2.4), spikingjelly=(9.0, 2.3))
    mb = both(loop=(1000.0, 900.0), fused=(510.0, 1.0), snntorch=(1.0, 1.0), spikingjelly=(1.0, 1.0))
    part = SOME[0]._replace(targets=(
        Target("fused", 3.0, 0.5), Target("fused", 2.31, against="peers"), Target("fused", 2.3, against="peers"),
        Target("bf16", 3.5),
    ))  # fmt: skip
    found = verdicts(part, compare(part, speed_rows(seconds, mb)))
    assert [(v["what"], v["target"], v["found"], v["reached"]) for v in found] == [
        ("fused: times as fast as loop", "at least 3", "3.00", "yes"),
        ("fused: memory of the yardstick", "at most 0.5", "0.51", "no"),
        ("fused: times as fast as spikingjelly", "at least 2.31", "2.30", "no"),
        ("fused: times as fast as spikingjelly", "at least 2.3", "2.30", "yes"),
        ("bf16: times as fast as loop", "at least 3.5", "not measured", ""),
    ]
    alone = {k: s for k, s in seconds.items() if k[0] in ("loop", "fused")}
    found = verdicts(part, compare(part, speed_rows(alone, mb)))
    assert [(v["what"], v["found"]) for v in found[2:4]] == [("fused: times as fast as best peer", "not measured")] * 2


def test_integer_networks_are_measures_of_their_own():
    seconds = {(v, a): 8.0 / (i + 1) for i, v in enumerate(bench_integer.PATTERN) for a in bench.ALLOCATORS}
    rows = bench_integer._rows("pattern", {k: [s] for k, s in seconds.items()}, dict.fromkeys(seconds, 10.0))
    rows += bench_integer._rows("decolle", {k: [2 * s] for k, s in seconds.items()}, dict.fromkeys(seconds, 0.0))
    found = compare(Part("integer", "", ()), [{k: str(v) for k, v in row.items()} for row in rows])
    assert [(r["measure"], r["way"], round(r["speed"], 9)) for r in found] == [
        (m, v, i + 1.0) for m in ("pattern epoch", "decolle learning step") for i, v in enumerate(bench_integer.PATTERN)
    ]
    assert [r["memory"] for r in found[:3]] == [1.0] * 3 and all(math.isnan(r["memory"]) for r in found[3:])


def test_bitnet_is_compared_by_the_time_of_a_step():
    given = [("S2", "autograd", 4, 8.0, 100.0), ("S2", "autograd", 8, 1.0, 1.0), ("S2", "two-pass", 4, 1.0, 1.0),
             ("S2", "two-pass", 50, 50.0, 60.0), ("S1", "bits", 50, 200.0, 70.0)]  # fmt: skip
    rows = [
        {
            "surrogate": s,
            "memory": m,
            "allocator": a,
            "steps": str(t),
            "seconds": str(x),
            "peak_mb_above_imports": str(p),
        }
        for s, m, t, x, p in given
        for a in bench.ALLOCATORS
    ]
    found = compare(Part("bitnet", "BITnet, T = 50", ()), rows)
    assert [(r["measure"], r["way"], r["speed"], r["memory"]) for r in found] == [
        ("BITnet, T = 50", "published", 1.0, 1.0),
        ("BITnet, T = 50", "S2 two-pass", 2.0, 0.6),
        ("BITnet, T = 50", "S1 bits", 0.5, 0.7),
    ]


def test_the_page_names_commands_versions_targets_and_numbers():
    part = SOME[0]
    tables = {"one": speed_rows(both(loop=(0.4, 0.375), fused=(0.125, 0.2)), both(loop=(50.0, 1.0), fused=(20.0, 1.0)))}
    record = {"one": {"about": about(part, 5), "commit": "abc+", "seconds": 12.3}}
    text = page([part], tables, record, 5)
    assert "`hwsim bench --net vgg5 --samples 5" in text and "(12 s, `speed-one.csv`)" in text
    assert "commit abc+; 5 samples" in text and f"torch {about(part, 5)['versions']['torch']}" in text
    assert "| a step | fused: times as fast as loop | at least 3 | 3.00 | yes |" in text
    assert "| a step | fused: memory of the yardstick | at most 0.5 | 0.40 | yes |" in text
    assert "| a step | fused | 125 | 3.00 | 20 | 0.40 |" in text


def test_the_figure_has_a_dot_for_each_way_and_a_bar_for_each_target(monkeypatch):
    from hwsim.report import speed_figure as module

    seconds = both(loop=(4.0, 3.0), fused=(1.0, 1.5))
    assert speed_figure(compare(SOME[0], speed_rows(seconds)), "title").startswith(b"\x89PNG")
    drawn = []
    monkeypatch.setattr(module, "png", lambda figure: drawn.append(figure) or b"")
    speed_figure(compare(SOME[0], speed_rows(seconds)), "title")
    left, right = drawn[0].axes
    points = {line.get_label(): list(line.get_xdata()) for line in left.lines if len(line.get_xdata()) == 1}
    assert points["loop"] == [1.0] and points["fused"] == [3.0]
    bars = [list(line.get_xdata()) for line in left.lines if line.get_marker() == "|" and len(line.get_xdata())]
    assert bars == [[3.0]]
    assert [list(x.get_xdata()) for x in right.lines if x.get_marker() == "|" and len(x.get_xdata())] == [[0.5]]
    assert [t.get_text() for t in left.get_yticklabels()] == ["a step"] and left.get_xscale() == "log"


# ------------------------------------------------------------------------------------------------------- all together


@pytest.mark.slow
def test_a_report_of_a_tiny_network_is_measured_for_real(tmp_path, monkeypatch):
    parts = (Part("step", "training", TINY, (Target("fused", 3.0, 0.5),), peers=True),)
    monkeypatch.setattr("hwsim.bench_report.report.__defaults__", (parts, *report.__defaults__[1:]))
    done = hwsim("bench", "--report", tmp_path, "--samples", "2")
    assert done.code == 0, done.err
    assert (tmp_path / "speed.md").read_text().strip() in done.out
    with (tmp_path / "speed-step.csv").open(newline="") as f:
        assert {r["variant"] for r in csv.DictReader(f)} >= set(WAYS)
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    again = hwsim("bench", "--report", tmp_path, "--samples", "2")
    assert "1/1 speed-step.csv: measured before, kept" in again.out
