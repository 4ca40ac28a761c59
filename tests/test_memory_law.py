"""The memory of a run, told before it runs: against what fresh processes take, and what a run refuses."""

import functools
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from command_line import hwsim, refused

from hwsim.config import RunError
from hwsim.network.vgg_bntt import build
from hwsim.recipe import memory_fit, memory_free
from hwsim.recipe.memory import largest_batch, needed
from hwsim.recipe.memory_ledger import HEAP, Ledger
from hwsim.recipe.memory_vgg import KEPT, Passes, made
from hwsim.recipe.resolve import Request, resolve

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MIB, GIB = 2**20, 2**30
LAW = str(Path(__file__).parent / "memory.yaml")

# --------------------------------------------------------------------------------------------------------- measured

PEAK = """
import os, re, sys
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
sys.argv = ["hwsim", *{arguments}]
from hwsim import cli
from hwsim.recipe import run, run_integer

def told(self, results):  # before the tables and figures, which are small and bring libraries of their own
    print("PEAK", re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], flush=True)
    os._exit(0)

run.Run._write_tables = run_integer.IntegerRun._write_tables = told
cli.main()
"""


def asked(places: str) -> list[str]:
    return [word for place in places.split() for word in (("--set", place) if "=" in place else (place,))]


def measured_mib(recipe: str, places: str) -> float:
    """Peak resident size of a run in a fresh process, up to its tables."""
    with tempfile.TemporaryDirectory() as runs:
        words = ["recipe", recipe, "--device", "cpu", "--quiet", "--runs", runs, *asked(places)]
        command = [sys.executable, "-c", PEAK.format(arguments=words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    found = re.search(r"PEAK (\d+)", done.stdout)
    assert found, done.stderr
    return int(found[1]) / 2**10


@functools.cache
def libraries_mib(recipe: str, places: str) -> float:
    """The same of a run that needs next to nothing."""
    return measured_mib(recipe, places)


def predicted_mib(recipe: str, places: str) -> float:
    words = asked(places)
    sets = [word for word in words if "=" in word]
    options = {"checkpoint_layers": "--checkpoint-layers" in words, "precision": "bf16" if "bf16" in words else None}
    return needed(resolve(Request(recipe, sets=sets, compute="cpu", **options)).recipe, CPU).highest.total / MIB


TINY = {
    LAW: "net.width=0.05 net.steps=1 stages.train.batch_size=16 data.limit=32",
    "convert": "net.width=0.1 data.limit=64 stages.full.epochs=1 stages.binary.epochs=1 stages.snn.time=12 "
    "stages.snn-full.time=12 stages.snn.verify=0 stages.evaluate.chips=1",
    "bitnet": "net.width=0.0625 net.steps=2 net.segment=2 data.limit=64 stages.bitnet.epochs=1 stages.evaluate.chips=1",
    "pattern": "stages.pattern.epochs=1 stages.pattern.inputs=20 stages.pattern.hidden=20",
}
"""Recipe → the places that make it small."""
RUNS = [
    (LAW, "net.steps=20"),
    (LAW, "net.steps=40 --checkpoint-layers"),
    (LAW, "net.steps=40 stages.train.batch_size=256"),
    (LAW, "net.steps=40 net.encode=direct"),
    (LAW, "net.steps=40 net.norm=none"),
    (LAW, "net.steps=20 stages.train.batch_size=256 --precision bf16"),
    (LAW, "net.steps=60 net.width=0.3"),
    (LAW, "net.steps=30 net.name=vgg9 net.width=0.5"),
    (LAW, "net.steps=30 data.limit=1257 stages.train.batch_size=32"),  # accounting is the peak
    (LAW, "net.steps=60 net.name=mlp net.width=2"),
]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak resident sizes are read from /proc")
@pytest.mark.parametrize("recipe, places", [RUNS[0], *(pytest.param(*run, marks=pytest.mark.slow) for run in RUNS[1:])])
def test_a_run_takes_the_memory_that_is_foretold_within_20_percent(recipe, places):
    above = measured_mib(recipe, places) - libraries_mib(recipe, TINY[recipe])
    assert above > 100
    assert predicted_mib(recipe, places) / above == pytest.approx(1, abs=0.2)


# --------------------------------------------------------------------------------------------------------- the law


def test_tensors_of_kernels_share_buffers_that_stay():
    ledger = Ledger(has_buffers=True)
    ledger.at = ("s", "w")
    a = ledger.take("a", 3 * HEAP, of_kernels=True)
    ledger.drop(a)
    ledger.touch("b", HEAP, of_kernels=True)  # in a's buffer
    assert ledger.highest.total == 3 * HEAP
    ledger.touch("c", 2 * HEAP)  # in none: beside the buffer that waits
    assert ledger.highest.total == 5 * HEAP
    assert ledger.highest.parts == {"c": 2 * HEAP, "buffers that wait": 3 * HEAP}
    ledger.trim()
    ledger.at = ("s", "after")
    ledger.touch("d", HEAP)
    assert ledger.peaks["s", "after"].total == HEAP


def test_on_cuda_what_dies_is_gone():
    ledger = Ledger(has_buffers=False)
    for size in (3, 5, 4):
        ledger.touch("a", size * HEAP, of_kernels=True)
    assert ledger.highest.total == 5 * HEAP


def test_a_ledger_is_empty_when_a_pass_is_over():
    for device in (CPU, CUDA):
        for coding in ("poisson", "direct", "repeat"):
            for checkpoint_layers in (False, True):
                for name in ("vgg5", "vgg11", "mlp"):
                    ledger = Ledger(has_buffers=False)
                    net = made(name, 0.5, channels=3, size=(32, 32), classes=10, steps=3, coding=coding,
                               checkpoint_layers=checkpoint_layers)  # fmt: skip
                    passes = Passes(ledger, net, (3, 32, 32), device)
                    passes.train(4), passes.infer(4), passes.count(4)
                    assert not any(ledger._live.values()) and ledger._total == 0


def training_bytes(batch: int, **settings) -> int:
    """Peak of VGG19's training on CIFAR-10 at T = 30 on CUDA, with weights, gradients, momentum and the best copy."""
    ledger, shape = Ledger(has_buffers=False), {"channels": 3, "size": (32, 32), "classes": 10, "steps": 30}
    net = made("vgg19", 1.0, **shape, **settings)
    ledger.at = ("train", "training")
    ledger.take("weights", 5 * 4 * sum(p.numel() for p in net.parameters()))
    Passes(ledger, net, (3, 32, 32), CUDA).train(batch)
    return ledger.highest.total


def test_vgg19_at_30_steps_trains_on_a_gpu_of_8_gb():
    """With a half GB left to the driver; without recomputation a batch of 128 takes a fifth more, one of 192 all."""
    room = 7.5e9
    assert training_bytes(128, checkpoint_layers=True) < 0.7 * room
    assert training_bytes(192, checkpoint_layers=True) < room < training_bytes(256, checkpoint_layers=True)
    assert training_bytes(192) > room
    assert training_bytes(256, checkpoint_layers=True, precision="bf16") < 0.7 * room


@pytest.mark.parametrize("checkpoint_layers", [False, True])
def test_the_law_knows_what_vgg19_keeps(checkpoint_layers):
    """Tensors scale with the batch, so what autograd keeps of one image and 30 steps says what it keeps of any."""
    settings = {"channels": 3, "size": (32, 32), "classes": 10, "steps": 30, "checkpoint_layers": checkpoint_layers}
    ledger = Ledger(has_buffers=False)
    kept = Passes(ledger, made("vgg19", 0.25, **settings), (3, 32, 32), CPU)._forward(
        1, "recompute" if checkpoint_layers else "train"
    )
    inputs = sum(b.size for _, blocks, _ in kept for b in blocks if b.what in (KEPT, "spikes"))
    currents = sum(y.size for _, _, y in kept if y is not None)
    held: dict[int, int] = {}

    def note(t: torch.Tensor) -> torch.Tensor:
        if not isinstance(t, torch.nn.Parameter):
            held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    net = build("vgg19", width=0.25, **settings, generator=torch.Generator().manual_seed(0))
    read = [p for n, p in net.named_parameters() if p.dim() > 2 or (checkpoint_layers and n == "fc1.weight")]
    held_beside = 4 * sum(p.numel() for p in read) if not checkpoint_layers else 0
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        (loss,) = net.losses(torch.randn(1, 3, 32, 32), torch.tensor([1]), torch.Generator().manual_seed(1))
    assert sum(held.values()) - held_beside == pytest.approx(inputs + currents, rel=0.1)
    assert loss.requires_grad


def test_recomputation_and_short_numbers_need_less_and_more_images_more():
    def total(batch: int = 64, device=CPU, **given) -> int:
        sets = [f"stages.{s}.batch_size={batch}" for s in ("baseline", "control", "vat")]
        sets += ["net.name=vgg9", "data.name=cifar10", "net.steps=20", "stages.evaluate.batch_size=8"]
        recipe = resolve(Request("vat", sets=[*sets, "stages.account.samples=8"], **given)).recipe
        return needed(recipe, device).highest.total

    assert total(32) < total(64) < total(128)
    assert total(128, checkpoint_layers=True) < 0.9 * total(128)
    assert total(device=CUDA, precision="bf16") < 0.8 * total(device=CUDA)


def test_finished_stages_need_nothing():
    recipe = resolve(Request("vat")).recipe
    assert needed(recipe, CPU, frozenset(recipe.stages)).highest.total < MIB
    assert set(needed(recipe, CPU, frozenset({"account"})).peaks) < set(needed(recipe, CPU).peaks)


@pytest.mark.parametrize("name", ["vat", "sram-recover", "convert", "binary-train", "bitnet", "pattern", "decolle",
                                  "rate-vs-direct", "early-exit", "attack", "vat-scales"])  # fmt: skip
def test_every_recipe_has_a_peak_in_one_of_its_stages(name):
    recipe = resolve(Request(name)).recipe
    for device in (CPU, CUDA):
        peak = needed(recipe, device).highest
        assert peak.stage in recipe.stages and peak.total > MIB and sum(peak.parts.values()) == peak.total


# -------------------------------------------------------------------------------------------------- doctor and refusal


def test_doctor_says_where_the_peak_lies_and_what_each_part_takes():
    out = hwsim("doctor", "vat", "--device", "cpu").out
    assert re.search(r"memory +about \d+ MiB at the most above the libraries' own, in stage \w+, \w+\n", out)
    assert re.search(r"(\n +\d+ MiB  [a-z, ]+)+\n +by stage: ", out)
    assert re.search(r"by stage: baseline \d+ MiB \(\w+\), control \d+ MiB .*, account \d+ MiB \(accounting\)\n", out)


def test_a_run_that_cannot_fit_is_refused_before_anything_is_written(monkeypatch, tmp_path):
    recipe = resolve(Request("vat", sets=["net.steps=64"])).recipe
    monkeypatch.setattr(memory_fit, "free_bytes", lambda device: 100 * MIB)
    with pytest.raises(RunError) as e:
        memory_fit.refuse(recipe, CPU)
    (line,) = str(e.value).splitlines()
    assert re.match(r"stage account, accounting: needs about \d+ MiB of memory, 100 MiB are free on cpu; ", line)
    assert re.search(r"batch_size \d+ in stages.baseline, .* and samples \d+ in stages.account, or", line)
    assert "--checkpoint-layers" in line and "a smaller net.width or net.steps" in line
    memory_fit.refuse(recipe, CPU, frozenset(recipe.stages))  # all is done already
    monkeypatch.setattr(memory_fit, "free_bytes", lambda device: None)
    memory_fit.refuse(recipe, CPU)  # nobody knows


def test_the_run_itself_refuses(monkeypatch, tmp_path):
    from hwsim.recipe.execute import execute
    from hwsim.recipe.progress import Progress

    monkeypatch.setattr(memory_fit, "free_bytes", lambda device: MIB)
    runs = tmp_path / "runs"
    with pytest.raises(RunError, match="1 MiB are free on cpu"):
        execute(resolve(Request("vat", smoke=True)), runs, Progress(True))
    assert not runs.exists()


def test_the_batch_that_is_advised_is_the_largest_that_fits():
    recipe = resolve(Request("vat", sets=["stages.account.samples=4"])).recipe
    enough = needed(recipe, CPU).highest.total
    assert largest_batch(recipe, CPU, enough) == 256
    fewer = largest_batch(recipe, CPU, enough // 2)
    assert fewer is not None and fewer < 256
    assert largest_batch(recipe, CPU, 1) is None


def test_free_memory_is_the_least_of_machine_and_groups(monkeypatch, tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (groups / "a" / "b").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:   5000 kB\n")
    (proc / "self" / "cgroup").write_text("0::/a/b\n")
    monkeypatch.setattr(memory_free, "PROC", proc)
    monkeypatch.setattr(memory_free, "CGROUPS", groups)
    assert memory_free.free_bytes(CPU) == 5000 * 1024
    for folder, most in ((groups / "a", "4000000"), (groups / "a" / "b", "max")):
        (folder / "memory.max").write_text(most + "\n")
        (folder / "memory.current").write_text("3000000\n")
        (folder / "memory.stat").write_text("anon 1\ninactive_file 500000\n")
    assert memory_free.free_bytes(CPU) == 1500000
    (proc / "self" / "cgroup").write_text("4:memory:/x\n0::/\n")
    (groups / "memory" / "x").mkdir(parents=True)
    for name, text in (("limit_in_bytes", "2000000"), ("usage_in_bytes", "1900000"), ("stat", "total_inactive_file 7")):
        (groups / "memory" / "x" / f"memory.{name}").write_text(text + "\n")
    assert memory_free.free_bytes(CPU) == 100007
    (proc / "meminfo").unlink()
    assert memory_free.free_bytes(CPU) is None


def test_a_user_reads_one_line_and_the_exit_code_is_2(monkeypatch, tmp_path):
    monkeypatch.setattr(memory_fit, "free_bytes", lambda device: MIB)
    line = refused("recipe", "vat", "--smoke", "--runs", tmp_path / "runs")
    assert "needs about" in line and "\n" not in line.strip()
