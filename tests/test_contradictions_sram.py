"""Recovery settings that do not go together: exit code 2, one line that says what and what else, and no run begun."""

from pathlib import Path

import pytest
from command_line import hwsim, refused

RECIPE = """title: t
net: {name: vgg5, width: 0.0625, steps: 2}
data: {name: digits, limit: 40}
device: {weights: {bits: 2}}
stages:
  vat: {do: train, epochs: 1, batch_size: 16}
  recover: {do: recover, from: vat, epochs: 1, batch_size: 16}
  evaluate: {do: evaluate, of: [recover], chips: 2, adapt: [0, 1], adapt_batch_size: 16}
"""
XNOR = "{quantizer: xnor, halved: true}"


def again(more: str = "", do: str = "recover") -> str:
    """A stage that goes on from `recover`."""
    return f"  again: {{do: {do}, from: recover, epochs: 1, batch_size: 16{more}}}\n"


def command(tmp_path: Path, changes: list[str]) -> list[str | Path]:
    """The recipe with some more stages and places set; a change is a stage, or the place and value of a `--set`."""
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE + "".join(c for c in changes if c.startswith("  ")), encoding="utf-8")
    sets = [f"--set=stages.{c}" if not c.startswith("device") else f"--set={c}" for c in changes if c[0] != " "]
    return ["recipe", file, "--runs", tmp_path / "runs", *sets]


def lines(tmp_path: Path, changes: list[str]) -> list[str]:
    """What it is refused with, when nothing has been written."""
    said = refused(*command(tmp_path, changes))
    assert not (tmp_path / "runs").exists()
    return said.splitlines()


ONE_MISTAKE = {
    "no parent": (["recover.from=null"], "recover.from", "needs a trained RRAM parent"),
    "unknown parent": (["recover.from=vta"], "recover.from", "has a network 'vta'; did you mean 'vat'?"),
    "its own parent": (["recover.from=recover"], "recover.from", "no earlier stage has a network 'recover'"),
    "a parent without network": (["recover.from=evaluate"], "recover.from", "network 'evaluate'; there is vat"),
    "too far left": (["recover.sram.shift_bits=[0, 9]"], "recover.sram.shift_bits.1", "found 9; it must be at most 8"),
    "too far right": (["recover.sram.shift_bits=[-9]"], "recover.sram.shift_bits.0", "found -9; it must be"),
    "half a shift": (["recover.sram.shift_bits=[0.5]"], "recover.sram.shift_bits.0", "a whole number, found 0.5"),
    "no shift": (["recover.sram.shift_bits=[]"], "recover.sram.shift_bits", "at least 1 must be given"),
    "a shift twice": (["recover.sram.shift_bits=[1, 0, 1]"], "recover.sram.shift_bits", "1] names a shift twice"),
    "no bits": (["recover.sram.bits=0"], "recover.sram.bits", "found 0; it must be at least 1"),
    "nine bits": (["recover.sram.bits=9"], "recover.sram.bits", "found 9; it must be at most 8"),
    "the cells' grid": (["recover.sram.quantizer=dorefa"], "recover.sram.quantizer", "twos-complement, xnor, none"),
    "sram without a run": (["recover.init=sram"], "recover.init_run", "init is sram"),
    "a run without sram": (["recover.init_run=runs/x"], "recover.init_run", "runs/x"),
    "unknown init": (["recover.init=rom"], "recover.init", "rram, zeros, residual, sram, xavier"),
    "unknown loads": (["recover.loads=all"], "recover.loads", "all_but_convs, statistics"),
    "unknown redraw": (["recover.redraw=epoch"], "recover.redraw", "batch, chip"),
    "no chips": (["recover.fixed_chips=0"], "recover.fixed_chips", "found 0; it must be at least 1"),
    "unknown setting": (["recover.prune={grup: 2}"], "recover.prune.grup", "did you mean 'group'?"),
    "groups of nothing": (["recover.prune={group: 0}"], "recover.prune.group", "found 0; it must be at least 1"),
    "a threshold of all": (["recover.prune={threshold: 1}"], "recover.prune.threshold", "it must be below 1"),
    "unknown by": (["recover.prune={by: row}"], "recover.prune.by", "element, group"),
    "no zero to be the parent with": (
        ["recover.sram={quantizer: xnor}", "device.weights.quantizer=xnor"], "recover.keep_parent",
        "take keep_parent: false",
    ),
    "half of the parent": (["recover.sram={halved: true}"], "recover.keep_parent", "take keep_parent: false"),
    "words of another scale": (
        ["recover.sram={quantizer: xnor}", "recover.keep_parent=false"], "recover.sram.quantizer",
        "take twos-complement, or device.weights.quantizer xnor too",
    ),
    "the gradient of floats": (
        ["recover.gradient=xnor", "recover.sram={quantizer: none}"], "recover.gradient", "sram.quantizer is none",
    ),
    "no chip to adapt to": (["evaluate.redraw=batch"], "evaluate.adapt", "use redraw chip"),
    "training that goes on": ([again(do="train")], "again.from", "'recover' has an SRAM part; go on with do: recover"),
    "other words": ([again(", sram: {bits: 3}")], "again.sram", "'recover' has another SRAM part"),
    "another shift": ([again(", sram: {shift_bits: [1]}")], "again.sram", "'recover' has another SRAM part"),
    "any chip from some": (["recover.redraw=chip", again()], "again.redraw", "5 chips"),
    "more chips than there are": (
        ["recover.redraw=chip", "recover.fixed_chips=2", again(", redraw: chip, fixed_chips: 3")], "again.", "2 chips",
    ),
}  # fmt: skip
"""What is wrong: (changes, the place that is named, what is said of it)."""


@pytest.mark.parametrize(("changes", "place", "says"), ONE_MISTAKE.values(), ids=ONE_MISTAKE)
def test_what_does_not_go_together_is_refused_in_one_line_before_anything_runs(tmp_path, changes, place, says):
    (line,) = lines(tmp_path, changes)
    origin, _, message = line.partition(": stages.")
    named, _, what = message.partition(": ")
    assert origin.startswith(("--set ", f"{tmp_path / 'r.yaml'}:"))
    assert named.startswith(place) if place.endswith(".") else named == place
    assert says in what


def test_every_mistake_is_told_at_once(tmp_path):
    changes = ["recover.from=vta", "recover.sram.shift_bits=[1, 1]", "recover.init=sram", "evaluate.redraw=batch"]
    said = "\n".join(lines(tmp_path, changes))
    assert len(said.splitlines()) == 4
    assert all(f": stages.{p}: " in said for p in (
        "recover.from", "recover.sram.shift_bits", "recover.init_run", "evaluate.adapt"))  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["recover.sram={shift_bits: [-8, 0, 8], bits: 1}", "recover.redraw=chip"],
        ["recover.sram={quantizer: none}", "recover.init=residual"],
        [f"recover.sram={XNOR}", "recover.keep_parent=false", "device.weights.quantizer=xnor"],
        [f"recover.sram={XNOR}", "recover.prune={group: 4}", "device.weights.quantizer=xnor"],
        ["recover.gradient=xnor", "recover.loads=statistics"],
        [again()],
        [again(", redraw: chip, fixed_chips: 2")],
        ["recover.redraw=chip", again(", redraw: chip, fixed_chips: 5")],
        ["device={card: ternary}"],
        ["device={card: ideal}", "vat.variation_scale=0"],
    ],
    ids=lambda changes: "; ".join(changes).strip() or "as it stands",
)
def test_what_goes_together_is_not_refused(tmp_path, changes):
    done = hwsim(*command(tmp_path, changes), "--show")
    assert done.code == 0, done.err
