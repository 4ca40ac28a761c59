"""What a recovery takes from other runs must fit, and is checked before anything is written: parents, first weights."""

import shutil
from pathlib import Path

import pytest
import torch
from command_line import hwsim, refused

from hwsim.recipe.checkpoint import load_tensors

HEAD = """title: t
net: {name: vgg5, width: 0.0625, steps: 2}
data: {name: digits, limit: 40}
device: {weights: {bits: 2}}
stages:
"""
BASICS = "epochs: 1, batch_size: 16, validation_chips: 1"
VAT = f"  vat: {{do: train, {BASICS}}}\n"
RECOVER = f"  recover: {{do: recover, from: vat, init: zeros, {BASICS}}}\n"
ADAPTED = "  evaluate: {do: evaluate, of: [vat], chips: 1, adapt: [3], adapt_batch_size: 16}\n"
MORE = f"  more: {{do: train, from: vat, {BASICS}}}\n"


def command(folder: Path, stages: str, *arguments: str | Path) -> list[str | Path]:
    """A recipe with these stages, to be run in the folder's `runs`."""
    folder.mkdir(exist_ok=True)
    file = folder / "r.yaml"
    file.write_text(HEAD + stages, encoding="utf-8")
    return ["recipe", file, "--runs", folder / "runs", "--quiet", *arguments]


def run(folder: Path, stages: str, *arguments: str | Path) -> Path:
    """Its run's folder."""
    done = hwsim(*command(folder, stages, *arguments))
    assert done.code == 0, done.err
    return Path(done.out.splitlines()[-1]).parent


def lines(folder: Path, stages: str, *arguments: str | Path) -> list[str]:
    """What it is refused with, when no run was begun."""
    said = refused(*command(folder, stages, *arguments))
    assert not (folder / "runs").exists()
    return said.splitlines()


@pytest.fixture(scope="module")
def parents(tmp_path_factory) -> dict[str, Path]:
    """Stage folders of finished networks: on RRAM, recovered, recovered for each of two chips, and others."""
    folder = tmp_path_factory.mktemp("parents")
    chips = RECOVER.replace("recover:", "chips:", 1).replace("init: zeros", "redraw: chip, fixed_chips: 2")
    home = run(folder, VAT + RECOVER + chips)
    found = {name: home / name for name in ("vat", "recover", "chips")}
    found["wider"] = run(folder, VAT, "--set", "net.width=0.125") / "vat"
    found["one bit"] = run(folder, VAT, "--set", "device.weights.bits=1") / "vat"
    return found


# ------------------------------------------------------------------------------------------------------- parents


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("net.width=0.125", "net.width: found 0.125, but the network in {} was trained with 0.0625; take 0.0625"),
        ("net.name=vgg9", "net.name: found vgg9, but the network in {} was trained with vgg5; take vgg5"),
        ("net.steps=3", "net.steps: found 3, but the network in {} was trained with 2 and has as many sets of BNTT"),
        ("device.weights.bits=1", "device.weights.bits: found 1, but the network in {} was trained with 2; take 2"),
        ("device.weights.quantizer=xnor", "quantizer: found xnor, but the network in {} was trained with dorefa; take"),
    ],
)
def test_a_parent_of_another_network_or_on_other_cells_is_refused(tmp_path, parents, change, says):
    (line,) = lines(tmp_path, VAT + RECOVER, "--from", parents["vat"], "--set", change)
    assert line.startswith(f"--set {change}: ") and says.format(parents["vat"]) in line


def test_a_grid_that_is_named_as_the_cards_own_is_the_same(tmp_path, parents):
    run(tmp_path, VAT + RECOVER, "--from", parents["vat"], "--set", "device.weights.quantizer=dorefa")


def test_other_bits_are_no_matter_where_nothing_is_recovered(tmp_path, parents):
    run(tmp_path, VAT + MORE, "--from", parents["vat"], "--set", "device.weights.bits=1")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("bits=3", "twos-complement of 3 bits, shifted by 0"),
        ("shift_bits=[0, 1]", "twos-complement of 4 bits, shifted by 0, 1"),
        ("quantizer=none", "not quantized, shifted by 0"),
    ],
)
def test_a_parent_with_another_sram_part_is_refused(tmp_path, parents, change, says):
    place = f"stages.recover.sram.{change}"
    (line,) = lines(tmp_path, VAT + RECOVER, "--from", parents["recover"], "--set", place)
    assert f"stages.recover.from: the network in {parents['recover']} has an SRAM part already" in line
    assert f"twos-complement of 4 bits, shifted by 0; this stage asks for {says}. Take the same" in line


def test_a_recovered_parent_goes_on_with_the_same_sram_part(tmp_path, parents):
    folder = run(tmp_path, VAT + RECOVER, "--from", parents["recover"], "--set", "stages.recover.keep_parent=false")
    mine, theirs = (load_tensors(f / "weights.safetensors")[0] for f in (folder / "recover", parents["recover"]))
    assert torch.equal(mine["conv2.rram"], theirs["conv2.rram"])
    assert not torch.equal(mine["conv2.weight"], theirs["conv2.weight"])


def test_training_does_not_go_on_from_a_recovered_parent(tmp_path, parents):
    (line,) = lines(tmp_path, VAT + MORE, "--from", parents["recover"])
    assert f"stages.more.from: the network in {parents['recover']} has an SRAM part; go on with do: recover" in line


@pytest.mark.parametrize("on", ["[conv1]", '["conv*", fc1]'])
@pytest.mark.parametrize("stages", [VAT + RECOVER, VAT + ADAPTED.replace("[3]", "[0]")])
def test_a_recovered_parent_stays_on_its_layers(tmp_path, parents, on, stages):
    # What lies in RRAM there would be lost here, and what is asked for here is not there.
    (line,) = lines(tmp_path, stages, "--from", parents["recover"], "--set", f"device.on={on}")
    assert line.startswith(f"--set device.on={on}: device.on: found conv1")
    assert f"{parents['recover']} has an SRAM part in conv1, conv2, conv3; take these layers" in line


def test_an_rram_parent_may_get_sram_in_some_layers_only(tmp_path, parents):
    folder = run(tmp_path, VAT + RECOVER, "--from", parents["vat"], "--set", "device.on=[conv2]")
    keys = load_tensors(folder / "recover" / "weights.safetensors")[0]
    assert [k for k in keys if k.endswith(".rram")] == ["conv2.rram"]


@pytest.mark.parametrize("changes", [[], ["redraw=chip", "fixed_chips=3"]])
def test_networks_of_single_chips_go_on_on_these_alone(tmp_path, parents, changes):
    sets = [f"--set=stages.recover.{c}" for c in changes]
    (line,) = lines(tmp_path, VAT + RECOVER, "--from", parents["chips"], *sets)
    assert f"stages.recover.from: {parents['chips']} holds networks for chips 0 to 1, each on its own" in line
    assert line.endswith("use redraw chip and at most 2 fixed_chips")


def test_networks_of_single_chips_go_on_chip_by_chip(tmp_path, parents):
    sets = ["--set=stages.recover.redraw=chip", "--set=stages.recover.fixed_chips=2"]
    folder = run(tmp_path, VAT + RECOVER, "--from", parents["chips"], *sets)
    assert sorted(p.name for p in (folder / "recover").glob("weights*")) == [
        "weights-chip0.safetensors", "weights-chip1.safetensors"]  # fmt: skip


def test_all_that_is_wrong_with_a_parent_is_told_at_once(tmp_path, parents):
    said = lines(tmp_path, VAT + RECOVER, "--from", parents["recover"], "--set", "device.weights.bits=1",
                 "--set", "stages.recover.sram.bits=3", "--set", "stages.recover.prune={group: 3}")  # fmt: skip
    places = ["device.weights.bits", "stages.recover.from", *["stages.recover.prune.group"] * 2]
    assert len(said) == 4 and all(f": {place}: " in line for place, line in zip(places, said, strict=True))


# -------------------------------------------------------------------------------------------- first SRAM weights


def test_sram_begins_with_a_run_of_other_bits(tmp_path, parents):
    sets = ["--set=stages.recover.init=sram", f"--set=stages.recover.init_run={parents['one bit']}"]
    slow = "--set=stages.recover.lr=1e-12"
    folder = run(tmp_path, VAT + RECOVER, *sets, slow, "--set=stages.recover.keep_parent=false")
    mine, theirs = (load_tensors(f / "weights.safetensors")[0] for f in (folder / "recover", parents["one bit"]))
    vat = load_tensors(folder / "vat" / "weights.safetensors")[0]
    for n in ("conv1", "conv2", "conv3"):
        torch.testing.assert_close(mine[f"{n}.weight"], theirs[f"{n}.weight"])
        assert torch.equal(mine[f"{n}.rram"], vat[f"{n}.weight"])
        assert not torch.equal(vat[f"{n}.weight"], theirs[f"{n}.weight"])
    other = [f"--set=stages.recover.init_run={parents['vat'].parent}", sets[0], slow]
    assert run(tmp_path, VAT + RECOVER, *other, "--set=stages.recover.keep_parent=false") != folder  # not reused


@pytest.mark.parametrize(
    ("run", "network", "says"),
    [
        ("wider", "vgg5", "has conv1 of shape 8x1x3x3; this network's conv1 is 4x1x3x3"),
        ("vat", "vgg9", "has no layer conv7; this network's conv7 is 16x16x3x3"),
    ],
)
def test_first_weights_of_another_network_are_refused(tmp_path, parents, run, network, says):
    said = lines(tmp_path, VAT + RECOVER, f"--set=net.name={network}", "--set=stages.recover.init=sram",
                 f"--set=stages.recover.init_run={parents[run]}")  # fmt: skip
    assert all(f"stages.recover.init_run: {parents[run]} has " in line for line in said)
    assert any(f"{says}. Take a run of the same network" in line for line in said)


def test_first_weights_from_where_no_run_lies_are_refused(tmp_path, parents):
    (line,) = lines(tmp_path, VAT + RECOVER, "--set=stages.recover.init=sram", "--set=stages.recover.init_run=nowhere")
    assert line == (
        "--set stages.recover.init_run=nowhere: stages.recover.init_run: nowhere: no finished network lies there; "
        "give a run's or trained stage's folder"
    )


def test_first_weights_of_a_damaged_run_are_refused(tmp_path, parents):
    shutil.copytree(parents["vat"], tmp_path / "vat")
    file = tmp_path / "vat" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-20])
    (line,) = lines(tmp_path, VAT + RECOVER, "--set=stages.recover.init=sram",
                    f"--set=stages.recover.init_run={tmp_path / 'vat'}")  # fmt: skip
    assert line.startswith(f"{file}: ") and "damaged or changed" in line


# ----------------------------------------------------------------------------------------- groups and batches


def test_groups_that_do_not_divide_the_layers_are_refused_with_those_that_do(tmp_path):
    said = lines(tmp_path, VAT + RECOVER, "--set=stages.recover.prune={group: 3}")
    place = "--set stages.recover.prune={group: 3}: stages.recover.prune.group: "
    fit = "groups of 1, 2, 4 fit every layer after the first"
    assert said == [
        f"{place}{layer}: groups of 3 do not divide its {inputs} input channels; {fit}"
        for layer, inputs in (("conv2", 4), ("conv3", 8))
    ]


def test_the_layers_that_groups_must_divide_are_those_on_the_device(tmp_path):
    (line,) = lines(tmp_path, VAT + RECOVER, "--set=stages.recover.prune={group: 3}", "--set=device.on=[conv2, conv3]")
    assert "conv3: groups of 3 do not divide its 8 input channels; groups of 1, 2, 4, 8 fit" in line


def test_adaptation_by_more_batches_than_there_are_is_refused(tmp_path):
    (line,) = lines(tmp_path, VAT + ADAPTED)
    assert "stages.evaluate.adapt: 3 x 16 is more than the 40 training images of digits" in line
    assert line.endswith("take at most 2 batches, or a smaller adapt_batch_size")
    (line,) = lines(tmp_path, VAT + ADAPTED, "--set=stages.evaluate.adapt_batch_size=41")
    assert line.endswith("of digits; take a smaller adapt_batch_size")


def test_a_batch_of_more_images_than_there_are_is_refused(tmp_path):
    (line,) = lines(tmp_path, VAT + RECOVER, "--set=data.limit=2000", "--set=stages.recover.batch_size=1300")
    assert "stages.recover.batch_size: 1300 is more than the 1257 training images of digits" in line
