"""`hwsim bench` at a tiny size: what it measures is what it says."""

import csv

import pytest
import torch
from command_line import hwsim

from hwsim import bench, bench_integer
from hwsim.bench_peers import PEERS, installed
from hwsim.config import ConfigError
from hwsim.device.hybrid import Hybrid
from hwsim.device.store import draw
from hwsim.network.vgg_bntt import build

TINY = {"net": "vgg5", "width": 0.05, "size": 8, "steps": 2, "batch": 2}
EXACT = [how for how, way in bench.WAYS.items() if "precision" not in way.build]


@pytest.mark.parametrize("how", [*bench.WAYS, *bench.HYBRID_WAYS])
def test_a_step_runs_and_leaves_the_choice_of_backend_alone(how):
    from hwsim.network import lif

    seconds, loss = bench.training_step(how, **TINY)()
    assert seconds > 0 and 0 < loss < 100
    assert lif.forced == "auto"


@pytest.mark.parametrize("how", EXACT)
def test_a_pass_in_evaluation_mode_gives_the_same_logits_in_every_way(how):
    from hwsim.network import lif

    seconds, logit = bench.inference_pass(how, **{**TINY, "width": 0.2, "steps": 3})()
    _, wanted = bench.inference_pass("loop", **{**TINY, "width": 0.2, "steps": 3})()
    assert seconds > 0 and logit == pytest.approx(wanted, rel=1e-4) and lif.forced == "auto"


def test_binary_weights_are_the_same_two_numbers_for_every_way():
    settings = {**TINY, "width": 0.2, "steps": 3, "binary": True}
    nets = [bench._given(how, **settings)[0] for how in ("loop", "fused")]
    for name in ("conv1.weight", "conv3.weight", "fc1.weight"):
        one, other = (net.get_parameter(name) for net in nets)
        assert torch.equal(one, other) and one.abs().unique().numel() == 1 and one.unique().numel() == 2
    logits = [bench.inference_pass(how, **settings)()[1] for how in ("loop", "folded", "fused")]
    assert logits[1:] == pytest.approx([logits[0]] * 2, rel=1e-4)
    assert logits[0] != pytest.approx(bench.inference_pass("loop", **{**settings, "binary": False})()[1], rel=1e-2)


def test_binary_weights_are_measured_in_evaluation_mode_only():
    with pytest.raises(ConfigError, match="--binary: measures a pass in evaluation mode; add --what inference, not"):
        bench.bench(csv_file=None, samples=1, binary=True, **TINY)


def test_chips_are_evaluated_alike_in_both_ways():
    (_, plain), (_, fast), (_, shared) = (bench.chips_pass(how, chips=2)() for how in bench.CHIP_WAYS)
    assert fast == pytest.approx(plain, abs=0.02)
    assert shared == pytest.approx(plain, abs=0.1)  # on other spikes


def test_digits_are_the_network_of_vat():
    from hwsim.data.image import load_images
    from hwsim.recipe.resolve import Request, resolve

    recipe = resolve(Request("vat", {})).recipe
    channels, size, _ = load_images(recipe.data.name).shape_CHW
    assert {
        "net": recipe.net.name, "width": recipe.net.width, "size": size, "steps": recipe.net.steps,
        "batch": recipe.stages["vat"].batch_size, "channels": channels,
    } == bench.DIGITS  # fmt: skip
    loop, fused = (bench.training_step(how, **bench.DIGITS)()[1] for how in ("loop", "fused"))
    assert fused == pytest.approx(loop, rel=1e-3)


@pytest.mark.parametrize("how", PEERS)
def test_a_peer_runs_our_network_with_our_weights(how):
    if how not in installed():
        pytest.skip(f"{how} is not installed")
    settings = {**TINY, "width": 0.2, "steps": 3}
    _, loss = bench.training_step(how, **settings)()
    assert loss == pytest.approx(bench.training_step("loop", **settings)()[1], rel=0.1)
    assert bench.inference_pass(how, **settings)()[1] > 0


def test_peers_that_are_not_there_are_told_how_to_install(monkeypatch):
    monkeypatch.setattr(bench, "installed", tuple)
    with pytest.raises(ConfigError, match="neither snntorch nor spikingjelly is installed; pip install --no-deps"):
        bench.bench(csv_file=None, samples=1, peers=True, **TINY)
    with pytest.raises(ConfigError, match="--peers: they have neither hybrid layers nor chips"):
        bench.bench(csv_file=None, samples=1, peers=True, what="chips", **TINY)


def test_hybrid_layers_are_measured_in_training_only():
    with pytest.raises(ConfigError, match="--hybrid: measures a training step"):
        bench.bench(csv_file=None, samples=1, hybrid=True, what="chips", **TINY)


def losses(how: str, steps: int) -> list[float]:
    step = bench.training_step(how, **{**TINY, "width": 0.2, "steps": 3})
    return [step()[1] for _ in range(steps)]


def test_every_way_without_cells_takes_the_same_steps():
    loop, *others = (losses(how, 3) for how in EXACT)
    for other in others:
        assert other == pytest.approx(loop, rel=1e-4)


def test_one_and_two_convolutions_take_the_same_steps_and_rram_alone_takes_others():
    rram, hybrid, two = (losses(how, 3) for how in bench.HYBRID_WAYS)
    assert two == pytest.approx(hybrid, rel=1e-4)
    assert rram != pytest.approx(hybrid, rel=1e-4)


def placed(how: str) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(2)
    net = build("vgg5", width=0.1, channels=3, size=(8, 8), classes=4, steps=2, generator=generator)
    bench.on_device(net, how)
    draw(net, torch.Generator().manual_seed(3))
    return net


def test_two_convolutions_are_those_of_the_parts():
    x = torch.randint(-1, 2, (2, 2, 3, 8, 8)).float()
    hybrid, two = placed("hybrid").conv1, placed("two-convolutions").conv1
    assert isinstance(hybrid.store, Hybrid) and torch.equal(two.rram.z, hybrid.z) and two.sram.z is None
    out, wanted = two(x, 1), hybrid(x, 1)
    torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)
    (grad,) = torch.autograd.grad(out.square().sum(), two.sram.weight)
    (wanted_grad,) = torch.autograd.grad(wanted.square().sum(), hybrid.weight)
    torch.testing.assert_close(grad, wanted_grad, atol=1e-4, rtol=1e-4)
    assert not two.rram.weight.requires_grad


@pytest.mark.parametrize("how", bench.HYBRID_WAYS)
def test_every_step_draws_a_chip_and_the_frozen_part_stays(how, monkeypatch):
    nets, chips, cells = [], [], []

    def watched(net, generator):
        draw(net, generator)
        nets.append(net)
        chips.append([b for name, b in net.named_buffers() if name.endswith(".z")])
        cells.append(net.conv2.rram.weight if how == "two-convolutions" else net.conv2.rram)

    monkeypatch.setattr(bench, "draw", watched)
    step = bench.training_step(how, **TINY)
    step()
    held = None if how == "rram" else cells[0].clone()
    step()
    assert nets[0] is nets[1] and len(nets) == 2
    assert [len(c) for c in chips] == [3, 3]  # one for each convolution
    assert not any(torch.equal(a, b) for a, b in zip(*chips, strict=True))
    assert held is None or torch.equal(cells[1], held)


def test_memory_is_this_processs_own():
    assert 1 < bench._resident_mb() < 100_000


def test_an_unknown_network_is_named_before_anything_runs():
    with pytest.raises(ConfigError, match="--net: there is no network 'vgg7'"):
        bench.bench(csv_file=None, samples=1, **{**TINY, "net": "vgg7"})


def table(tmp_path, **settings) -> tuple[str, list[dict]]:
    file = tmp_path / "speed.csv"
    text = bench.bench(csv_file=file, samples=2, **settings, **TINY)
    with file.open() as f:
        return text, list(csv.DictReader(f))


@pytest.mark.slow
def test_the_table_has_a_row_for_each_way_and_allocator_and_ratios_to_the_loop(tmp_path):
    text, rows = table(tmp_path)
    assert [(r["variant"], r["allocator"]) for r in rows] == [(w, a) for w in bench.WAYS for a in bench.ALLOCATORS]
    assert tuple(rows[0]) == bench.COLUMNS
    assert float(rows[0]["speedup_min"]) == float(rows[0]["memory_ratio"]) == 1
    loop, fused = rows[0], rows[-1]
    assert float(fused["speedup_median"]) == pytest.approx(float(loop["median_s"]) / float(fused["median_s"]), rel=1e-6)
    assert "fused" in text


@pytest.mark.slow
def test_the_hybrid_table_has_times_relative_to_rram(tmp_path):
    text, rows = table(tmp_path, hybrid=True)
    wanted = [(w, a) for w in bench.HYBRID_WAYS for a in bench.ALLOCATORS]
    assert [(r["variant"], r["allocator"]) for r in rows] == wanted
    assert tuple(rows[0]) == bench.HYBRID_COLUMNS
    assert [c for c in bench.HYBRID_COLUMNS if c not in bench.COLUMNS] == ["time_ratio_min", "time_ratio_median"]
    rram = rows[0]
    for row in rows:
        for ratio, of in (("time_ratio_min", "min_s"), ("time_ratio_median", "median_s")):
            assert float(row[ratio]) == pytest.approx(float(row[of]) / float(rram[of]), rel=1e-6)
    assert float(rram["memory_ratio"]) == 1
    assert "two-convolutions" in text


# ---------------------------------------------------------------------------------------------------- integer networks


def test_ratios_of_integer_networks_leave_the_warm_up_out():
    given = {"published": iter([99.0, 4.0, 6.0, 8.0]), "kernels": iter([50.0, 1.0, 2.0, 4.0])}
    seconds = bench_integer.timed({v: (lambda s=s: next(s)) for v, s in given.items()}, 3)
    assert seconds == {"published": [4.0, 6.0, 8.0], "kernels": [1.0, 2.0, 4.0]}


def test_integer_networks_have_ratios_to_the_published_way_with_the_default_allocator():
    of = {(v, a): i for i, (v, a) in enumerate((v, a) for v in bench_integer.DECOLLE for a in bench.ALLOCATORS)}
    rows = bench_integer._rows(
        "decolle", {v: [12.0 / (i + 1), 24.0] for v, i in of.items()}, {v: 10 + i for v, i in of.items()}
    )
    assert [(r["variant"], r["allocator"]) for r in rows] == list(of)
    assert [r["speedup_min"] for r in rows] == pytest.approx([1, 2, 3, 4, 5, 6])
    assert [r["speedup_median"] for r in rows] == pytest.approx(
        [(6 + 12) / ((12 / (i + 1) + 24) / 2) for i in range(6)]
    )
    assert [r["memory_ratio"] for r in rows] == pytest.approx([1 + i / 10 for i in range(6)])
    assert [r["backend"] for r in rows[::2]] == ["published", "float", "fused"]


@pytest.mark.parametrize("network", bench_integer.NETWORKS)
def test_every_variant_of_an_integer_network_runs(network):
    _, make, backends, small = bench_integer.NETWORKS[network]
    for backend in backends.values():
        assert make(backend, small)() > 0


@pytest.mark.slow
def test_integer_networks_are_measured_and_written(tmp_path):
    done = hwsim("bench", "--integer", "--samples", "1", "--csv", tmp_path / "b.csv")
    assert done.code == 0, done.err
    with (tmp_path / "b.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert [(r["network"], r["variant"], r["allocator"]) for r in rows] == [
        (n, v, a) for n in ("pattern", "decolle") for v in ("published", "torch", "kernels") for a in bench.ALLOCATORS
    ]
    assert all(float(r["min_s"]) > 0 and float(r["peak_mb_above_imports"]) >= 0 for r in rows)
