"""`hwsim bench --bitnet` at a tiny size: what it measures is what it says."""

import csv
import json

import pytest
import torch
from command_line import hwsim, refused

from hwsim import bench_bitnet
from hwsim.bench_bitnet import AUTOGRAD, WAYS, gradients, network, variants

TINY = {"net": "bitnet6", "width": 0.0625, "size": 8, "batch": 3}


def test_the_yardstick_comes_first_and_every_surrogate_is_measured_at_all_steps():
    rows = variants(200)
    assert rows[:2] == [("S2", AUTOGRAD, 4), ("S2", AUTOGRAD, 8)]
    assert {s for s, _, steps in rows if steps == 200} == {"S1", "S2", "S3"} and len(rows) == 3 + len(WAYS)


@pytest.mark.parametrize(("surrogate", "memory"), WAYS)
def test_every_variant_takes_the_step_of_the_yardstick(surrogate, memory):
    wanted, found = (
        gradients(network(surrogate, m, 6, **{**TINY, "width": 0.25}), m, 3, 8) for m in (AUTOGRAD, memory)
    )
    assert any(bool(w.any()) for w in wanted.values())
    for name, w in wanted.items():
        torch.testing.assert_close(found[name], w, rtol=1e-4, atol=1e-5 * float(w.abs().max()))


def test_a_process_prints_seconds_and_memory_and_another_the_error(capsys):
    settings = {k: v for k, v in TINY.items()}
    bench_bitnet._print_step("S2", "two-pass", 3, settings)
    seconds, peak = json.loads(capsys.readouterr().out)
    assert seconds > 0 and 0 <= peak < 1000
    bench_bitnet._print_error("S1", "bits", 3, {**settings, "width": 0.25})
    assert 0 <= json.loads(capsys.readouterr().out) < 1e-5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--net", "vgg5"], "--net: --bitnet measures bitnet6 or bitnet6-v101, found 'vgg5'"),
        (["--size", "4"], "this plan halves the image 3 times; it needs 8x8 pixels"),
        (["--width", "0.01"], "net.width: 0.01 leaves no channel"),
    ],
)
def test_what_cannot_be_measured_is_explained(options, says):
    assert says in refused("bench", "--bitnet", *options)


@pytest.mark.slow
def test_the_table_has_a_row_for_each_variant_and_ratios_to_the_yardstick(tmp_path):
    file = tmp_path / "memory.csv"
    done = hwsim("bench", "--bitnet", "--width", 0.125, "--size", 32, "--batch", 16, "--steps", 40, "--csv", file)
    assert done.code == 0, done.err
    with file.open() as f:
        both = list(csv.DictReader(f))
    assert [r["allocator"] for r in both[:2]] == ["default", "huge"]
    rows = [r for r in both if r["allocator"] == "default"]
    assert [(r["surrogate"], r["memory"], int(r["steps"])) for r in rows] == variants(40)
    first = float(rows[0]["peak_mb_above_imports"])
    assert all(float(r["memory_ratio"]) == pytest.approx(float(r["peak_mb_above_imports"]) / first) for r in rows)
    assert all(float(r["gradient_error"]) < 1e-5 for r in rows)
    of = {(r["surrogate"], r["memory"], r["steps"]): float(r["memory_ratio"]) for r in rows}
    assert of["S2", "two-pass", "40"] < 1 < of["S2", AUTOGRAD, "8"]
