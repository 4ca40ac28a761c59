"""The recipes binary-train and convert: what they leave, what is taken over, what is refused."""

import csv
import json
from pathlib import Path

import pytest
import torch
from command_line import hwsim, refused

from hwsim.data.image import load_images, normalize
from hwsim.device.store import load
from hwsim.network.popcount import unpack
from hwsim.network.vgg15 import build, from_reference
from hwsim.recipe.checkpoint import load_tensors
from hwsim.recipe.resolve import Request, resolve
from hwsim.recipe.settings import Train
from hwsim.recipe.train import learning_rate, weight_decay

TRAINED = ("--epochs", "8", "--full-epochs", "30", "--limit", "400", "--width", "0.5")
"""Long enough to be no chance."""


def rows(folder: Path, name: str) -> list[dict]:
    with (folder / name).open(newline="") as f:
        return list(csv.DictReader(f))


def run(*arguments: str | Path) -> tuple[Path, str]:
    done = hwsim("recipe", *arguments)
    assert done.code == 0, done.err
    return Path(done.out.splitlines()[-1]).parent, done.err


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def converted(runs) -> Path:
    """A smoke run with thresholds in cells."""
    more = [*TRAINED, "--threshold-bits", "8", "--time", "30", "--var-scales", "0,4"]
    return run("convert", "--smoke", "--runs", runs, *more)[0]


def test_a_run_leaves_accuracy_over_time_latency_and_early_exit(converted):
    steps = rows(converted, "steps.csv")
    found = [(r["stage"], int(r["timestep"])) for r in steps]
    assert found == [(s, t + 1) for s in ("snn-full", "snn") for t in range(30)]
    assert {int(r["images"]) for r in steps} == {115}
    # A pipeline of 6 layers and 2 averages: nothing but class 0 before the eighth step.
    early = {r["accuracy"] for r in steps if int(r["timestep"]) <= 7}
    assert len(early) == 1 and float(early.pop()) < 0.2
    last = [r for r in steps if int(r["timestep"]) == 30]
    assert all(abs(float(r["accuracy"]) - float(r["ann_accuracy"])) < 0.15 and float(r["accuracy"]) > 0.4 for r in last)
    exits = [r for r in rows(converted, "exits.csv") if r["stage"] == "snn"]
    assert [float(r["mean_steps"]) for r in exits] == sorted(float(r["mean_steps"]) for r in exits)
    assert float(exits[0]["mean_steps"]) < float(exits[-1]["mean_steps"]) <= 30
    assert len(rows(converted, "latency.csv")) == 24
    for figure in ("steps.png", "exits.png"):
        assert (converted / figure).read_bytes().startswith(b"\x89PNG")
    text = (converted / "summary.md").read_text()
    assert "`snn` (binary in spikes, a pipeline)" in text and "| ann - 10 points" in text
    assert "Whole numbers (AND, population count) in 4 layers: the same answer for 2 of 2 images" in text


def test_a_run_says_what_each_layer_takes(converted):
    own = [r for r in rows(converted, "conversion.csv") if r["stage"] == "snn"]
    assert [(r["layer"], r["weight_bits"], r["delay_steps"]) for r in own] == [
        ("conv1", "32", "1"), ("conv2", "1", "3"), ("conv3", "1", "4"), ("conv4", "1", "6"), ("fc1", "1", "7"),
        ("fc2", "32", "8"),
    ]  # fmt: skip
    conv2 = own[1]
    assert int(conv2["packed_bytes"]) == 16 * 16 * 9 // 8 + 4 * 16 and int(conv2["float32_bytes"]) == 4 * 16 * 16 * 9
    assert all(0 < float(r["firing_rate"]) < 1 for r in own[:-1])
    assert {r["weight_bits"] for r in rows(converted, "conversion.csv") if r["stage"] == "snn-full"} == {"32"}


def test_the_exported_weights_are_binary_and_of_the_published_keys(converted):
    tensors, _ = load_tensors(converted / "snn" / "weights-published.safetensors")
    convolutions = [f"features.module.{3 * i}.weight" for i in range(4)]
    assert set(tensors) == {*convolutions, "classifier.1.weight", "classifier.4.weight"}
    net = build("vgg6-abr", width=0.5, channels=1, size=(8, 8), classes=10).eval()
    load(net, from_reference(tensors))
    for name, layer in list(net.layers.items())[1:-1]:
        for filters in layer.weight.detach():
            assert len(filters.abs().unique()) == 1, name
    data = load_images("digits", limit=400)
    x, y = normalize(data.test.images_NCHW, data.mean, data.std), data.test.labels_N
    right = float((net(x)[0].argmax(1) == y).double().mean())
    steps = [r for r in rows(converted, "steps.csv") if r["stage"] == "snn"]
    assert right == pytest.approx(float(steps[0]["ann_accuracy"]))


def test_the_packed_weights_are_their_signs(converted):
    packed, about = load_tensors(converted / "snn" / "weights-integer.safetensors")
    weights, _ = load_tensors(converted / "snn" / "weights.safetensors")
    assert list(about["layers"]) == ["conv2", "conv3", "conv4", "fc1"]
    for name, how in about["layers"].items():
        weight = weights[f"{name}.weight"]
        assert list(weight.shape) == how["shape"] and f"{name}.mask" not in packed
        assert torch.equal(unpack(packed[f"{name}.plus"], weight[0].numel()), (weight > 0).flatten(1))
        assert packed[f"{name}.threshold"].dtype == torch.int64


def test_variation_reaches_weights_and_thresholds(converted):
    chips = rows(converted, "chips.csv")
    snn = {s: [float(r["accuracy"]) for r in chips if r["network"] == "snn" and float(r["variation_scale"]) == s]
           for s in (0.0, 4.0)}  # fmt: skip
    assert len(set(snn[0.0])) == 1 and len(set(snn[4.0])) > 1
    assert len({r["accuracy"] for r in chips if r["network"] == "full"}) == 1  # float weights lie in no cells


def test_energy_is_that_of_spikes_and_neurons_without_leak(converted):
    energy = rows(converted, "energy.csv")
    first = [r for r in energy if r["layer"] == "conv1" and r["component"] == "synapse" and r["phase"] == "inference"]
    assert {r["timesteps"] for r in first} == {"1"} and {r["action"] for r in first} == {"ac", "mac"}
    inner = [r for r in energy if r["layer"] == "conv3" and r["component"] == "synapse" and r["phase"] == "inference"]
    assert [(r["action"], r["weight_bits"]) for r in inner if float(r["count"])] == [("ac", "1")]
    neuron = [r for r in energy if r["component"] == "neuron_arithmetic" and r["phase"] == "inference"]
    neuron = [r for r in neuron if r["layer"] != "TOTAL"]
    assert {r["action"] for r in neuron} == {"add"}
    sparsity = [r for r in rows(converted, "sparsity.csv") if r["layer"] == "conv2" and r["neurons"]]
    assert len(sparsity) == 30 and {r["spikes"] for r in sparsity[:2]} == {"0"}  # the pipeline's delay


def test_a_converted_network_is_found_and_evaluated_by_another_recipe(converted, runs):
    folder, _ = run("evaluate", "--from", converted / "snn", "--runs", runs, "--chips", "2", "--var-scale", "0,4")
    again = {(r["variation_scale"], r["chip"]): r["accuracy"] for r in rows(folder, "chips.csv")}
    before = {(r["variation_scale"], r["chip"]): r["accuracy"] for r in rows(converted, "chips.csv")
              if r["network"] == "snn"}  # fmt: skip
    both = again.keys() & before.keys()
    assert len(both) == 4 and all(again[k] == before[k] for k in both)


def test_conversion_anew_takes_the_trained_networks(converted, runs):
    _, said = run(
        "convert", "--smoke", "--runs", runs, *TRAINED, "--time", "12", "--one-step", "--percentile", "99",
        "--set", "stages.snn-full.drop_last=true",
        "--set", "stages.snn-full.batch_size=50", "--set", "stages.snn-full.dropout=true",
    )  # fmt: skip
    assert f"binary: finished before, taken from {converted / 'binary'}" in said
    assert "snn: percentile 99 of" in said


def test_binary_train_and_convert_train_the_same_networks():
    mine, theirs = (resolve(Request(name)).recipe for name in ("binary-train", "convert"))
    assert (mine.seed, mine.net, mine.data, mine.device) == (theirs.seed, theirs.net, theirs.data, theirs.device)
    for faithful in (False, True):
        mine, theirs = (resolve(Request(name, faithful=faithful)).recipe for name in ("binary-train", "convert"))
        assert all(mine.stages[s] == theirs.stages[s] for s in ("full", "binary"))


def test_faithful_training_follows_the_published_schedules():
    asked = Request("binary-train", faithful=True, options={"epochs": "200", "full-epochs": "200"})
    full, binary = (resolve(asked).recipe.stages[s] for s in ("full", "binary"))
    for e in range(200):
        assert learning_rate(full, e) == pytest.approx(5e-2 * 0.1 ** ((e >= 81) + (e >= 122)))
        assert learning_rate(binary, e) == pytest.approx(5e-4 * 0.5 ** (e // 30))
        assert weight_decay(binary, e) == (5e-4 if e < 30 else 0.0) and weight_decay(full, e) == 1e-4
    assert (full.optimizer, full.momentum, binary.optimizer) == ("sgd", 0.9, "adam")
    assert (binary.gradient, binary.center) == ("xnor-imagenet", True)


def test_training_keeps_centered_weights(converted):
    weights, _ = load_tensors(converted / "binary" / "weights.safetensors")
    for name in ("conv2", "conv3", "conv4", "fc1"):
        assert float(weights[f"{name}.weight"].abs().max()) <= 1
        assert float(weights[f"{name}.weight"].mean(1).abs().max()) < 1e-5  # nothing was cut at 1 here
    assert float(weights["conv1.weight"].abs().max()) > 0
    assert json.loads((converted / "full" / "stage.json").read_text())["is_float"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "net.name=vgg5"], "stages.snn: vgg5 cannot be converted: its layers bntt1 … bntt_fc (BNTT)"),
        (["--percentile", "0"], "stages.snn.percentile"),
        (["--percentile", "101"], "stages.snn.percentile"),
        (["--set", "net.steps=5"], "net.steps: vgg6-abr is a network without time; leave steps out"),
        (["--set", "net.encode=direct"], "net.encode: vgg6-abr is a network without time"),
        (["--net", "vgg15"], "it needs 32x32 pixels, the data have 8x8. Take a network with fewer pools"),
        (["--threshold-bits", "5"], "stages.snn.threshold_bits: 5 is not one of 1, 2, 3, 4, 8"),
        (["--set", "stages.snn.from=snn-full"], "'snn-full' is converted already"),
        (["--set", "stages.snn-full.from=snn"], "no earlier stage has a network 'snn'"),
        (["--set", "stages.binary.from=snn-full"], "'snn-full' is converted into spikes and is not trained further"),
        (["--set", "stages.binary.do=recover"], "SRAM recovery is for spiking networks; vgg6-abr is none"),
        (["--set", "stages.evaluate.adapt=[1]"], "vgg6-abr has no BNTT statistics to adapt"),
        (["--set", "stages.full.center=true"], "is for weights on the device; this stage trains weights: float"),
        (["--set", "device.weights.bits=2"], "device.weights.bits: binary weights have 1 bit, found 2"),
        (["--set", "device.on=[conv*, '!conv9']"], "no layer is named like 'conv9'"),
    ],
    ids=lambda v: v[-1] if isinstance(v, list) else "",
)
def test_what_does_not_go_together_is_refused_in_a_line(tmp_path, arguments, message):
    said = refused("recipe", "convert", "--smoke", "--runs", tmp_path, *arguments)
    assert message in said, said
    assert all(": " in line for line in said.splitlines())


def test_a_pipeline_longer_than_the_simulation_is_explained_before_anything_runs(tmp_path):
    said = refused("recipe", "convert", "--smoke", "--runs", tmp_path, "--time", "8")
    assert "stages.snn.time: 8 steps, but in a pipeline the first signal reaches the output at step 9" in said
    nine, at_once = (hwsim("recipe", "convert", "--time", *t, "--show") for t in (["9"], ["1", "--one-step"]))
    assert nine.code == at_once.code == 0


def test_a_percentile_that_silences_a_layer_is_explained(runs, converted):
    said = hwsim("recipe", "convert", "--smoke", "--runs", runs, *TRAINED, "--percentile", "1")
    assert said.code == 2 and "the percentile of the activations is 0" in said.lines[-1]


def test_weight_decay_ends_where_it_is_told_to():
    assert [weight_decay(Train(epochs=4, decay_until=0.0), e) for e in range(2)] == [0.0, 0.0]
    assert [weight_decay(Train(epochs=4), e) for e in range(4)] == [1e-4] * 4
