"""`hwsim bench` at a tiny size: what it measures is what it says."""

import csv

import pytest

from hwsim import bench
from hwsim.config import ConfigError

TINY = {"net": "vgg5", "width": 0.05, "size": 8, "steps": 2, "batch": 2}


@pytest.mark.parametrize("how", bench.WAYS)
def test_a_step_runs_and_leaves_the_choice_of_backend_alone(how):
    from hwsim.network import lif

    assert bench.training_step(how, **TINY)() > 0
    assert lif.forced == "auto"


def test_memory_is_this_processs_own():
    assert 1 < bench._resident_mb() < 100_000


def test_an_unknown_network_is_named_before_anything_runs():
    with pytest.raises(ConfigError, match="--net: there is no network 'vgg7'"):
        bench.bench(csv_file=None, samples=1, **{**TINY, "net": "vgg7"})


@pytest.mark.slow
def test_the_table_has_a_row_for_each_way_and_allocator_and_ratios_to_the_loop(tmp_path):
    file = tmp_path / "speed.csv"
    text = bench.bench(csv_file=file, samples=2, **TINY)
    with file.open() as f:
        rows = list(csv.DictReader(f))
    assert [(r["variant"], r["allocator"]) for r in rows] == [(w, a) for w in bench.WAYS for a in bench.ALLOCATORS]
    assert tuple(rows[0]) == bench.COLUMNS
    assert float(rows[0]["speedup_min"]) == float(rows[0]["memory_ratio"]) == 1
    loop, fused = rows[0], rows[-1]
    assert float(fused["speedup_median"]) == pytest.approx(float(loop["median_s"]) / float(fused["median_s"]), rel=1e-6)
    assert "fused" in text
