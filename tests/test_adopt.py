"""`hwsim import`: a checkpoint of the reference codes becomes a run that evaluates and goes on, or is refused whole."""

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import hwsim, refused

from hwsim.config import read_yaml
from hwsim.device.hybrid import Hybrid, Masked, Sram
from hwsim.device.store import Ideal, Rram, Ternary, draw, place
from hwsim.network.vgg_bntt import PLANS, VggBntt, build
from hwsim.recipe import network
from hwsim.recipe.checkpoint import load_tensors, tensor_shapes
from hwsim.recipe.folder import read_stage
from hwsim.recipe.settings import Net

WIDTH = 1 / 16
SIGMA_2 = 0.12542
"""The card's spread at 2 bits."""
OPTIONS = ("--data", "digits", "--quant", 2, "--leak", 0.9)
SRAM = ("--sram-bit", 3, "--shift-bit", -1, "--halved")


def state_dict(
    plan: str = "vgg5", hybrid: bool = False, channels: int = 1, size: int = 8, classes: int = 10, steps: int = 2
) -> OrderedDict[str, torch.Tensor]:
    """A narrow network in the reference's names, with values that no two tensors share."""
    g = torch.Generator().manual_seed(7)
    items, hidden = PLANS[plan]
    state, inputs, n = OrderedDict(), channels, 0
    for item in items:
        if item == "A":
            size //= 2
        elif item == "G":
            size = 1
        else:
            n, outputs = n + 1, round(item * WIDTH)
            for kind in ("weight", "WR")[: 1 + hybrid]:
                state[f"conv{n}.{kind}"] = torch.rand(outputs, inputs, 3, 3, generator=g) * 2 - 1
            inputs = outputs
    hidden = round(hidden * WIDTH)
    state["fc1.weight"] = torch.rand(hidden, inputs * size**2, generator=g) - 0.5
    state["fc2.weight"] = torch.rand(classes, hidden, generator=g) - 0.5
    for name, of in [*((f"bntt{i}", f"conv{i}") for i in range(1, n + 1)), ("bntt_fc", "fc1")]:
        outputs = len(state[f"{of}.weight"])
        for t in range(steps):
            state[f"{name}.{t}.weight"] = torch.rand(outputs, generator=g) + 0.5
            state[f"{name}.{t}.running_mean"] = torch.rand(outputs, generator=g) - 0.5
            state[f"{name}.{t}.running_var"] = torch.rand(outputs, generator=g) + 0.1
            state[f"{name}.{t}.num_batches_tracked"] = torch.tensor(3 + t)
    return state


def file(
    folder: Path, state: dict[str, torch.Tensor] | None = None, name: str = "mine.pth.tar", accuracy: float = 90.25
) -> Path:
    """A checkpoint as the reference saves it."""
    state = state_dict() if state is None else state
    torch.save({"global_step": 100, "state_dict": state, "accuracy": np.float64(accuracy)}, folder / name)
    return folder / name


def named(
    net: str = "vgg5", steps: int = 2, quant: int = 2, leak: float = 0.9, tern: bool = False, sram: str = ""
) -> str:
    """A file's name of the reference's scheme. sram: "" or bits, shift and beginning, "3 -1 rr"."""
    bits, shift, init = sram.split() if sram else ("1", "0", "")
    return (
        f"2022-06-12cifar10{net}_BNTT_timestep{steps}_lr0.1_epoch60_leak{leak}_r{quant}_var1_nonvar_False_sram_"
        f"{bool(sram)}{bits}_ct_{bool(sram)}_tern_{tern}_shift{shift}{'_srLD' * bool(sram)}{init}_"
        f"{'s' if sram else 'r'}ram_bestmodel.pth.tar"
    )


def adopted(path: Path, runs: Path, *options: str | float) -> tuple[Path, list[str]]:
    """(folder, notes) of an import that succeeds."""
    done = hwsim("import", path, "--runs", runs, *options)
    assert done.code == 0, done
    folder, then = done.out.splitlines()
    assert then == f"hwsim recipe evaluate --from {folder} tests it"
    assert all(line.startswith(f"{path}: ") for line in done.lines)
    return Path(folder), [line.removeprefix(f"{path}: ") for line in done.lines]


def recipe(folder: Path) -> dict:
    return read_yaml(folder / "recipe.yaml").data


def by_hand(state: dict[str, torch.Tensor], plan: str, stores, leak: float = 0.9, th: float | None = None) -> VggBntt:
    """The network of a state in the reference's names, tensor by tensor. th: masks, all but the first layer's."""
    net = build(plan, width=WIDTH, channels=1, size=(8, 8), classes=10, steps=2, leak=leak)
    for name, layer in net.named_modules():
        if name.startswith("bntt"):
            for kind in ("weight", "running_mean", "running_var", "num_batches_tracked"):
                getattr(layer, kind).data.copy_(torch.stack([state[f"{name}.{t}.{kind}"] for t in range(2)]))
        elif name:
            layer.weight.data.copy_(state[f"{name}.weight"])
            layer.rram = state.get(f"{name}.WR")
        if th is not None and name.startswith("conv"):
            size = state[f"{name}.weight"].abs()
            layer.mask = size > (-1 if name == "conv1" else th * size.max())
    place(net, {"conv*": stores})
    return net


def on_a_chip(net: VggBntt) -> list[torch.Tensor]:
    """What every layer computes with on one chip, and the logits there."""
    draw(net, torch.Generator().manual_seed(4))
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        held = [layer.store.read(layer) for layer in net.modules() if hasattr(layer, "store")]
        return [*held, net.eval()(x, torch.Generator().manual_seed(6))[0]]


@pytest.fixture
def evaluated(monkeypatch, tmp_path):
    """`hwsim recipe evaluate --from RUN` as it is run; gives (scale of variation, network) of all that it measured."""
    seen: list[tuple[float, VggBntt]] = []
    real = network.trained

    def spy(of_recipe, data, device, of, member, scale):
        net = real(of_recipe, data, device, of, member, scale)
        seen.append((scale, net))
        return net

    monkeypatch.setattr(network, "trained", spy)

    def run(folder: Path, *options) -> list[tuple[float, VggBntt]]:
        seen.clear()
        few = ("--limit", 40, "--chips", 2, "--samples", 5, "--var-scale", "0,2", "--quiet")
        done = hwsim("recipe", "evaluate", "--from", folder, "--runs", tmp_path / "evaluations", *few, *options)
        assert done.code == 0, done
        return list(seen)

    return run


# --- what it becomes ----------------------------------------------------------------------------------------------


def xnor(scale: float) -> Rram:
    return Rram(2, "xnor", sigma=SIGMA_2 * scale, clamp="signed")


KINDS = {
    "plain": ("vgg5", named(), (), xnor, None),
    "plain-vgg9": ("vgg9", named("vgg9"), (), xnor, None),
    "hybrid": ("vgg5", named(sram="3 -1 rr"), (), lambda s: Hybrid(xnor(s), Sram(3, "xnor"), -1, True), None),
    "hybrid-begun-with-zeros": (
        "vgg5", named(sram="4 2 ini0"), (), lambda s: Hybrid(xnor(s), Sram(4, "xnor"), 2, False), None,
    ),
    "hybrid-without-name": ("vgg5", "r2s3.pth.tar", SRAM, lambda s: Hybrid(xnor(s), Sram(3, "xnor"), -1, True), None),
    "pruned": (
        "vgg5", named(sram="3 0 rr"), ("--threshold", 0.4),
        lambda s: Hybrid(xnor(s), Masked(Sram(3, "xnor")), 0, True), 0.4,
    ),
    "ternary": ("vgg9", named("vgg9", tern=True), (), lambda s: Ternary(sigma=0.08164 * s, clamp="signed"), None),
    "ternary-in-name-alone": ("vgg5", named(tern=True), (), lambda s: Ideal(), None),
    "ternary-hybrid": (
        "vgg9", named("vgg9", tern=True, sram="3 1 rr"), (), lambda s: Hybrid(Ideal(), Sram(3, "none"), 1, True), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("plan", "name", "options", "store", "th"), KINDS.values(), ids=KINDS)
def test_the_network_that_is_evaluated_is_the_file_s_on_the_reference_s_cells(
    tmp_path, evaluated, plan, name, options, store, th
):
    hybrid = "_sram_True" in name or "r2s3" in name
    state = state_dict(plan, hybrid)
    told = ("--data", "digits") if "BNTT" in name else OPTIONS
    folder, _ = adopted(file(tmp_path, state, name), tmp_path / "runs", *told, *options)
    found = evaluated(folder)
    assert {0.0, 2.0} == {scale for scale, _ in found}
    for scale, net in found:
        mine = by_hand(state, plan, store(scale), th=th)
        assert {n: m.store for n, m in net.named_modules() if hasattr(m, "store")} == {
            n: m.store for n, m in mine.named_modules() if hasattr(m, "store")
        }
        assert (net.leak, net.steps, net.coding, net.threshold) == (0.9, 2, "poisson", 1.0)
        results = on_a_chip(net)
        assert all(torch.equal(a, b) for a, b in zip(results, on_a_chip(mine), strict=True))
        assert results[-1].std() > 0.01
    if th is not None:
        held = [layer.store.sram.read(layer) for n, layer in net.named_modules() if n.startswith("conv")]
        assert [0.2 < float((h == 0).float().mean()) < 0.6 for h in held] == [False, True, True]


def test_the_command_that_import_proposes_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = hwsim("import", file(tmp_path), *OPTIONS)
    command = done.out.splitlines()[1].removesuffix(" tests it").split()
    assert command[:4] == ["hwsim", "recipe", "evaluate", "--from"] and command[4].startswith("runs")
    done = hwsim(*command[1:], "--limit", 40, "--chips", 2, "--var-scale", 0, "--samples", 5)
    assert done.code == 0 and "trained at scale 0" in done.out


def test_the_sram_of_a_recovery_learns_beside_the_imported_weights(tmp_path):
    state = state_dict()
    folder, _ = adopted(file(tmp_path, state), tmp_path / "runs", *OPTIONS)
    few = ("--limit", 40, "--epochs", 1, "--batch-size", 16, "--fixed-chips", 1, "--chips", 2, "--adapt", 0)
    done = hwsim("recipe", "sram-recover", "--from", folder, "--sram-bit", 2, "--runs", tmp_path / "runs", *few)
    assert done.code == 0, done
    (run,) = (tmp_path / "runs").glob("sram-recover-*")
    record = read_stage(run / "recover")
    assert record["device"]["weights"] == {
        "bits": 2, "quantizer": "xnor", "clamp": "signed", "on_off_ratio": 350.0, "variant": None,
    }  # fmt: skip
    assert record["sram"] == {"bits": 2, "quantizer": "twos-complement", "shift_bits": [0], "halved": False}
    assert record["epochs"] == 1, "of the imported network's epochs nothing is known"
    tensors, _ = load_tensors(run / "recover" / "weights.safetensors")
    for n in (1, 2, 3):
        assert torch.equal(tensors[f"conv{n}.rram"], state[f"conv{n}.weight"])


def test_training_with_variation_goes_on_from_the_imported_weights(tmp_path):
    folder, _ = adopted(file(tmp_path, name=named()), tmp_path / "runs", "--data", "digits")
    few = ("--limit", 40, "--epochs", 1, "--batch-size", 16, "--chips", 2, "--var-scales", 0)
    done = hwsim("recipe", "vat", "--from", folder, "--runs", tmp_path / "runs", *few)
    assert done.code == 0, done
    (run,) = (tmp_path / "runs").glob("vat-*")
    assert read_stage(run / "vat")["epochs"] == 61, "60 of the file's name and one more"


def test_a_hybrid_goes_on_with_its_own_sram_and_no_other(tmp_path):
    folder, _ = adopted(file(tmp_path, state_dict(hybrid=True)), tmp_path / "runs", *OPTIONS, *SRAM)
    few = ("--limit", 40, "--epochs", 1, "--batch-size", 16, "--fixed-chips", 1, "--chips", 2, "--adapt", 0)
    go_on = ("recipe", "sram-recover", "--from", folder, "--runs", tmp_path / "more", *few)
    assert "has an SRAM part already, xnor of 3 bits, shifted by -1, halved" in refused(*go_on)
    as_it_is = [f"stages.{s}.{p}" for s in ("recover", "recover-chip")
                for p in ("sram.quantizer=xnor", "sram.halved=true", "keep_parent=false")]  # fmt: skip
    done = hwsim(*go_on, "--sram-bit", 3, "--shift-bit", -1, *(a for place in as_it_is for a in ("--set", place)))
    assert done.code == 0, done


# --- where settings come from -------------------------------------------------------------------------------------


def test_the_name_and_the_tensors_tell_everything(tmp_path):
    path = file(tmp_path, state_dict("vgg9", channels=3, size=32), named("vgg9", quant=4, leak=0.95))
    folder, notes = adopted(path, tmp_path / "runs")
    found = recipe(folder)
    assert notes == []
    told = {"name": "vgg9", "width": 0.0625, "steps": 2, "encode": "poisson", "leak": 0.95, "threshold": 1.0}
    assert found["net"] == {**Net().model_dump(), **told}
    assert found["data"] == {
        "name": "cifar10", "dir": None, "download": False, "limit": None, "augment": "crop-flip",
    }  # fmt: skip
    assert found["device"]["weights"]["bits"] == 4 and found["device"]["on"] == ["conv*"]
    assert found["device"]["card"] == "rram_65nm_asu"
    assert read_stage(folder / "imported")["epochs"] == 60
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["source"]["file"] == str(path) and manifest["command"].startswith("hwsim import")


def test_options_win_over_the_name(tmp_path):
    path = file(tmp_path, state_dict(hybrid=True), named(sram="3 -1 ini0"))
    told = ("--data", "digits", "--data-dir", "d", "--quant", 4, "--leak", 0.0, "--sram-bit", 2, "--shift-bit", 0)
    folder, _ = adopted(path, tmp_path / "runs", *told, "--halved")
    found, sram = recipe(folder), read_stage(folder / "imported")["sram"]
    assert (found["data"]["name"], found["data"]["dir"], found["data"]["augment"]) == ("digits", "d", "none")
    assert (found["device"]["weights"]["bits"], found["net"]["leak"]) == (4, 0.0)
    assert sram == {"bits": 2, "quantizer": "xnor", "shift_bits": [0], "halved": True}
    folder, _ = adopted(file(tmp_path, state_dict(hybrid=True), named(sram="3 -1 rr")), tmp_path / "runs", *told,
                        "--not-halved")  # fmt: skip
    assert read_stage(folder / "imported")["sram"]["halved"] is False


def test_a_width_that_is_given_wins_over_ternary_in_the_name(tmp_path):
    path = file(tmp_path, state_dict("vgg9"), named("vgg9", quant=1, tern=True))
    folder, _ = adopted(path, tmp_path / "runs", "--data", "digits", "--quant", 2)
    assert recipe(folder)["device"]["card"] == "rram_65nm_asu"
    assert recipe(folder)["device"]["weights"]["bits"] == 2


def test_what_is_taken_for_granted_is_said(tmp_path):
    def notes(state, name, *options):
        return adopted(file(tmp_path, state, name), tmp_path / "runs", *options)[1]

    hybrid, digits = state_dict(hybrid=True), ("--data", "digits")
    shift = (
        "its name does not tell whether --shift was on: taken as on, SRAM of 3 bits; without it the SRAM had the bits "
        "of the RRAM and no shift, then give --sram-bit 2 --shift-bit 0"
    )
    assert notes(state_dict(), named(), *digits) == []
    assert notes(hybrid, named(sram="3 -1 rr"), *digits) == [shift]
    assert notes(hybrid, named(sram="3 -1 rr"), *digits, "--sram-bit", 3) == []
    assert notes(hybrid, "x.pth.tar", *OPTIONS, *SRAM) == []
    some = notes(hybrid, "x.pth.tar", *OPTIONS, "--sram-bit", 3)
    assert len(some) == 2
    assert some[0] == "its name does not tell --shift_bit: taken as 0; else give --shift-bit"
    assert some[1].startswith("its name does not tell --sram_init0: taken as off, so the sum is halved")
    (some,) = notes(state_dict(), named(tern=True), *digits)
    assert "reached VGG9 without SRAM alone; these weights were not quantized" in some
    (some,) = notes(state_dict("vgg9", channels=3, size=32, classes=100), named("vgg9"), "--data", "cifar100")
    assert "normalized CIFAR-100 by CIFAR-10's constants" in some


# --- the same again -----------------------------------------------------------------------------------------------


def bytes_in(folder: Path) -> dict[str, bytes]:
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {name: content for name, content in files.items() if name != "manifest.json"}


def test_the_same_file_again_is_the_same_run(tmp_path):
    path = file(tmp_path, state_dict(hybrid=True), named(sram="3 -1 rr"))
    folder, _ = adopted(path, tmp_path / "runs", "--data", "digits")
    before = bytes_in(folder)
    assert {*before} == {".lock", "recipe.yaml", "imported/stage.json", "imported/weights.safetensors"}
    again, _ = adopted(path, tmp_path / "runs", "--data", "digits", "--quant", 2, "--shift-bit", -1)
    assert again == folder and bytes_in(folder) == before
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_a_damaged_or_interrupted_import_is_mended_by_the_same_command(tmp_path):
    path = file(tmp_path)
    folder, _ = adopted(path, tmp_path / "runs", *OPTIONS)
    before = bytes_in(folder)
    (folder / "imported" / "weights.safetensors").write_bytes(b"half")
    (folder / "imported" / "weights.safetensors.part77").write_bytes(b"rest")
    (folder / "manifest.json").unlink()
    assert adopted(path, tmp_path / "runs", *OPTIONS)[0] == folder
    assert bytes_in(folder) == before and (folder / "manifest.json").exists()


def test_imports_that_differ_in_anything_that_counts_are_different_runs(tmp_path):
    hybrid = file(tmp_path, state_dict(hybrid=True, size=28), "h.pth.tar")
    told = ("--data", "mnist", "--quant", 2, "--leak", 0.9, "--sram-bit", 3, "--shift-bit", 0, "--halved")
    others = [
        (), ("--data", "fashion-mnist"), ("--quant", 4), ("--leak", 0.95), ("--sram-bit", 4), ("--shift-bit", 1),
        ("--not-halved",), ("--threshold", 0.1), ("--threshold", 0.2), ("--threshold", 0),
    ]  # fmt: skip
    folders = [adopted(hybrid, tmp_path / "runs", *told, *other)[0] for other in others]
    assert len({*folders}) == len(others)
    assert [read_stage(f / "imported")["masked"] for f in folders] == [False] * 7 + [True] * 3
    kept = [float(load_tensors(f / "imported" / "weights.safetensors")[0]["conv2.mask"].float().mean())
            for f in folders[7:]]  # fmt: skip
    assert 1 > kept[0] > kept[1] and kept[2] == 1
    state = state_dict(hybrid=True, size=28)
    state["fc2.weight"][0, 0] += 1
    other, _ = adopted(file(tmp_path, state, "h.pth.tar"), tmp_path / "runs", *told)
    assert other not in folders


def test_the_masked_weights_of_a_pruned_network_are_zero_and_the_first_layer_keeps_all(tmp_path):
    state = state_dict(hybrid=True)
    state = OrderedDict(reversed(state.items()))  # whatever order the file has
    folder, _ = adopted(file(tmp_path, state), tmp_path / "runs", *OPTIONS, *SRAM, "--threshold", 0.4)
    tensors, _ = load_tensors(folder / "imported" / "weights.safetensors")
    assert tensors["conv1.mask"].all() and torch.equal(tensors["conv1.weight"], state["conv1.weight"])
    for name in ("conv2", "conv3"):
        size = state[f"{name}.weight"].abs()
        kept = size > 0.4 * size.max()
        assert tensors[f"{name}.mask"].dtype == torch.bool and torch.equal(tensors[f"{name}.mask"], kept)
        assert torch.equal(tensors[f"{name}.weight"], state[f"{name}.weight"] * kept)
    shapes = tensor_shapes(folder / "imported" / "weights.safetensors")
    assert not any(k.startswith("fc") and k.endswith("mask") for k in shapes)


# --- refusals -----------------------------------------------------------------------------------------------------


def refusal(tmp_path: Path, path: Path, *options) -> list[str]:
    """Lines of an import that must be refused before anything is written."""
    before = sorted(tmp_path.rglob("*"))
    lines = refused("import", path, "--runs", tmp_path / "runs", *options).splitlines()
    assert sorted(tmp_path.rglob("*")) == before
    return lines


@pytest.mark.parametrize(
    ("hybrid", "name", "options", "missing"),
    [
        (False, "x.pth.tar", (), "--data, --quant, --leak; give --data and --quant and --leak"),
        (False, "x.pth.tar", ("--quant", 2, "--data", "digits"), "--leak; give --leak"),
        (False, "x.pth.tar", ("--quant", 2, "--leak", 0.9), "--data; give --data"),
        (False, "x.pth.tar", ("--data", "digits", "--leak", 0.0), "--quant; give --quant"),
        (True, "x.pth.tar", ("--leak", 0.9), "--data, --quant, --sram-bit; give --data and --quant and --sram-bit"),
        (True, "x.pth.tar", OPTIONS, "--sram-bit; give --sram-bit"),
        (False, "2022-05-01cifar10vgg5_timestep2_lr0.1_epoch100_leak0.95_quant8_4_bit_rran_bestmodel_test.pth.tar",
         (), "--data, --quant, --leak; give --data and --quant and --leak"),
    ],
)  # fmt: skip
def test_what_neither_name_nor_options_tell_is_asked_for_at_once(tmp_path, hybrid, name, options, missing):
    path = file(tmp_path, state_dict(hybrid=hybrid), name)
    assert refusal(tmp_path, path, *options) == [f"{path}: its name does not tell {missing}"]


NO_DATA_SET = (
    "--data: there is no data set 'cifar'; did you mean 'cifar10'? (allowed: digits, mnist, fashion-mnist, cifar10, "
    "cifar100)"
)
OTHER_IMAGES = (
    " images in 10 classes; the network in FILE is for 1 channels, 10 classes and 8x8 pixels. Take the data it was "
    "trained on"
)
NO_SIGMA = "is not one of 1, 2, 3, 4, 8 (card rram_65nm_asu gives sigma for these)"
THRESHOLDS = "it must be at least 0 and below 1, 0.005 in the reference"


@pytest.mark.parametrize(
    ("hybrid", "options", "says"),
    [
        (False, ("--data", "cifar"), NO_DATA_SET),
        (False, ("--data", "cifar10"), f"--data cifar10: has 3x32x32{OTHER_IMAGES}"),
        (False, ("--data", "mnist"), f"--data mnist: has 1x28x28{OTHER_IMAGES}"),
        (False, ("--quant", 5), f"--quant: device.weights.bits: 5 {NO_SIGMA}"),
        (False, ("--quant", 0), "--quant: device.weights.bits: found 0; it must be at least 1"),
        (False, ("--leak", 1.5), "--leak: net.leak: found 1.5; it must be at most 1"),
        (False, ("--leak", "nan"), "--leak: net.leak: found NaN; it must be finite"),
        (False, ("--threshold", 0.1), "--threshold: FILE has no SRAM part; leave the option out"),
        (False, ("--sram-bit", 4), "--sram-bit: FILE has no SRAM part; leave the option out"),
        (False, ("--shift-bit", 0), "--shift-bit: FILE has no SRAM part; leave the option out"),
        (False, ("--not-halved",), "--halved: FILE has no SRAM part; leave the option out"),
        (True, (*SRAM, "--sram-bit", 9), "--sram-bit: bits: found 9; it must be at most 8"),
        (True, (*SRAM, "--sram-bit", 0), "--sram-bit: bits: found 0; it must be at least 1"),
        (True, (*SRAM, "--shift-bit", 9), "--shift-bit: shift_bits.0: found 9; it must be at most 8"),
        (True, (*SRAM, "--threshold", 1), f"--threshold: 1; {THRESHOLDS}"),
        (True, (*SRAM, "--threshold", -0.1), f"--threshold: -0.1; {THRESHOLDS}"),
        (True, (*SRAM, "--threshold", "nan"), f"--threshold: nan; {THRESHOLDS}"),
    ],
    ids=lambda v: "".join(map(str, v)) if isinstance(v, tuple) else None,
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path, hybrid, options, says):
    path = file(tmp_path, state_dict(hybrid=hybrid))
    assert refusal(tmp_path, path, *OPTIONS, *options) == [says.replace("FILE", str(path))]


@pytest.mark.parametrize(
    ("shape", "fits", "others"),
    [
        ({"size": 28}, ("mnist", "fashion-mnist"), ("digits", "cifar10", "cifar100")),
        ({"size": 32, "channels": 3}, ("cifar10",), ("digits", "mnist", "cifar100")),
        ({"size": 32, "channels": 3, "classes": 100}, ("cifar100",), ("cifar10",)),
        ({"size": 16}, (), ("digits", "mnist")),
        ({"size": 31}, ("mnist",), ("digits",)),
        ({"plan": "vgg9", "size": 31}, ("mnist",), ("digits",)),
        ({"plan": "vgg11", "size": 32}, ("mnist",), ("digits", "cifar10")),
        ({"plan": "vgg11", "size": 32, "channels": 3}, ("cifar10",), ("cifar100",)),
    ],
    ids=str,
)
def test_only_data_that_the_network_can_see_are_taken(tmp_path, shape, fits, others):
    """28 >> 2 is 7 as 31 >> 2 is; VGG11 averages over the image, but digits have too few pixels for its pools."""
    path = file(tmp_path, state_dict(**shape))
    for data in others:
        (line,) = refusal(tmp_path, path, "--data", data, "--quant", 2, "--leak", 0.9)
        assert line.startswith(f"--data {data}: has ")
    for data in fits:
        folder, _ = adopted(path, tmp_path / "fits", "--data", data, "--quant", 2, "--leak", 0.9)
        assert recipe(folder)["data"]["name"] == data
