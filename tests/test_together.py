"""Many chips on one pass: the rows are those of chips one by one, and what is shared is computed once."""

import csv
import gc
from functools import partial

import pytest
import torch
from command_line import TINY, hwsim, refused
from torch import nn

from hwsim.data.image import ImageData, Split, normalize
from hwsim.device.chip import Held, chip_bytes, held, put, varies
from hwsim.device.hybrid import Hybrid, Sram
from hwsim.device.store import Ideal, Rram, draw, place
from hwsim.network import bitnet, vgg15
from hwsim.network.layer import BNTT
from hwsim.network.spiking import Spiking
from hwsim.network.vgg_bntt import VggBntt
from hwsim.recipe import keys, together
from hwsim.recipe.adapt import adapted
from hwsim.recipe.evaluate import Ensemble, measure, over_chips
from hwsim.recipe.keys import stage_keys
from hwsim.recipe.randomness import generator
from hwsim.recipe.resolve import Request, resolve
from hwsim.recipe.settings import Evaluate

CLASSES, SEED = 3, 5
RRAM = Rram(bits=1, sigma=0.3)


def split(n: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 1, 4, 4), generator=generator, dtype=torch.uint8)
    return Split(images, torch.randint(0, CLASSES, (n,), generator=generator))


DATA = ImageData("noise", split(24, 1), split(4, 2), split(22, 3), CLASSES, (0.5,), (0.3,), "")


def network(seed: int = 0, on: str = "conv*", store=RRAM, **settings) -> VggBntt:
    """A small spiking network with statistics of the training images."""
    net = VggBntt(
        (3, "A", 4, 4, "A"), 6, channels=1, size=(4, 4), classes=CLASSES, steps=3,
        generator=torch.Generator().manual_seed(seed), **settings,
    )  # fmt: skip
    layers = [m for m in net.modules() if isinstance(m, BNTT)]
    for layer in layers:
        layer.momentum = 1.0
    net(normalize(DATA.train.images_NCHW, DATA.mean, DATA.std), torch.Generator().manual_seed(1))
    for layer in layers:
        del layer.momentum
    if isinstance(store, Hybrid):
        for name in ("conv1", "conv2", "conv3"):
            net.get_submodule(name).rram = net.get_submodule(name).weight.detach().flip(0).clone()
    place(net, {on: store})
    return net


def stage_of(**changes) -> Evaluate:
    return Evaluate(**{"of": ["net"], "chips": 5, "batch_size": 8, "adapt_batch_size": 8, "spikes": "shared"} | changes)


def evaluated(nets: list[nn.Module], stage: Evaluate, chips=None, done=lambda n: None) -> list[dict]:
    chips = range(stage.chips) if chips is None else chips
    return list(over_chips(lambda chip: nets, chips, DATA, stage, SEED, done))


def one_by_one(nets: list[nn.Module], stage: Evaluate, who) -> list[dict]:
    """What a chip after the other gives, by the plain way of measuring; who: chip → whose spikes it sees."""
    rows = []
    net = nets[0] if len(nets) == 1 else Ensemble(nets)
    for chip in range(stage.chips):
        for number in stage.adapt:
            cells = [generator(SEED, "chips", chip) for _ in nets]

            def redraw(cells=cells):
                for one, g in zip(nets, cells, strict=True):
                    draw(one, g)

            redraw()
            blocks = []
            for one in nets if number else []:
                order = generator(SEED, "batches", "adapt", who(chip))
                spikes = generator(SEED, "batches", "adapt coding", who(chip))
                blocks.append(adapted(one, DATA, number, batch_size=8, order=order, coding=spikes))
                blocks[-1].__enter__()
            found = measure(
                net, DATA.test, DATA, generator(SEED, "batches", "test", who(chip)), batch_size=stage.batch_size,
                drop_last=stage.drop_last, before_batch=redraw if stage.redraw == "batch" else None,
            )  # fmt: skip
            for block in reversed(blocks):
                block.__exit__(None, None, None)
            rows.append({
                "chip": chip, "adapt_batches": number, "accuracy": found.accuracy, "images": found.images,
            })  # fmt: skip
    for one in nets:
        for module in one.modules():
            if hasattr(module, "z"):
                module.z = None
    return rows


CASES = {
    "every layer on the device": ({"on": "*"}, {}),
    "the convolutions": ({}, {}),
    "the first layer ideal": ({"on": "conv[23]"}, {}),
    "the last convolution alone": ({"on": "conv3"}, {}),
    "behind the convolutions": ({"on": "fc*"}, {}),
    "adapted": ({}, {"adapt": [0, 1, 3]}),
    "adapted, the first layer ideal": ({"on": "conv[23]"}, {"adapt": [2, 0]}),
    "without spread, adapted": ({"store": Rram(bits=1)}, {"adapt": [0, 2]}),
    "redrawn for every batch": ({}, {"redraw": "batch"}),
    "redrawn, the first layer ideal": ({"on": "conv[23]"}, {"redraw": "batch"}),
    "complete batches": ({}, {"drop_last": True}),
    "complete batches, redrawn": ({}, {"drop_last": True, "redraw": "batch"}),
    "without spread": ({"store": Rram(bits=1)}, {}),
    "hybrid": ({"store": Hybrid(RRAM, Sram(bits=2))}, {"adapt": [0, 1]}),
    "two rows that overlap": ({"store": Rram(bits=2, rows=((None, None, 0.2), (None, None, 0.1)))}, {}),
    "without normalization": ({"norm": "none", "on": "conv[23]", "leak": 0.8}, {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("coding", ["poisson", "direct"])
def test_chips_that_share_spikes_answer_as_one_by_one_with_these_spikes(case, coding):
    of_net, of_stage = CASES[case]
    net, stage = network(coding=coding, **of_net), stage_of(**of_stage)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert evaluated([net], stage) == one_by_one([net], stage, lambda chip: "shared")
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not any(isinstance(m.store, Held) or m.z is not None for m in net.modules() if hasattr(m, "store"))


def test_both_backends_agree_with_one_by_one(backend):
    net, stage = network(on="conv[23]"), stage_of(adapt=[0, 1])
    rows = evaluated([net], stage)
    assert rows == one_by_one([net], stage, lambda chip: "shared")
    assert len({r["accuracy"] for r in rows}) > 2


@pytest.mark.parametrize("case", CASES)
def test_without_drawn_spikes_rows_are_those_of_chips_one_by_one(case):
    of_net, of_stage = CASES[case]
    net, stage = network(coding="direct", **of_net), stage_of(spikes="per-chip", **of_stage)
    assert evaluated([net], stage) == one_by_one([net], stage, lambda chip: chip)


@pytest.mark.parametrize("adapt", [[0], [0, 2]])
@pytest.mark.parametrize("redraw", ["chip", "batch"])
def test_an_ensemble_shares_as_its_networks_do(adapt, redraw):
    if redraw == "batch" and max(adapt):
        pytest.skip("refused by the recipe")
    nets = [network(seed, on) for seed, on in ((0, "conv*"), (1, "conv3"), (2, "conv[23]"))]
    stage = stage_of(adapt=adapt, redraw=redraw)
    rows = evaluated(nets, stage)
    assert rows == one_by_one(nets, stage, lambda chip: "shared")
    assert rows != evaluated(nets[:1], stage)


@pytest.mark.parametrize("at_once", [1, 3, 100])
@pytest.mark.parametrize("changes", [{}, {"adapt": [0, 2]}, {"redraw": "batch"}], ids=str)
def test_rows_do_not_depend_on_how_many_chips_are_held(at_once, changes, monkeypatch):
    net, stage = network(on="conv[23]"), stage_of(**changes)
    wanted = evaluated([net], stage)
    monkeypatch.setattr(together, "AT_ONCE", at_once)
    assert evaluated([net], stage) == wanted
    monkeypatch.setattr(together, "CELLS_BYTES", 2 * chip_bytes(net) + 1)
    assert [len(g) for _, g in together.groups(lambda c: [net], range(5), stage)][0] == min(at_once, 2)
    assert evaluated([net], stage) == wanted
    monkeypatch.setattr(together, "CELLS_BYTES", 0)
    assert [len(g) for _, g in together.groups(lambda c: [net], range(5), stage)] == [1] * 5
    assert evaluated([net], stage) == wanted


@pytest.mark.parametrize(
    ("net", "stage", "sizes"),
    [
        ({}, {}, [25, 5]),
        ({"store": Rram(bits=1)}, {}, [30]),
        ({"store": Rram(bits=1)}, {"adapt": [0, 2]}, [25, 5]),  # each chip has statistics of its own
        ({"coding": "direct"}, {"spikes": "per-chip"}, [25, 5]),
        ({}, {"spikes": "per-chip"}, [1] * 30),
    ],
    ids=str,
)
def test_as_many_chips_make_a_group_as_see_the_same_and_may_be_held(net, stage, sizes):
    net = network(**net)
    assert [len(g) for _, g in together.groups(lambda c: [net], range(30), stage_of(**stage))] == sizes


@pytest.mark.parametrize("changes", [{}, {"adapt": [0, 2]}, {"redraw": "batch"}], ids=str)
@pytest.mark.parametrize("spikes", ["per-chip", "shared"])
def test_any_of_the_chips_have_the_rows_that_they_have_among_all(changes, spikes):
    net, stage = network(coding="poisson" if spikes == "shared" else "direct"), stage_of(spikes=spikes, **changes)
    rows = evaluated([net], stage)
    for some in ([4, 2], [3], range(1, 5, 2), []):
        assert evaluated([net], stage, some) == [r for c in some for r in rows if r["chip"] == c]


def test_chips_with_networks_of_their_own_are_measured_on_them():
    nets = {chip: network(chip) for chip in range(4)}
    stage = stage_of(chips=4)
    rows = list(over_chips(lambda chip: [nets[chip]], range(4), DATA, stage, SEED, lambda n: None))
    for chip in range(4):
        assert evaluated([nets[chip]], stage, [chip]) == [rows[chip]]
    assert len({r["accuracy"] for r in rows}) > 1


def test_shared_spikes_are_the_same_for_all_and_others_for_another_seed():
    net, seen = network(), []
    encode = net.encode

    def watched(x, coding):
        out = encode(x, coding)
        seen.append(out.numpy().tobytes())
        return out

    net.encode = watched
    for seed in (1, 2):
        list(over_chips(lambda chip: [net], range(3), DATA, stage_of(), seed, lambda n: None))
    assert len(seen) == 6 and len(set(seen)) == 6


# --------------------------------------------------------------------------------------------- what is computed once


def counted(net: nn.Module, stage: Evaluate) -> dict[str, int]:
    """How often the test images are encoded, and how often each layer runs in evaluation mode."""
    calls: dict[str, int] = {"encode": 0}
    encode = net.encode

    def watched(x, coding=None):
        calls["encode"] += not net.training
        return encode(x, coding)

    def count(layer, *_, name):
        calls[name] = calls.get(name, 0) + (not layer.training)

    net.encode = watched
    for name, layer in net.named_modules():
        if hasattr(layer, "store") or isinstance(layer, BNTT):
            layer.register_forward_hook(partial(count, name=name))
    evaluated([net], stage)
    return calls


def test_leading_layers_that_stay_run_once_a_batch(monkeypatch):
    monkeypatch.setattr(together, "AT_ONCE", 4)
    batches, groups, chips = 3, 2, 5
    once, each = batches * groups, batches * chips
    calls = counted(network(on="conv3"), stage_of())
    assert [calls[n] for n in ("encode", "conv1", "bntt1", "conv2", "bntt2")] == [once] * 5
    assert [calls[n] for n in ("conv3", "bntt3", "fc1", "bntt_fc", "fc2")] == [each] * 5
    calls = counted(network(), stage_of())
    assert (calls["encode"], calls["conv1"], calls["bntt1"]) == (once, each, each)


def test_of_an_adapted_chip_the_first_currents_alone_are_shared(monkeypatch):
    monkeypatch.setattr(together, "AT_ONCE", 4)
    for spikes, coding in (("shared", "poisson"), ("per-chip", "direct")):
        calls = counted(network(on="conv3", coding=coding), stage_of(adapt=[2], spikes=spikes))
        assert (calls["encode"], calls["conv1"], calls["bntt1"], calls["conv2"]) == (6, 6, 15, 15)


def test_where_nothing_differs_one_pass_speaks_for_all_chips():
    for coding, spikes in (("poisson", "shared"), ("direct", "per-chip")):
        net, stage = network(store=Rram(bits=1), coding=coding), stage_of(chips=200, spikes=spikes)
        calls = counted(net, stage)
        assert set(calls.values()) == {3}
        done: list[int] = []
        rows = evaluated([net], stage, done=done.append)
        assert [r["chip"] for r in rows] == list(range(200)) and len({r["accuracy"] for r in rows}) == 1
        assert sum(done) == 200 * 22


def test_chips_with_spikes_of_their_own_share_nothing():
    calls = counted(network(on="conv3"), stage_of(spikes="per-chip"))
    assert set(calls.values()) == {15}


def test_rows_are_asked_for_when_the_next_group_has_been_begun(monkeypatch):
    net, drawn = network(), []
    monkeypatch.setattr(together, "AT_ONCE", 2)
    monkeypatch.setattr(together, "draw", lambda one, g: drawn.append(1) or draw(one, g))
    rows = over_chips(lambda chip: [net], range(5), DATA, stage_of(), SEED, lambda n: None)
    assert (next(rows)["chip"], len(drawn)) == (0, 4)
    assert (next(rows)["chip"], len(drawn)) == (1, 4)
    assert (next(rows)["chip"], len(drawn)) == (2, 5)
    assert [row["chip"] for row in rows] == [3, 4]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("changes", [{}, {"redraw": "batch"}], ids=str)
def test_on_cuda_nothing_waits_and_the_chips_are_those_of_the_cpu(changes):
    nets = {device: network(on="conv[23]").to(device) for device in ("cpu", "cuda")}
    for net in nets.values():
        draw(net, generator(SEED, "chips", 0))
    assert torch.equal(nets["cuda"].conv2.z.cpu(), nets["cpu"].conv2.z)
    stage, chips = stage_of(batch_size=22, **changes), [0, 1, 2]

    def run() -> tuple[torch.Tensor, int]:
        return together.one_pass([nets["cuda"]], chips, 0, DATA, stage, SEED, lambda n: None)

    wanted = run()[0].tolist()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        correct, images = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert correct.tolist() == wanted and images == 22


def test_every_chip_reports_its_images():
    for stage, images in ((stage_of(), 22), (stage_of(adapt=[0, 1]), 44), (stage_of(drop_last=True), 16)):
        done: list[int] = []
        evaluated([network()], stage, done=done.append)
        assert sum(done) == 5 * images


# ------------------------------------------------------------------------------------------------------------- memory


def alive() -> int:
    """Bytes of all tensors that live and were not frozen."""
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, nn.Parameter):
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


@pytest.mark.parametrize("changes", [{}, {"adapt": [0, 2]}, {"redraw": "batch"}], ids=str)
def test_memory_does_not_grow_with_the_number_of_chips(changes, monkeypatch):
    monkeypatch.setattr(together, "AT_ONCE", 3)
    net = network()

    def largest(chips: int) -> int:
        peak = 0

        def look(*_):
            nonlocal peak
            peak = max(peak, alive())

        hook = net.fc2.register_forward_hook(look)
        gc.collect()
        gc.freeze()  # what lives already is not looked at
        try:
            evaluated([net], stage_of(chips=chips, batch_size=22, **changes))
        finally:
            gc.unfreeze()
            hook.remove()
        return peak

    largest(1)
    most = {chips: largest(chips) for chips in (1, 3, 4, 12)}
    results = 8 * 3 * 2 * len(changes.get("adapt", [0]))  # a number for each chip of two groups
    # A chip's cells are kept by a group: three of them, and no more however many follow.
    kept = 0 if "redraw" in changes else 2 * chip_bytes(net)
    assert most[3] - most[1] >= kept
    assert most[12] <= most[3] + results and most[4] <= most[3] + results


# ------------------------------------------------------------------------------------------------- a pass in two parts


def converted(one_step: bool = True) -> Spiking:
    settings = {"channels": 1, "size": (8, 8), "classes": CLASSES}
    net = vgg15.build("vgg6-abr", width=0.1, generator=torch.Generator().manual_seed(1), **settings)
    return Spiking(net, steps=12, one_step=one_step)


def integer() -> nn.Module:
    settings = {"channels": 1, "size": (8, 8), "classes": CLASSES, "steps": 5}
    return bitnet.build("bitnet6", width=0.1, generator=torch.Generator().manual_seed(1), **settings)


@pytest.mark.parametrize("coding", ["poisson", "direct", "repeat"])
@pytest.mark.parametrize("norm", ["bntt", "none"])
@pytest.mark.parametrize("plan", [(3, "A", 4, 4, "A"), (3, 4, "G"), ()], ids=str)
def test_what_leads_and_what_follows_are_the_pass(coding, norm, plan, backend):
    net = VggBntt(
        plan, 6, channels=1, size=(4, 4), classes=CLASSES, steps=3, coding=coding, norm=norm, leak=0.9, threshold=0.3,
        generator=torch.Generator().manual_seed(1),
    ).eval()  # fmt: skip
    x = normalize(DATA.test.images_NCHW, DATA.mean, DATA.std)
    with torch.no_grad():
        x_TBCHW = net.encode(x, generator(1))
        wanted = net.run(x_TBCHW)[0]
        for until in range(len(plan) * 2 + 1):
            fixed = list(net.children())[:until]
            at = net.lead(x_TBCHW, lambda m, fixed=fixed: m in fixed)
            for _ in range(2):  # what leads is not used up
                assert torch.equal(net.follow(at), wanted)
    assert bool(wanted.any())


@pytest.mark.parametrize("build", [converted, partial(converted, False), integer])
@pytest.mark.parametrize("is_fixed", [True, False])
def test_other_networks_lead_by_their_first_currents(build, is_fixed):
    net = build().eval()
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted, first = net.run(net.encode(x))[0], next(m for m in net.modules() if hasattr(m, "store"))
        runs = []
        first.register_forward_hook(lambda *_: runs.append(1))
        at = net.lead(net.encode(x), lambda m: is_fixed)
        assert torch.equal(net.follow(at), wanted) and torch.equal(net.follow(at), wanted)
    assert len(runs) == (1 if is_fixed else 2)


@pytest.mark.parametrize("build", [converted, integer, lambda: converted_from()])
@pytest.mark.parametrize("on", ["*", "*2"])
def test_other_networks_answer_as_one_by_one(build, on, monkeypatch):
    net = build()
    place(net, {on: Rram(bits=2, sigma=0.5)})
    data = ImageData("x", *[Split(torch.randint(0, 256, (9, 1, 8, 8), dtype=torch.uint8, generator=generator(3)),
                                  torch.arange(9) % CLASSES)] * 3, CLASSES, (0.5,), (0.3,), "")  # fmt: skip
    monkeypatch.setattr("test_together.DATA", data)
    stage = stage_of(spikes="per-chip", batch_size=4, chips=4)
    assert evaluated([net], stage) == one_by_one([net], stage, lambda chip: chip)


def converted_from() -> nn.Module:
    settings = {"channels": 1, "size": (8, 8), "classes": CLASSES}
    return vgg15.build("vgg6-abr", width=0.1, generator=torch.Generator().manual_seed(1), **settings)


# ------------------------------------------------------------------------------------------------------------- a chip


def test_a_chip_that_was_taken_reads_as_it_did_whatever_is_drawn_since():
    net = network(on="conv[23]")
    draw(net, generator(1))
    parts = held(net)
    wanted = [net.conv2.store.read(net.conv2).detach(), net.conv3.store.read(net.conv3).detach()]
    draw(net, generator(2))
    assert [m for m, _, _ in parts] == [net.conv2, net.conv3] and varies(net.conv2) and not varies(net.conv1)
    stores = [net.conv2.store, net.conv3.store]
    with put(parts):
        found = [m.store.read(m) for m in (net.conv2, net.conv3)]
        assert all(map(torch.equal, found, wanted)) and not varies(net.conv2)
        assert all(f.data_ptr() == part.weight.data_ptr() for f, (_, _, part) in zip(found, parts, strict=True))
    assert net.conv2.store is stores[0] and net.conv3.store is stores[1]
    assert not torch.equal(net.conv2.store.read(net.conv2), wanted[0])


def test_what_was_there_comes_back_after_an_exception():
    net = network()
    draw(net, generator(1))
    store, mean = net.conv1.store, net.bntt1.running_mean
    with pytest.raises(ZeroDivisionError), put([*held(net), (net.bntt1, "running_mean", torch.zeros(3, 3))]):
        assert isinstance(net.conv1.store, Held) and not net.bntt1.running_mean.any()
        raise ZeroDivisionError
    assert net.conv1.store is store and net.bntt1.running_mean is mean


def test_the_bytes_of_a_chip_are_those_of_the_layers_that_vary():
    net = network(on="conv[23]")
    assert chip_bytes(net) == 4 * (net.conv2.weight.numel() + net.conv3.weight.numel())
    assert chip_bytes(network(store=Ideal())) == 0


# -------------------------------------------------------------------------------------------------------------- a run


def keys_of(**evaluate) -> dict[str, str]:
    recipe = resolve(Request("vat", {})).recipe
    stage = recipe.stages["evaluate"].model_copy(update=evaluate)
    recipe = recipe.model_copy(update={"stages": {**recipe.stages, "evaluate": stage}})
    return stage_keys(recipe, "checksum", "cpu", {}, {})


def test_results_from_before_the_setting_are_found_again(monkeypatch):
    now, shared = keys_of(), keys_of(spikes="shared")
    assert now.pop("evaluate") != shared.pop("evaluate") and now == shared
    hashed = []
    monkeypatch.setattr(keys, "content_hash", lambda value: hashed.append(value["stage"]) or "key")
    keys_of()
    keys_of(spikes="shared")
    assert [h["spikes"] for h in hashed if "spikes" in h] == ["shared"]


def test_a_run_with_shared_spikes_is_another_result_of_the_same_networks(tmp_path):
    given = ["recipe", TINY, "--runs", tmp_path, "--epochs", "1"]
    runs: list[set] = []
    for spikes in ("per-chip", "shared"):
        done = hwsim(*given, "--set", f"stages.evaluate.spikes={spikes}")
        assert done.code == 0, done.err
        runs.append({p.parent for p in tmp_path.glob("*/chips.csv")})
    assert "vat: finished before" in done.err and "evaluate: finished before" not in done.err
    (shared,) = runs[1] - runs[0]
    assert len(runs[0]) == 1 and "spikes: shared" in (shared / "recipe.yaml").read_text()
    with (shared / "chips.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert [(r["network"], r["variation_scale"], r["chip"]) for r in rows] == [
        (n, s, c) for n in ("start", "vat") for s in ("0", "2") for c in "012"
    ]
    clean = {(r["network"], r["accuracy"]) for r in rows if r["variation_scale"] == "0"}
    assert len(clean) == 2  # without spread all chips of a network answer alike
    assert "per-chip" in refused(*given, "--set", "stages.evaluate.spikes=none")
