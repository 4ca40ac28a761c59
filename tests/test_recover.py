"""SRAM recovery: what a hybrid network begins with, what learns, masks, chips, ensembles, interruption."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from command_line import hwsim

from hwsim.device.hybrid import Hybrid, Masked, Sram
from hwsim.device.quantize import xnor_gradient
from hwsim.device.store import Ideal, Rram, Ternary, draw, load, place
from hwsim.network.vgg_bntt import VggBntt, build
from hwsim.recipe import member, prune, train
from hwsim.recipe.checkpoint import load_tensors
from hwsim.recipe.randomness import generator as derived
from hwsim.recipe.recover import as_parent, begin, sram_rows, sram_words
from hwsim.recipe.reference import export_state, kept_by_reference
from hwsim.recipe.settings import Recover, SramSettings
from hwsim.recipe.xnor import rewrite_gradients

GOLDEN = json.loads((Path(__file__).parent / "golden" / "reference.json").read_text(encoding="utf-8"))["recovery_load"]
LAYERS = ("conv1", "conv2", "conv3")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
INITS = ("zeros", "residual", "rram", "sram", "xavier")
RRAMS = [Rram(1, sigma=0.08), Rram(2, sigma=0.13), Rram(4, sigma=0.35), Ternary(sigma=0.08), Ideal()]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(store=None, seed: int = 0) -> VggBntt:
    """A network of three convolutions with initial weights; with a store, they lie on it."""
    net = VggBntt((4, "A", 6, 4, "A"), 5, channels=1, size=(8, 8), classes=3, steps=2, generator=seeded(seed))
    if store is not None:
        place(net, {"conv*": store})
    return net


def trained(net: VggBntt, seed: int) -> dict[str, torch.Tensor]:
    """A state in which every tensor is another than in a fresh network."""
    g, state = seeded(seed), net.state_dict()
    for key, value in state.items():
        if key.endswith("num_batches_tracked"):
            state[key] = value + 7
        else:
            state[key] = value + 0.05 + 0.3 * torch.rand(value.shape, generator=g) * (value.abs() + 0.1)
    return state


PARENT, OTHER = trained(small(seed=1), 1), trained(small(seed=2), 2)
IMAGES = torch.randn(5, 1, 8, 8, generator=seeded(9))


def wanted(**settings) -> Recover:
    sram = SramSettings(**settings.pop("sram", {}))
    return Recover(**{"from": "vat"}, sram=sram, **settings)


def begun(store, parent=PARENT, chip: int | None = None, **settings) -> VggBntt:
    net = small(store)
    begin(net, parent, wanted(**settings), chip, seed=5, other=OTHER)
    return net


def logits(net: VggBntt, chip: int | None) -> torch.Tensor:
    net.eval()
    if chip is not None:
        draw(net, derived(5, "chips", chip))
    with torch.no_grad():
        return net(IMAGES, seeded(4))[0]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ------------------------------------------------------------------------------------------- what it begins with


@pytest.mark.parametrize("init", INITS)
def test_everything_but_the_convolutions_is_the_parents_and_these_lie_in_rram(init):
    state = begun(Hybrid(Rram(2), Sram(4)), init=init).state_dict()
    assert set(state) == set(PARENT) | {f"{n}.rram" for n in LAYERS}
    for key, value in PARENT.items():
        assert torch.equal(state[f"{key[:5]}.rram" if key.startswith("conv") else key], value), key


@pytest.mark.parametrize("init", INITS)
def test_with_statistics_nothing_else_of_the_parent_is_taken_over(init):
    # Trap B1: the scales of BNTT and the classifier begin anew.
    state, fresh = begun(Hybrid(Rram(2), Sram(4)), init=init, loads="statistics").state_dict(), small().state_dict()
    for key in PARENT:
        if not key.startswith("conv"):
            of = PARENT if key.endswith(STATISTICS) else fresh
            assert torch.equal(state[key], of[key]) and not torch.equal(PARENT[key], fresh[key]), key
    assert all(torch.equal(state[f"{n}.rram"], PARENT[f"{n}.weight"]) for n in LAYERS)


def test_the_keys_that_statistics_loads_are_those_that_the_reference_loads():
    plain = build("vgg9", width=1 / 32, channels=3, size=(32, 32), classes=10, steps=2, generator=seeded(0))
    parent, net = trained(plain, 1), build(
        "vgg9", width=1 / 32, channels=3, size=(32, 32), classes=10, steps=2, generator=seeded(0)
    )  # fmt: skip
    place(net, {"conv*": Hybrid(Rram(2), Sram(4))})
    begin(net, parent, wanted(loads="statistics", init="xavier"), None, seed=5)
    theirs, found = export_state(parent), export_state(net.state_dict())
    loaded = [key for key in theirs if torch.equal(theirs[key], found[key])]
    counts = GOLDEN["vgg9_T2_counts"]
    assert (len(theirs), len(loaded)) == (counts["total_keys"], counts["kept"])
    assert sorted(loaded) == sorted(kept_by_reference(theirs))
    assert {key.rpartition(".")[2] for key in loaded} == set(GOLDEN["kept_suffixes"])


@pytest.mark.parametrize("loads", ["all_but_convs", "statistics"])
def test_the_sram_part_begins_with_what_init_says(loads):
    hybrid, fresh = Hybrid(Rram(2, sigma=0.2), Sram(4)), small().state_dict()
    expected = {
        "zeros": lambda n: torch.zeros_like(PARENT[f"{n}.weight"]),
        "residual": lambda n: PARENT[f"{n}.weight"] - hybrid.rram.held(PARENT[f"{n}.weight"]),
        "rram": lambda n: PARENT[f"{n}.weight"],
        "sram": lambda n: OTHER[f"{n}.weight"],
        "xavier": lambda n: fresh[f"{n}.weight"],
    }
    for init in INITS:
        net = begun(hybrid, init=init, loads=loads)
        for n in LAYERS:
            assert torch.equal(net.get_submodule(n).weight, expected[init](n)), (init, n)
            assert net.get_submodule(n).mask is None
        assert all(p.requires_grad for p in net.parameters())


def test_layers_that_are_not_on_the_device_are_the_parents():
    net = small()
    place(net, {"conv[13]": Hybrid(Rram(2), Sram(4))})
    begin(net, PARENT, wanted(init="zeros"), None, seed=5)
    assert net.conv2.rram is None and torch.equal(net.conv2.weight, PARENT["conv2.weight"])
    assert not net.conv1.weight.any() and torch.equal(net.conv3.rram, PARENT["conv3.weight"])


@pytest.mark.parametrize(("grid", "shift"), [("twos-complement", 0), ("twos-complement", -3), ("none", 2)])
@pytest.mark.parametrize("rram", RRAMS, ids=repr)
def test_with_sram_zero_a_network_is_its_parent_bit_for_bit_on_every_chip(rram, grid, shift):
    plain = small(rram)
    load(plain, PARENT)
    net = begun(Hybrid(rram, Sram(4, grid), shift), init="zeros")
    for chip in (None, 3):
        assert torch.equal(logits(net, chip), logits(plain, chip))
        for n in LAYERS:
            mine, theirs = net.get_submodule(n), plain.get_submodule(n)
            assert torch.equal(mine.store.read(mine), theirs.store.read(theirs))


@pytest.mark.parametrize("chip", [None, 4])
@pytest.mark.parametrize(("bits", "shift"), [(2, 0), (4, -1), (4, 0), (8, 1)])
@pytest.mark.parametrize("rram", [*RRAMS[:4], Rram(2, "xnor", sigma=0.13, clamp="signed")], ids=repr)
def test_a_residual_leaves_what_a_word_cannot_express(rram, bits, shift, chip):
    net = begun(Hybrid(rram, Sram(bits), shift), chip=chip, init="residual")
    alone = small(rram)
    load(alone, PARENT)
    if chip is not None:
        draw(alone, derived(5, "chips", chip))
    for n in LAYERS:
        layer, master = net.get_submodule(n), PARENT[f"{n}.weight"]
        cells = rram.held(master, alone.get_submodule(n).z)
        missing, unit, m = master - cells, rram.full_scale(master) * 2.0**shift, 2 ** (bits - 1)
        beyond = (missing - unit * (m - 1) / m).clamp(min=0) + (-unit - missing).clamp(min=0)
        left = (layer.store.read(layer).detach() - master).abs()
        assert (left <= beyond + unit / m / 2 * 1.001 + 1e-6).all()
        if bits == 8:
            assert left.mean() < missing.abs().mean() / 8


@pytest.mark.parametrize("shift", [-2, 1])
def test_a_residual_of_words_that_the_adder_shifts_is_divided_by_the_shift(shift):
    net = begun(Hybrid(Rram(2, sigma=0.1), Sram(4, "none"), shift), chip=2, init="residual", sram={"quantizer": "none"})
    for n in LAYERS:
        layer = net.get_submodule(n)
        torch.testing.assert_close(layer.store.read(layer).detach(), PARENT[f"{n}.weight"])


def test_residuals_of_two_chips_and_of_none_differ():
    a, b, c = (begun(Hybrid(Rram(2, sigma=0.1), Sram(4)), chip=k, init="residual").conv2.weight for k in (0, 1, None))
    assert not torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("loads", ["all_but_convs", "statistics"])
def test_a_hybrid_parent_goes_on_as_it_is(init, loads):
    parent = begun(Hybrid(Rram(2), Sram(4)), init="sram").state_dict()
    again = begun(Hybrid(Rram(2), Sram(4)), parent=parent, init=init, loads=loads)
    assert same(again.state_dict(), parent)
    masked = dict(parent) | {f"{n}.mask": torch.rand(parent[f"{n}.weight"].shape) > 0.5 for n in LAYERS}
    net = begun(Hybrid(Rram(2), Masked(Sram(4))), parent=masked, init=init, loads=loads)
    assert same(net.state_dict(), masked)
    held, mask = sram_words(net.conv2), masked["conv2.mask"]
    assert not held[~mask].any() and held[mask].any()


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("loads", ["all_but_convs", "statistics"])
def test_as_parent_computes_what_the_parent_does_whatever_was_begun_with(init, loads):
    rram = Rram(2, sigma=0.13)
    net, plain = begun(Hybrid(rram, Sram(4)), init=init, loads=loads), small(rram)
    load(plain, PARENT)
    load(net, as_parent(net, PARENT))
    assert torch.equal(logits(net, 1), logits(plain, 1))
    before = {k: v.clone() for k, v in PARENT.items()}
    net.conv1.weight.data.add_(1)
    assert same(PARENT, before)


def test_as_parent_of_a_hybrid_parent_keeps_its_sram():
    parent = begun(Hybrid(Rram(2), Sram(4)), init="sram").state_dict()
    net = begun(Hybrid(Rram(2), Sram(4)), parent=parent)
    assert same(as_parent(net, parent), parent) and parent["conv1.weight"].any()


# ------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("shift", [-1, 0, 2])
@pytest.mark.parametrize("grid", ["twos-complement", "xnor"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_xnor_gradient_is_that_of_the_sram_words_and_leaves_all_else(grid, shift, masked):
    net, rram, words = small(), Rram(2, "xnor", sigma=0.1), Sram(3, grid)
    place(net, {"conv2": Hybrid(rram, Masked(words) if masked else words, shift), "conv3": rram})
    hybrid, g = net.conv2, seeded(3)
    hybrid.rram = torch.randn(hybrid.weight.shape, generator=g)
    hybrid.mask = torch.rand(hybrid.weight.shape, generator=g) > 0.4 if masked else None
    draw(net, seeded(1))
    for p in net.parameters():
        p.grad = torch.randn(p.shape, generator=g)
    before = {n: p.grad.clone() for n, p in net.named_parameters()}
    values = {n: p.detach().clone() for n, p in net.named_parameters()}
    rewrite_gradients(net)
    unit = rram.full_scale(hybrid.rram) * 2.0**shift if grid == "twos-complement" else 1.0
    held = words.held(values["conv2.weight"], full_scale=unit) * (hybrid.mask if masked else 1)
    expected = {
        "conv2.weight": xnor_gradient(held, before["conv2.weight"]),
        "conv3.weight": xnor_gradient(rram.held(values["conv3.weight"]), before["conv3.weight"]),
    }
    for n, p in net.named_parameters():
        torch.testing.assert_close(p.grad, expected.get(n, before[n]))
        assert torch.equal(p, values[n])
    assert all(not torch.equal(expected[n], before[n]) for n in expected)


# ------------------------------------------------------------------------------------------------- whole recoveries

HEAD = """
title: Recovery, as small as it can be
net: {name: vgg5, width: 0.0625, steps: 2}
data: {name: digits, limit: 40}
device: {weights: {bits: 2}}
stages:
  vat: {do: train, epochs: 2, batch_size: 16, lr: 0.1, validation_chips: 1, drop_at: []}
"""
COMMON = "batch_size: 16, lr: 0.1, drop_at: [], validation_chips: 1"
RECOVER = f"  recover: {{do: recover, from: vat, epochs: 2, keep_parent: false, {COMMON}}}\n"
CHIPS = f"  chips: {{do: recover, from: vat, epochs: 2, keep_parent: false, redraw: chip, fixed_chips: 3, {COMMON}}}\n"
SHIFTS = (
    "  shifts: {do: recover, from: vat, epochs: 1, keep_parent: false, sram: {bits: 3, shift_bits: [-1, 0, 1]}, "
    f"{COMMON}}}\n"
)
PRUNED = (
    "  pruned: {do: recover, from: vat, epochs: 4, init: residual, prune: {group: 2, lamda: 0.01, threshold: 0.3, "
    f"fixed_from: 0.5}}, {COMMON}}}\n"
)
AFTER = f"  after: {{do: recover, from: pruned, epochs: 2, init: residual, keep_parent: false, {COMMON}}}\n"


EPOCHS_BEFORE: dict[str, int] = {}
"""What each training of the fixture `finished` was told of the epochs before it."""


def written(folder: Path, stages: str) -> Path:
    """A recipe's file with these stages behind vat."""
    folder.mkdir(exist_ok=True)
    file = folder / "r.yaml"
    file.write_text(HEAD.lstrip() + stages, encoding="utf-8")
    return file


def run(folder: Path, stages: str, *arguments: str) -> Path:
    """The run folder of a recipe with these stages behind vat, in a folder that may hold finished stages."""
    done = hwsim("recipe", written(folder, stages), "--runs", folder / "runs", "--quiet", *arguments)
    assert done.code == 0, done.err
    return Path(done.out.splitlines()[-1]).parent


def weights(folder: Path, stage: str, which: str = "") -> dict[str, torch.Tensor]:
    return load_tensors(folder / stage / f"weights{which}.safetensors")[0]


def table(folder: Path, name: str, stage: str) -> list[dict[str, str]]:
    with (folder / name).open(newline="", encoding="utf-8") as f:
        return [row for row in csv.DictReader(f) if row["stage"] == stage]


@pytest.fixture(scope="module")
def begun_runs(tmp_path_factory) -> Path:
    """Runs in which vat is finished, to be copied."""
    folder = tmp_path_factory.mktemp("begun")
    run(folder, "")
    return folder / "runs"


@pytest.fixture(scope="module")
def home(tmp_path_factory, begun_runs) -> Path:
    """Where tests share finished stages."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(begun_runs, folder / "runs")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, begun_runs) -> Path:
    """A run of all kinds of recovery."""
    folder, go = tmp_path_factory.mktemp("finished"), member.train
    shutil.copytree(begun_runs, folder / "runs")

    def recorded(net, data, stage, **settings):
        EPOCHS_BEFORE[settings["name"]] = settings["epochs_before"]
        return go(net, data, stage, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(member, "train", recorded)
        return run(folder, RECOVER + CHIPS + SHIFTS + PRUNED + AFTER)


def files(folder: Path, stage: str) -> list[str]:
    return sorted(p.name for p in (folder / stage).iterdir())


@pytest.mark.parametrize(
    ("stage", "which"),
    [("recover", ""), ("chips", "-chip0"), ("chips", "-chip2"), ("shifts", "-shift-1"), ("pruned", ""), ("after", "")],
)
def test_rram_never_changes_and_everything_else_learns(finished, stage, which):
    vat, net = weights(finished, "vat"), weights(finished, stage, which)
    for n in LAYERS:
        assert torch.equal(net[f"{n}.rram"], vat[f"{n}.weight"])
        assert net[f"{n}.weight"].any()
    for key, value in vat.items():
        if not key.startswith("conv") and not key.endswith(STATISTICS):
            assert not torch.equal(net[key], value), key
    tracked = net["bntt1.num_batches_tracked"] - vat["bntt1.num_batches_tracked"]
    assert (tracked > 0).all()


def test_a_recovery_goes_on_with_other_batches_than_its_parents(finished):
    chips, shifts = (f"chips-chip{c}" for c in range(3)), (f"shifts-shift{s:+d}" for s in (-1, 0, 1))
    assert set(EPOCHS_BEFORE) == {"recover", *chips, *shifts, "pruned", "after"}
    assert all(before == (6 if name == "after" else 2) for name, before in EPOCHS_BEFORE.items())


def test_metrics_tell_chip_and_shift_of_each_network(finished):
    where = {s: [(r["chip"], r["shift_bit"], r["epoch"]) for r in table(finished, "metrics.csv", s)]
             for s in ("vat", "recover", "chips", "shifts")}  # fmt: skip
    assert where["vat"] == [("", "", "1"), ("", "", "2")]
    assert where["recover"] == [("", "0", "1"), ("", "0", "2")]
    assert where["chips"] == [(c, "0", e) for c in "012" for e in "12"]
    assert where["shifts"] == [("", s, "1") for s in ("-1", "0", "1")]
    rows = table(finished, "sram.csv", "chips")
    assert [(r["chip"], r["layer"]) for r in rows] == [(c, n) for c in "012" for n in LAYERS]


# ----------------------------------------------------------------------------------------------- keeping the parent


def script(monkeypatch, *accuracies: float) -> None:
    """The validation accuracies of the epochs to come, in order."""
    left = list(accuracies)

    def judged(net, data, stage, seed, chip, ranks):
        train.measure(net, data.validation, data, derived(0), batch_size=8)  # as ever: in evaluation mode
        return left.pop(0), 1.0

    monkeypatch.setattr(train, "_validate", judged)


KEEPING = RECOVER.replace("keep_parent: false", "keep_parent: true")


@pytest.mark.parametrize("loads", ["all_but_convs", "statistics"])
def test_the_parent_is_kept_where_no_epoch_is_better(home, monkeypatch, loads):
    vat = weights(run(home, ""), "vat")
    script(monkeypatch, 0.5, 0.4, 0.5)  # an equal epoch is no better
    stage = KEEPING.replace("epochs: 2", f"epochs: 2, init: xavier, loads: {loads}")
    folder = run(home, stage)
    net = weights(folder, "recover")
    for key, value in vat.items():
        assert torch.equal(net[f"{key[:5]}.rram" if key.startswith("conv") else key], value)
    assert not any(net[f"{n}.weight"].any() for n in LAYERS)
    rows = table(folder, "metrics.csv", "recover")
    assert [(r["epoch"], r["is_best"], r["validation_accuracy"]) for r in rows] == [
        ("0", "1", "0.5"), ("1", "0", "0.4"), ("2", "0", "0.5")]  # fmt: skip
    assert (rows[0]["lr"], rows[0]["train_loss"]) == ("0", "")
    assert {r["zero_fraction"] for r in table(folder, "sram.csv", "recover")} == {"1"}


def test_a_better_epoch_is_kept_in_place_of_the_parent(home, monkeypatch):
    script(monkeypatch, 0.5, 0.6, 0.4)
    folder = run(home, KEEPING.replace("epochs: 2", "epochs: 2, variation_scale: 2"))
    assert all(weights(folder, "recover")[f"{n}.weight"].any() for n in LAYERS)
    assert [r["is_best"] for r in table(folder, "metrics.csv", "recover")] == ["1", "1", "0"]


def test_without_keep_parent_only_what_was_trained_counts(finished):
    assert [r["epoch"] for r in table(finished, "metrics.csv", "recover")] == ["1", "2"]
    assert weights(finished, "recover")["conv1.weight"].any()


def test_a_hybrid_parent_is_kept_with_its_sram(home, monkeypatch):
    script(monkeypatch, 0.5, 0.6, 0.9, 0.4, 0.4)
    again = KEEPING.replace("recover: {", "again: {").replace("from: vat", "from: recover")
    folder = run(home, RECOVER.replace("lr: 0.1", "lr: 0.12") + again)
    assert same(weights(folder, "again"), weights(folder, "recover"))
    assert weights(folder, "again")["conv1.weight"].any()


def test_the_parent_is_judged_under_the_stages_variation_before_anything_is_trained(home, monkeypatch):
    judged, go = [], train._validate

    def watched(net, data, stage, seed, chip, ranks):
        result = go(net, data, stage, seed, chip, ranks)
        judged.append((net.conv2.weight.detach().clone(), net.fc1.weight.detach().clone(), result))
        return result

    monkeypatch.setattr(train, "_validate", watched)
    folder = run(home, KEEPING.replace("epochs: 2", "epochs: 1, init: residual"))
    vat = weights(folder, "vat")
    assert len(judged) == 2
    (sram, fc, (accuracy, loss)), (later, *_) = judged
    assert not sram.any() and torch.equal(fc, vat["fc1.weight"])
    assert later.any()  # what was begun with has come back before the first epoch
    row = table(folder, "metrics.csv", "recover")[0]
    assert float(row["validation_accuracy"]) == pytest.approx(accuracy)
    assert float(row["validation_loss"]) == pytest.approx(loss)


# ---------------------------------------------------------------------------------------------------------- pruning


def test_a_pruned_network_holds_its_masks_and_masked_weights_are_zero(finished):
    net = weights(finished, "pruned")
    assert net["conv1.mask"].all()
    for n in LAYERS[1:]:
        mask = net[f"{n}.mask"]
        assert mask.dtype == torch.bool and 0.02 < mask.double().mean() < 0.98
        assert not net[f"{n}.weight"][~mask].any() and net[f"{n}.weight"][mask].any()
    for row in table(finished, "sram.csv", "pruned"):
        masked = 1 - net[f"{row['layer']}.mask"].double().mean()
        assert float(row["masked_fraction"]) == pytest.approx(float(masked), abs=1e-6)
        assert float(row["zero_fraction"]) >= float(row["masked_fraction"]) - 1e-6


def test_a_pruned_network_computes_without_its_masked_words(finished):
    net = small(Hybrid(Rram(2), Masked(Sram(4))))
    state = dict(net.state_dict()) | {
        f"{n}.rram": torch.ones_like(net.get_submodule(n).weight) for n in LAYERS} | {
        f"{n}.mask": torch.zeros_like(net.get_submodule(n).weight, dtype=torch.bool) for n in LAYERS}  # fmt: skip
    load(net, state)
    (row, *_) = sram_rows(net, 4)
    assert (row["zero_fraction"], row["masked_fraction"], row["bits"]) == (1.0, 1.0, 4)
    assert torch.equal(net.conv1.store.read(net.conv1), Rram(2).held(net.conv1.rram))


def test_masks_stay_after_the_stage_that_made_them(finished):
    before, after = weights(finished, "pruned"), weights(finished, "after")
    for n in LAYERS:
        mask = before[f"{n}.mask"]
        assert torch.equal(after[f"{n}.mask"], mask)
        assert not after[f"{n}.weight"][~mask].any()
        assert not torch.equal(after[f"{n}.weight"][mask], before[f"{n}.weight"][mask])
    assert json.loads((finished / "after" / "stage.json").read_text())["masked"] is True


def watch_masks(monkeypatch, *accuracies: float) -> list[dict[str, torch.Tensor]]:
    """The masks that each epoch was judged with; the accuracies are scripted."""
    seen, left = [], list(accuracies)

    def judged(net, data, stage, seed, chip, ranks):
        seen.append({n: layer.mask.clone() for n, layer in prune.hybrid_layers(net).items()})
        seen[-1]["weights"] = net.conv2.weight.detach().clone()
        return left.pop(0), 1.0

    monkeypatch.setattr(train, "_validate", judged)
    return seen


@pytest.mark.parametrize(("fixed_from", "epochs", "final"), [(0.5, 4, 2), (0.7, 4, 3), (0.99, 3, 2), (0.0, 3, 0)])
def test_only_epochs_with_final_masks_are_kept(home, monkeypatch, fixed_from, epochs, final):
    seen = watch_masks(monkeypatch, *[0.9 - 0.1 * e for e in range(epochs)])  # the first epoch would be the best
    stage = PRUNED.replace("fixed_from: 0.5", f"fixed_from: {fixed_from}").replace("epochs: 4", f"epochs: {epochs}")
    folder = run(home, stage.replace("lr: 0.1", "lr: 0.2"))
    rows = table(folder, "metrics.csv", "pruned")
    assert [r["eligible"] for r in rows] == [str(int(e >= final)) for e in range(epochs)]
    assert [r["is_best"] for r in rows] == [str(int(e == final)) for e in range(epochs)]
    net = weights(folder, "pruned")
    for n in LAYERS:
        assert all(torch.equal(m[n], net[f"{n}.mask"]) for m in seen[final:])
    kept = seen[final]["weights"].masked_fill(~net["conv2.mask"], 0)
    assert torch.equal(net["conv2.weight"], kept)
    if final:
        assert any(not torch.equal(m[n], net[f"{n}.mask"]) for m in seen[:final] for n in LAYERS)


def test_masks_are_never_fixed_with_one_as_in_the_reference(home, monkeypatch):
    seen = watch_masks(monkeypatch, 0.5, 0.9, 0.4)
    stage = PRUNED.replace("fixed_from: 0.5", "fixed_from: 1").replace("epochs: 4", "epochs: 3")
    folder = run(home, stage.replace("lr: 0.1", "lr: 1"))
    rows = table(folder, "metrics.csv", "pruned")
    assert [(r["eligible"], r["is_best"]) for r in rows] == [("1", "1"), ("1", "1"), ("1", "0")]
    assert not torch.equal(seen[0]["conv2"], seen[1]["conv2"]) and not torch.equal(seen[1]["conv2"], seen[2]["conv2"])
    net = weights(folder, "pruned")
    assert torch.equal(net["conv2.mask"], seen[1]["conv2"])
    # Each epoch is judged with the masks of its own last weights, and what is kept is masked for good.
    assert torch.equal(seen[1]["conv2"], prune.magnitude_mask(seen[1]["weights"], 0.3))
    assert torch.equal(net["conv2.weight"], seen[1]["weights"].masked_fill(~seen[1]["conv2"], 0))


@pytest.mark.parametrize(
    ("fixed_from", "epochs", "first"), [(0.7, 10, 7), (0.7, 20, 14), (0.7, 1, 0), (0, 5, 0), (1, 5, 5), (0.55, 100, 55)]
)
def test_masks_are_final_from_the_share_of_the_epochs_on_or_in_the_last(fixed_from, epochs, first):
    stage = wanted(epochs=epochs, prune={"fixed_from": fixed_from})
    assert train.masks_fixed_from(stage) == first


# --------------------------------------------------------------------------------------------- several networks


def test_each_fixed_chip_and_each_shift_has_a_file_of_its_own(finished):
    assert files(finished, "chips") == ["stage.json", *(f"weights-chip{c}.safetensors" for c in range(3))]
    assert files(finished, "shifts") == ["stage.json", *(f"weights-shift{s}.safetensors" for s in ("+0", "+1", "-1"))]
    assert files(finished, "recover") == ["stage.json", "weights.safetensors"]
    members = json.loads((finished / "shifts" / "stage.json").read_text())["members"]
    assert [(m["chip"], m["shift_bit"]) for m in members] == [(None, -1), (None, 0), (None, 1)]
    for stage, which in (("chips", [f"-chip{c}" for c in range(3)]), ("shifts", ["-shift-1", "-shift+0", "-shift+1"])):
        found = [weights(finished, stage, w)["conv2.weight"] for w in which]
        assert not any(torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_each_network_of_several_is_trained_and_judged_on_its_own_chip_with_its_own_shift(home, monkeypatch):
    drawn, names, one, go = [], [], train.draw, member.train

    def watched(net, generator):
        one(net, generator)
        drawn.append((names[-1], net.conv1.store.shift_bit, net.conv1.z.clone(), net.conv3.z.clone()))

    def named(net, data, stage, **settings):
        names.append(settings["name"])
        return go(net, data, stage, **settings)

    monkeypatch.setattr(train, "draw", watched)
    monkeypatch.setattr(member, "train", named)
    stage = CHIPS.replace("fixed_chips: 3", "fixed_chips: 2, sram: {shift_bits: [0, -2]}").replace("chips:", "both:", 1)
    folder = run(home, stage.replace("epochs: 2", "epochs: 1").replace("validation_chips: 1", "validation_chips: 2"))
    assert names == ["both-chip0-shift+0", "both-chip0-shift-2", "both-chip1-shift+0", "both-chip1-shift-2"]
    assert files(folder, "both") == sorted(
        ["stage.json", *(f"weights-chip{c}-shift{s}.safetensors" for c in (0, 1) for s in ("+0", "-2"))])  # fmt: skip
    for chip in (0, 1):
        own = load_onto(weights(folder, "vat"))
        draw(own, derived(1234, "chips", chip))
        for shift in (0, -2):
            of = [d for d in drawn if d[0] == f"both-chip{chip}-shift{shift:+d}"]
            assert len(of) == 3  # for the epoch, and for each of two codings of the validation images
            for _, found, first, third in of:
                assert found == shift
                assert torch.equal(first, own.conv1.z) and torch.equal(third, own.conv3.z)


def load_onto(state: dict[str, torch.Tensor]) -> VggBntt:
    """The recipe's network on varying RRAM."""
    net = build("vgg5", width=0.0625, channels=1, size=(8, 8), classes=10, steps=2, generator=seeded(0))
    place(net, {"conv*": Rram(2, sigma=0.12542)})
    load(net, state)
    return net


def test_a_chips_recovery_goes_on_from_the_network_of_that_chip(home, monkeypatch):
    begun_with, first = {}, member.begin

    def watched(net, parent, stage, chip, seed, other):
        begun_with[chip] = parent["conv2.weight"].clone()
        first(net, parent, stage, chip, seed, other)

    run(home, CHIPS)
    monkeypatch.setattr(member, "begin", watched)
    again = CHIPS.replace("chips: {", "more: {", 1).replace("from: vat", "from: chips")
    folder = run(home, CHIPS + again.replace("fixed_chips: 3", "fixed_chips: 2"))
    assert set(begun_with) == {0, 1}
    for chip, value in begun_with.items():
        assert torch.equal(value, weights(folder, "chips", f"-chip{chip}")["conv2.weight"])


# ------------------------------------------------------------------------------------------------------ interruption


def results(folder: Path) -> dict[str, bytes]:
    """File → bytes of all that must not depend on how a run came about."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: data for name, data in found.items() if name not in ("manifest.json", "recipe.yaml", ".lock")}


def broken_off(monkeypatch, folder: Path, stages: str, begun_runs: Path, number: int) -> None:
    """Run, and be interrupted before the validation after `number` others; all that follows works again."""
    judge, left = train._validate, [number]

    def breaking(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return judge(*arguments)

    shutil.copytree(begun_runs, folder / "runs")
    with monkeypatch.context() as patch:
        patch.setattr(train, "_validate", breaking)
        assert hwsim("recipe", written(folder, stages), "--runs", folder / "runs", "--quiet").code == 130


@pytest.mark.parametrize(
    ("stages", "at"),
    [(CHIPS.replace("keep_parent: false", "init: residual"), (1, 3, 8)), (PRUNED, (1, 2, 3)), (SHIFTS, (2,))],
    ids=["chips", "pruned", "shifts"],
)
def test_a_stage_that_breaks_off_in_any_network_ends_with_the_same_bytes(tmp_path, monkeypatch, begun_runs, stages, at):
    shutil.copytree(begun_runs, tmp_path / "whole" / "runs")
    whole = run(tmp_path / "whole", stages)
    for number in at:
        folder = tmp_path / str(number)
        broken_off(monkeypatch, folder, stages, begun_runs, number)
        there = folder / "runs" / whole.name
        done = {p: p.stat().st_mtime_ns for p in there.rglob("weights*.safetensors")}
        assert not (there / "vat" / "resume.safetensors").exists() and len(done) >= 1
        assert run(folder, stages) == there
        assert {p: p.stat().st_mtime_ns for p in done} == done  # networks that were finished are not touched
        assert results(there) == results(whole)


def test_what_broke_off_in_the_third_network_goes_on_there(tmp_path, monkeypatch, begun_runs):
    broken_off(monkeypatch, tmp_path, CHIPS, begun_runs, 5)
    done = hwsim("recipe", written(tmp_path, CHIPS), "--runs", tmp_path / "runs")
    assert "chips-chip2: resuming after epoch 1 of 2" in done.err
    assert "chips-chip0" not in done.err and "chips-chip1" not in done.err and "chips: 6 epochs in" in done.err


# ----------------------------------------------------------------------------------------------------- ternary cells


def test_ternary_cells_learn_under_variation_and_are_recovered(tmp_path, monkeypatch):
    # In the reference ternary weights with variation cannot be trained (trap B10).
    first = {}
    go = member.train

    def watched(net, data, stage, **settings):
        first[settings["name"]] = {k: v.clone() for k, v in net.state_dict().items()}
        assert net.conv1.store.noise_shape((1,)) is not None
        return go(net, data, stage, **settings)

    monkeypatch.setattr(member, "train", watched)
    folder = run(tmp_path, RECOVER, "--set", "device={card: ternary}")
    vat, net = weights(folder, "vat"), weights(folder, "recover")
    for n in LAYERS:
        levels = Ternary().held(vat[f"{n}.weight"]).unique()
        assert len(levels) == 3 and not torch.equal(vat[f"{n}.weight"], first["vat"][f"{n}.weight"])
        assert torch.equal(net[f"{n}.rram"], vat[f"{n}.weight"]) and net[f"{n}.weight"].any()
