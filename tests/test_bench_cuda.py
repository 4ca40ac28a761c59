"""`hwsim bench --device cuda`: what it runs and counts, without a GPU; the table itself where there is one."""

import csv
import math

import pytest
import torch
from command_line import hwsim
from recorded import Recorder

from hwsim import bench_cuda
from hwsim.bench_cuda import WAYS, Way, compared, flop, measured, step_of
from hwsim.network import lif
from hwsim.network.vgg_bntt import build
from hwsim.recipe.step import WARM_UP

TINY = {"net": "vgg5", "width": 0.2, "size": 8, "steps": 3, "batch": 2}
CPU = torch.device("cpu")


def test_without_a_gpu_there_is_one_line_and_exit_2():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    done = hwsim("bench", "--device", "cuda", "--net", "vgg9", "--batch", "128")
    assert done.code == 2 and "compute: found cuda, but" in done.err and len(done.err.strip().splitlines()) == 1


def test_what_is_measured_on_the_cpu_alone_is_refused():
    done = hwsim("bench", "--device", "cuda", "--peers")
    assert done.code == 2 and "leave out --peers" in done.err


def test_an_unknown_network_is_named_first():
    done = hwsim("bench", "--device", "cuda", "--net", "vgg7")
    assert done.code == 2 and "--net: there is no network 'vgg7'" in done.err


@pytest.mark.parametrize("way", [w for w in WAYS if not w.graph], ids=str)
def test_every_way_learns_the_same(way):
    step, _ = step_of(way, CPU, pytest.fail, **TINY)
    wanted, _ = step_of(WAYS[0], CPU, pytest.fail, **TINY)
    bound = 0.4 if way.precision == "bf16" else 1e-4  # rounded weights move spikes, and with them everything behind
    assert [step().item() for _ in range(3)] == pytest.approx([wanted().item() for _ in range(3)], rel=bound)
    assert lif.forced == "auto"


def test_a_way_with_a_graph_captures_its_step(monkeypatch):
    recorders = []

    def recorder():
        recorders.append(Recorder(lambda: tensors))
        return recorders[-1]

    monkeypatch.setattr(bench_cuda, "CudaGraph", recorder)
    step, model = step_of(Way("folded", "float32", True), CPU, pytest.fail, **TINY)
    plain, _ = step_of(Way("folded", "float32", False), CPU, pytest.fail, **TINY)
    tensors = []
    found = [step().item() for _ in range(WARM_UP)]
    tensors[:] = [*model.parameters(), *model.buffers()]
    found.append(step().item())
    assert found == [plain().item() for _ in range(WARM_UP + 1)]
    assert (recorders[0].captures, recorders[0].replays) == (1, 1)


def test_work_is_that_of_the_layers():
    net = build("vgg5", width=0.2, channels=3, size=(8, 8), classes=10, steps=3)
    macs = {}

    for layer in (net.conv1, net.conv2, net.conv3, net.fc1, net.fc2):
        layer.register_forward_hook(lambda layer, given, out: macs.update({layer: out}))
    with torch.no_grad():
        net(torch.randn(2, 3, 8, 8), torch.Generator().manual_seed(0))
    total = 0
    for layer, out in macs.items():
        each = out.numel() * math.prod(layer.weight.shape[1:])
        total += 2 * each * (2 if layer is net.conv1 else 3)
    assert flop(net, 8, 2) == total


def watched(monkeypatch, seconds):
    """The measurement with a clock and a memory of its own."""
    taken = iter(seconds)
    monkeypatch.setattr(bench_cuda, "_forget_memory", lambda: None)
    monkeypatch.setattr(bench_cuda, "_peak_mb", lambda: 7.0)
    monkeypatch.setattr(bench_cuda, "_seconds", lambda step: (step(), next(taken))[1])


def test_a_row_has_the_least_and_the_middle_of_its_samples(monkeypatch):
    watched(monkeypatch, [0.5, 0.25, 1.0])
    row = measured(WAYS[4], CPU, 3, TINY)
    assert (row["min_s"], row["median_s"], row["images_per_s"], row["peak_mb"]) == (0.25, 0.5, 8.0, 7.0)
    net = build("vgg5", width=0.2, channels=3, size=(8, 8), classes=10, steps=3)
    assert row["tflop_s"] == pytest.approx(flop(net, 8, 2) / 0.25 / 1e12) and row["note"] == ""


def test_what_cannot_be_captured_or_does_not_fit_says_so_in_its_row(monkeypatch):
    watched(monkeypatch, [1.0] * 9)

    class Refusing(Recorder):
        def capture(self, work, generator):
            raise RuntimeError("no room")

    monkeypatch.setattr(bench_cuda, "CudaGraph", lambda: Refusing(list))
    row = measured(Way("folded", "float32", True), CPU, 1, TINY)
    assert "no room" in row["note"] and math.isnan(row["min_s"])

    def full(*args, **settings):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(bench_cuda, "step_of", full)
    assert measured(WAYS[0], CPU, 1, TINY)["note"] == "out of memory"


def test_ratios_are_to_the_first_row():
    rows = [{"graph": False, "min_s": s, "peak_mb": m} for s, m in ((4.0, 100.0), (1.0, 25.0))]
    assert [(r["speedup_min"], r["memory_ratio"], r["net"]) for r in compared(rows, {"net": "n"})] == [
        (1.0, 1.0, "n"), (4.0, 0.25, "n"),
    ]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_table_on_cuda_has_a_row_for_each_way(tmp_path):
    done = hwsim(
        "bench", "--device", "cuda", "--net", "vgg5", "--width", "0.5", "--size", "16", "--steps", "4", "--batch", "8",
        "--samples", "2", "--csv", tmp_path / "c.csv",
    )  # fmt: skip
    assert done.code == 0, done.err
    with (tmp_path / "c.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert [(r["variant"], r["precision"], r["graph"]) for r in rows] == [(v, p, str(int(g))) for v, p, g in WAYS]
    assert all(float(r["min_s"]) > 0 and float(r["peak_mb"]) > 0 and r["note"] == "" for r in rows)
