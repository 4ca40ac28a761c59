"""The recipe bitnet: curve, tables, what does not go together, more steps than trained, the reference's checkpoints."""

import csv
import json
from pathlib import Path

import pytest
import torch
from command_line import hwsim, refused

from hwsim.config import ConfigError, RunError
from hwsim.data.image import load_images, normalize
from hwsim.network.bitnet import LAYERS, build
from hwsim.network.bitnet_stepwise import stepwise_counts
from hwsim.recipe.bitnet import answers, measure_curve
from hwsim.recipe.bitnet_reference import bitnet_of, converted_bitnet, export_bitnet, is_bitnet
from hwsim.recipe.bitnet_settings import Curve
from hwsim.recipe.checkpoint import load_tensors, read_json
from hwsim.recipe.memory_others import bitnet_bytes
from hwsim.recipe.resolve import Request, resolve

GOLDEN = json.loads((Path(__file__).parent / "golden" / "bitnet.json").read_text(encoding="utf-8"))["net"]
X = torch.tensor(GOLDEN["x"])
SMOKE = ("recipe", "bitnet", "--smoke", "--runs")


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open(encoding="utf-8") as f:
        return list(csv.DictReader(f))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Path:
    """The run folder of a smoke run; its network fires in every layer."""
    runs = tmp_path_factory.mktemp("runs")
    done = hwsim(*SMOKE, runs, "--fs", 0.125, "--set", "stages.bitnet.epochs=3", "--lr", 0.01)
    assert done.code == 0, done.err
    return Path(done.out.splitlines()[-1]).parent


# --- answers and the curve --------------------------------------------------------------------------------------------


def test_of_classes_with_as_many_spikes_the_lowest_is_the_answer_and_it_counts_as_a_tie():
    #                 step 1        step 2        step 3
    spikes = torch.tensor([[[0.0, 0, 0], [1, 0, 1]], [[0, 1, 1], [1, 0, 0]], [[0, 0, 1], [0, 0, 1]]])
    right, alone, tied = answers(spikes, torch.tensor([1, 0]))
    assert right.tolist() == [1, 2, 1]  # image 1: 0, 1, 2; image 2: 0, 0, 0
    assert alone.tolist() == [0, 1, 0]
    assert tied.tolist() == [2, 1, 1]  # at step 3 image 2 has two spikes in classes 0 and 2


@pytest.mark.parametrize("select_first", [True, False])
def test_the_curve_is_what_counting_step_by_step_gives(select_first):
    data = load_images("digits", limit=40)
    net = build("bitnet6", width=1 / 8, channels=1, size=(8, 8), classes=10, steps=3,
                generator=torch.Generator().manual_seed(1))  # fmt: skip
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2.5)
    stage = Curve(of=["x"], times=2, batch_size=7, select_first=select_first)
    seen = []
    made = measure_curve(net, data, stage, seen.append)
    n = sum(seen)
    assert n == len(data.test)
    net.steps = 6
    with torch.no_grad():
        _, every = stepwise_counts(net, normalize(data.test.images_NCHW, data.mean, data.std))
    counts = torch.zeros(n, 10)
    expected = []
    for t, spikes in enumerate(every):
        if t == 0 and not select_first:
            continue
        counts += spikes[-1]
        right = alone = ties = 0
        for c, y in zip(counts.tolist(), data.test.labels_N.tolist(), strict=True):
            is_tied = c.count(max(c)) > 1
            is_right = c.index(max(c)) == y
            right, alone, ties = right + is_right, alone + (is_right and not is_tied), ties + is_tied
        expected.append((t + 1, right / n, alone / n, ties / n))
    keys = ("timestep", "accuracy", "accuracy_ties_wrong", "ties_fraction")
    found = [tuple(r[k] for k in keys) for r in made["curve"]]
    assert all(f == pytest.approx(e) for f, e in zip(found, expected, strict=True))
    assert any(0 < ties < 1 and right > alone for _, right, alone, ties in expected)  # ties are there, and they matter
    for r in made["activity"]:
        s = every[r["timestep"] - 1][LAYERS.index(r["layer"])]
        assert r["spikes"] == pytest.approx(s.sum().item() / n)
        assert r["zeros_fraction"] == pytest.approx((s == 0).double().mean().item())
    assert all(r["trained_steps"] == 3 and r["ci95_low"] <= r["accuracy"] <= r["ci95_high"] for r in made["curve"])


def test_layers_csv_has_the_zeros_and_operations_of_the_definition(smoke):
    rows = [r for r in table(smoke, "layers") if r["steps"] == "4"]
    activity = [r for r in table(smoke, "activity") if int(r["timestep"]) <= 4]
    density = 1.0
    for r in rows:
        own = [a for a in activity if a["layer"] == r["layer"]]
        assert float(r["zeros_fraction"]) == pytest.approx(sum(float(a["zeros_fraction"]) for a in own) / 4)
        pooled = sum(float(a["pooled_zeros_fraction"]) for a in own) / 4
        assert float(r["pooled_zeros_fraction"]) == pytest.approx(pooled)
        steps = 1 if r["layer"] == "begin" else 4
        assert float(r["operations"]) == pytest.approx(float(r["macs_per_step"]) * density * steps)
        assert r["operation"] == ("mac" if r["layer"] == "begin" else "ac")
        density = 1 - pooled
    assert {r["steps"] for r in table(smoke, "layers")} == {"4", "16"}
    # fs = 1/8, 8x8: 8 channels at 64 places, ...
    wanted = [64 * 8 * 9, 64 * 8 * 8 * 9, 16 * 16 * 8 * 9, 4 * 32 * 16 * 9, 4 * 64 * 32 * 9, 640]
    assert [int(float(r["macs_per_step"])) for r in rows] == wanted


def test_the_priced_counts_are_the_same_operations(smoke, tmp_path):
    done = hwsim("energy", smoke, "--synapses", "fanout", "--csv", tmp_path / "priced.csv")
    assert done.code == 0, done.err
    rows = table(tmp_path, "priced")
    mine = {r["layer"]: (r["operation"], float(r["operations"])) for r in table(smoke, "layers") if r["steps"] == "4"}
    assert sum(operations > 0 for _, operations in mine.values()) >= 4
    for layer, (operation, operations) in mine.items():
        found = [r for r in rows if r["layer"] == layer and r["phase"] == "inference" and r["action"] == operation]
        assert sum(float(r["count"]) for r in found) == pytest.approx(operations, rel=1e-9), layer


def test_a_run_leaves_curve_figure_and_words_and_its_accuracy_is_that_of_the_evaluation(smoke):
    assert (smoke / "curve.png").read_bytes().startswith(b"\x89PNG")
    curve = table(smoke, "curve")
    assert [int(r["timestep"]) for r in curve] == list(range(1, 17))
    calm = next(r for r in table(smoke, "accuracy") if r["variation_scale"] == "0")
    assert calm["mean"] == curve[3]["accuracy"] and float(calm["std"]) == 0
    text = (smoke / "summary.md").read_text(encoding="utf-8")
    assert "hwsim's own; the author's gradient is not published" in text and "behind the pool" in text
    assert f"| 4 (trained) | {100 * float(curve[3]['accuracy']):.2f} %" in text


def test_more_steps_than_trained_are_evaluated_from_the_run(smoke):
    done = hwsim("recipe", "evaluate", "--from", smoke, "--steps", 11, "--var-scale", 0, "--chips", 1, "--runs",
                 smoke.parent)  # fmt: skip
    assert done.code == 0, done.err
    folder = Path(done.out.splitlines()[-1]).parent
    assert table(folder, "accuracy")[0]["mean"] == table(smoke, "curve")[10]["accuracy"]


def test_every_memory_trains_to_nearly_the_same_loss(tmp_path):
    losses = []
    for memory, segment in (("full", "null"), ("two-pass", "3"), ("bits", "null")):
        done = hwsim(*SMOKE, tmp_path, "--memory", memory, "--segment", segment, "--set", "stages.evaluate.chips=1")
        assert done.code == 0, done.err
        losses.append(float(table(Path(done.out.splitlines()[-1]).parent, "metrics")[0]["train_loss"]))
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-4)


def test_an_interrupted_curve_and_a_repeated_run_are_found_again(smoke):
    done = hwsim(*SMOKE, smoke.parent, "--fs", 0.125, "--set", "stages.bitnet.epochs=3", "--lr", 0.01)
    assert "curve: finished before" in done.err and Path(done.out.splitlines()[-1]).parent == smoke


# --- what does not go together ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "sets", "says"),
    [
        ("bitnet", ["net.encode=poisson"], "net.encode: found poisson; bitnet6 takes the analog image: use direct"),
        ("bitnet", ["net.leak=0.5"], "net.leak: found 0.5; bitnet6 has 1 and no other: leave it out"),
        ("bitnet", ["net.threshold=2"], "net.threshold: found 2; bitnet6 has 1 and no other: leave it out"),
        ("bitnet", ["net.width=0.01"], "net.width: found 0.01; bitnet6 needs at least 1/64 = 0.015625"),
        ("bitnet", ["net.surrogate=S1", "net.memory=two-pass"], "net.memory: two-pass is for S2"),
        ("bitnet", ["net.segment=13"], "net.segment: found 13; it can be at most net.steps, 12"),
        ("bitnet", ["net.memory=full"], "net.segment: memory full runs all steps at once"),
        ("bitnet", ["stages.evaluate.adapt=[2]"], "stages.evaluate.adapt: bitnet6 has no BNTT statistics"),
        ("bitnet", ["stages.curve.of=[other]"], "stages.curve.of: no earlier stage has a network 'other'"),
        ("bitnet", ["device.on=[conv1]"], "this network has begin, layer1, layer2, layer3, layer4, mlp1"),
        ("vat", ["net.surrogate=S1"], "net.surrogate: is for bitnet6, bitnet6-v101; vgg5 has no such choice"),
        ("vat", ["net.memory=bits"], "net.memory: is for bitnet6, bitnet6-v101; vgg5 has no such choice"),
        ("vat", ["net.segment=2"], "net.segment: is for bitnet6, bitnet6-v101; vgg5 has no such choice"),
        ("vat", ["net.steps=65"], "net.steps: found 65; it must be at most 64"),
        ("bitnet", ["net.name=vgg5"], "stages.curve: vgg5 answers at the T that it was trained with"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_said_in_a_line(recipe, sets, says):
    with pytest.raises(ConfigError) as e:
        resolve(Request(recipe, sets=sets))
    assert any(says in line for line in e.value.messages), e.value.messages


def test_what_goes_with_each_other_is_taken():
    others = ["net.surrogate=S3", "net.memory=segments"]
    for sets in (["net.steps=200"], ["net.leak=1.0"], others, ["net.segment=null"]):
        assert resolve(Request("bitnet", sets=sets)).recipe.net.is_bitnet


def test_doctor_estimates_the_memory_of_a_step():
    done = hwsim("doctor", "bitnet")
    assert done.code == 0 and " MiB at the most above the libraries' own, in stage " in done.out
    neurons = [32 * 1024, 32 * 1024, 64 * 256, 128 * 64, 256 * 64, 10]
    # Bytes that torch held at one time, measured.
    for K, measured in ((1, 29.1), (2, 38.9), (4, 58.9)):
        assert bitnet_bytes(neurons, 16, K, "two-pass", 16) / 2**20 == pytest.approx(measured, rel=0.16)


# --- checkpoints of the reference -------------------------------------------------------------------------------------


def reference_file(folder: Path, prefix: str = "", **changed) -> Path:
    state = {prefix + k: torch.tensor(v) for k, v in GOLDEN["params"].items()} | changed
    path = folder / "checkpoint.pth.tar"
    torch.save({"state_dict": {k: v for k, v in state.items() if v is not None}}, path)
    return path


def digits_file(folder: Path, name: str = "bitnet6") -> tuple[Path, torch.nn.Module]:
    net = build(name, width=1 / 16, channels=1, size=(8, 8), classes=10, steps=5,
                generator=torch.Generator().manual_seed(1))  # fmt: skip
    path = folder / "digits.ckpt"
    torch.save({"state_dict": {f"model.{k}": v for k, v in export_bitnet(net.state_dict()).items()}}, path)
    return path, net


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "net.module."])
def test_the_references_names_become_ours_and_back(prefix):
    state = {k: torch.tensor(v) for k, v in GOLDEN["params"].items()}
    tensors = converted_bitnet({prefix + k: v for k, v in state.items()}, "file")
    assert bitnet_of(tensors) == {"fs": 0.032, "channels": 3, "classes": 3, "places": 16}  # int(64 fs) = 2
    net = build("bitnet6", width=GOLDEN["fs"], channels=3, size=(32, 32), classes=3, steps=6)
    net.load_state_dict(tensors)
    assert net(X)[0].tolist() == GOLDEN["rates"]
    back = export_bitnet(net.state_dict())
    assert back.keys() == state.keys() and all(torch.equal(back[k], v) for k, v in state.items())
    assert is_bitnet({prefix + "begin.layer.weight": X}) and not is_bitnet({"conv1.weight": X})


@pytest.mark.parametrize("fs", [0.03125, 0.1, 0.25, 1, 2.5, 4, 5])
def test_the_feature_scale_is_found_from_the_channels(fs):
    with torch.device("meta"):
        tensors = build("bitnet6", width=fs, channels=3, size=(32, 32), classes=10, steps=1).state_dict()
    found = bitnet_of(tensors)["fs"]
    assert [int(n * found) for n in (64, 64, 128, 256, 512)] == [len(tensors[f"{x}.weight"]) for x in LAYERS[:-1]]
    assert len(f"{found:g}") <= len(f"{fs:g}") + 4


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"mlp1.layer.bias": None}, "mlp1.layer.bias: missing"),
        ({"conv9.weight": torch.zeros(1)}, "conv9.weight: no tensor of BITnet"),
        ({"begin.layer.bias": torch.tensor([1.0, float("nan")])}, "begin.layer.bias: not finite real numbers"),
        ({"layer2.layer.bias": torch.zeros(3)}, "layer2.layer.bias: found (3,), expected (4,)"),
        ({"layer3.layer.weight": torch.zeros(8, 3, 3, 3)}, "layer3.layer.weight: found (8, 3, 3, 3), expected 4 in"),
        ({"x.begin.layer.bias": torch.zeros(2)}, "x.begin.layer.bias: a second begin.bias"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_bitnet_is_refused_whole(tmp_path, changed, says):
    path = reference_file(tmp_path, **changed)
    assert says in refused("import", path, "--data", "cifar10", "--runs", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
    with pytest.raises(RunError):
        converted_bitnet({"begin.layer.weight": torch.zeros(1)}, "file")


def test_an_imported_network_is_evaluated_with_its_own_answers(tmp_path):
    path, net = digits_file(tmp_path)
    done = hwsim("import", path, "--data", "digits", "--steps", 5, "--runs", tmp_path / "runs")
    assert done.code == 0, done.err
    assert "taken as bitnet6; bitnet6-v101 pools elsewhere and has the same tensors" in done.err
    folder = Path(done.out.splitlines()[0])
    tested = hwsim("recipe", "evaluate", "--from", folder, "--limit", 100, "--chips", 1, "--var-scale", 0, "--runs",
                   tmp_path / "runs", "--json")  # fmt: skip
    assert tested.code == 0, tested.err
    data = load_images("digits", limit=100)
    answer = net(normalize(data.test.images_NCHW, data.mean, data.std))[0].argmax(1)
    assert json.loads(tested.out)["mean"] == pytest.approx(float((answer == data.test.labels_N).double().mean()))


def test_the_other_network_is_taken_where_it_is_named_and_fifty_steps_where_none_are(tmp_path):
    path, _ = digits_file(tmp_path)
    done = hwsim("import", path, "--data", "digits", "--net", "bitnet6-v101", "--runs", tmp_path / "runs")
    assert done.code == 0 and "same tensors" not in done.err and "taken with 50 steps" in done.err
    record = read_json(Path(done.out.splitlines()[0]) / "imported" / "stage.json", "net")
    assert record["net"]["name"] == "bitnet6-v101" and record["net"]["steps"] == 50
    weights = load_tensors(Path(done.out.splitlines()[0]) / "imported" / "weights.safetensors")[0]
    assert list(weights) != [] and not any(".layer." in k for k in weights)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "its tensors do not tell --data; give --data"),
        (["--data", "cifar10"], "--data cifar10: has 3x32x32 images in 10 classes; the network in"),
        (["--data", "digit"], "--data: there is no data set 'digit'"),
        (["--data", "digits", "--net", "vgg5"], "take bitnet6 or bitnet6-v101, found vgg5"),
        (["--data", "digits", "--leak", "0.9"], "--leak: "),
    ],
)
def test_an_import_that_does_not_fit_is_explained(tmp_path, options, says):
    path, _ = digits_file(tmp_path)
    assert says in refused("import", path, *options, "--runs", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
