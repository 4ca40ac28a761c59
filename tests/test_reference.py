"""Checkpoints of the reference codes: files built in their exact format, read, checked, converted, and sent back."""

import argparse
import json
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from hwsim.config import RunError
from hwsim.device.hybrid import Hybrid, Masked, Sram
from hwsim.device.store import Rram, draw, load, place
from hwsim.network import lif
from hwsim.network.encode import poisson_spikes
from hwsim.network.vgg_bntt import PLANS, VggBntt, build
from hwsim.recipe.reference import (
    converted,
    effective_bits,
    export_state,
    kept_by_reference,
    network_of,
    read_checkpoint,
    settings_of_name,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "reference.json").read_text(encoding="utf-8"))

# The reference's networks as its code has them: convolutions, inputs of fc1 for 32x32 images, outputs of fc1.
NETWORKS = {
    "vgg5": ([64, 128, 128], 8192, 1024),
    "vgg9": ([64, 64, 128, 128, 256, 256, 256], 4096, 1024),
    "vgg11": ([64, 128, 256, 256, 512, 512, 512, 512], 512, 4096),
    "vgg19": ([64, 64, 128, 128] + [256] * 4 + [512] * 8, 512, 1024),
}


def shapes(convs: list[int], fc1_inputs: int, hidden: int, classes: int = 10, steps: int = 2, hybrid: bool = False):
    """Key → shape, under the reference's names."""
    out, inputs = OrderedDict(), 3
    for n, outputs in enumerate(convs, 1):
        out[f"conv{n}.weight"] = (outputs, inputs, 3, 3)
        if hybrid:
            out[f"conv{n}.WR"] = (outputs, inputs, 3, 3)
        inputs = outputs
    out |= {"fc1.weight": (hidden, fc1_inputs), "fc2.weight": (classes, hidden)}
    for name, outputs in [*((f"bntt{n}", c) for n, c in enumerate(convs, 1)), ("bntt_fc", hidden)]:
        for t in range(steps):
            out |= {f"{name}.{t}.{kind}": (outputs,) for kind in ("weight", "running_mean", "running_var")}
            out[f"{name}.{t}.num_batches_tracked"] = ()
    return out


def random_state(all_shapes: dict) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return OrderedDict(
        (k, torch.randint(1, 99, s, generator=g) if k.endswith("tracked") else torch.rand(s, generator=g) + 0.1)
        for k, s in all_shapes.items()
    )


def small(**more) -> dict[str, torch.Tensor]:
    """A VGG9 of an eighth of the width for 8x8 images, T = 3, in the reference's names."""
    return random_state(shapes([8, 8, 16, 16, 32, 32, 32], 32, 128, **{"steps": 3, **more}))


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


ACCURACY = np.float64(0.9)


def save(path: Path, state: dict, accuracy=ACCURACY, **how) -> Path:
    torch.save({"global_step": 100, "state_dict": state, "accuracy": accuracy}, path, **how)
    return path


def rewritten(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes of the pickle in a torch file, zipped or not."""
    payload = path.read_bytes()
    if not zipfile.is_zipfile(path):
        assert old in payload
        path.write_bytes(payload.replace(old, new))
        return
    with zipfile.ZipFile(path) as f:
        entries = {name: f.read(name) for name in f.namelist()}
    (name,) = [n for n in entries if n.endswith("data.pkl")]
    assert old in entries[name]
    entries[name] = entries[name].replace(old, new)
    with zipfile.ZipFile(path, "w") as f:
        for each, content in entries.items():
            f.writestr(each, content)


# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("accuracy", [np.float64(90.25), np.float32(90.25), 90.25, torch.tensor(90.25)], ids=type)
def test_a_checkpoint_is_read_whatever_its_accuracy_is(tmp_path, accuracy, zipped):
    state = small()
    path = save(tmp_path / "x.pth.tar", state, accuracy, _use_new_zipfile_serialization=zipped)
    assert same(read_checkpoint(path), state)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("home", [b"numpy.core.multiarray", b"numpy._core.multiarray"], ids=bytes.decode)
def test_a_numpy_scalar_is_read_under_the_old_and_the_new_name(tmp_path, home, zipped):
    state = small()
    path = save(tmp_path / "x.pth.tar", state, _use_new_zipfile_serialization=zipped)
    mine = np.float64(0).__reduce__()[0].__module__.encode()
    rewritten(path, b"c" + mine + b"\nscalar", b"c" + home + b"\nscalar")
    assert same(read_checkpoint(str(path)), state)


def test_a_file_written_on_a_gpu_is_read_without_one(tmp_path, monkeypatch):
    state = small()
    monkeypatch.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
    path = save(tmp_path / "x.pth.tar", state)
    monkeypatch.undo()
    with zipfile.ZipFile(path) as f:
        assert b"cuda:0" in f.read("x.pth/data.pkl")
    assert same(read_checkpoint(path), state)


def test_a_state_dict_alone_is_read_and_floats_become_single_precision(tmp_path):
    state = small()
    net = torch.nn.BatchNorm1d(4)
    torch.save(net.state_dict(), tmp_path / "module")  # carries torch's metadata
    assert same(read_checkpoint(tmp_path / "module"), dict(net.state_dict()))
    torch.save({k: v.double() if v.is_floating_point() else v for k, v in state.items()}, tmp_path / "double")
    assert same(read_checkpoint(tmp_path / "double"), state)
    torch.save({k: torch.nn.Parameter(v) for k, v in state.items() if v.is_floating_point()}, tmp_path / "parameters")
    assert not any(v.requires_grad for v in read_checkpoint(tmp_path / "parameters").values())


class Trap:
    """What a hostile file asks a reader to call."""

    def __init__(self, sprung: Path):
        self.sprung = sprung

    def __reduce__(self):
        return (os.mkdir, (str(self.sprung),))


@pytest.mark.parametrize("kind", ["accuracy", "state", "whole", "legacy", "pickle"])
def test_a_file_that_asks_for_a_function_is_refused_and_nothing_is_run(tmp_path, kind):
    path, trap = tmp_path / "x.pth.tar", Trap(tmp_path / "sprung")
    if kind == "accuracy":
        save(path, small(), trap)
    elif kind == "state":
        save(path, {**small(), "conv9.weight": trap})
    elif kind == "whole":
        torch.save(trap, path)
    elif kind == "legacy":
        save(path, small(), trap, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(trap, protocol=2))
    with pytest.raises(RunError) as e:
        read_checkpoint(path)
    assert not (tmp_path / "sprung").exists()
    assert str(e.value).startswith(f"{path}: ") and "\n" not in str(e.value)
    if kind != "pickle":  # that is no torch file to begin with
        assert f"asks for {os.name}.mkdir, which no checkpoint" in str(e.value) and "nothing was run" in str(e.value)


def test_the_environment_cannot_switch_the_restricted_reader_off(tmp_path, monkeypatch):
    path = save(tmp_path / "x.pth.tar", small(), Trap(tmp_path / "sprung"))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(RunError, match="asks for"):
        read_checkpoint(path)
    assert not (tmp_path / "sprung").exists()


def test_a_whole_module_is_refused_by_the_name_of_its_class(tmp_path):
    save(tmp_path / "x.pth.tar", torch.nn.Linear(2, 2))
    with pytest.raises(RunError, match=r"asks for torch\.nn\.modules\.linear\.Linear, .* save its state_dict alone"):
        read_checkpoint(tmp_path / "x.pth.tar")


def test_reading_admits_numpy_names_for_no_one_else(tmp_path):
    path, before = save(tmp_path / "x.pth.tar", small()), torch.serialization.get_safe_globals()
    read_checkpoint(path)
    assert set(torch.serialization.get_safe_globals()) == set(before)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_a_hostile_numpy_type_changes_nothing_in_numpy(tmp_path):
    """numpy.dtype(…, copy=False) is numpy's own float64, which a file could turn around by setting its state."""

    class Turned:
        def __reduce__(self):
            return np.dtype, ("f8", False, False), (3, ">", None, None, None, -1, -1, 0)

    path = save(tmp_path / "x.pth.tar", small(), Turned())
    assert len(read_checkpoint(path)) == len(small())
    assert np.dtype("f8").byteorder == "="


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, zipped):
    path = save(tmp_path / "x.pth.tar", {"fc2.weight": torch.rand(3, 3)}, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(RunError) as e:
            read_checkpoint(path)
        # Half the name of a tensor's function is a name, too.
        either = r"not a whole torch checkpoint \(|asks for .*run\. Copy the file again"
        assert re.match(rf"{re.escape(str(path))}: ({either})", str(e.value))
        assert "\n" not in str(e.value)
    path.write_bytes(whole)
    assert read_checkpoint(path).keys() == {"fc2.weight"}


def test_what_is_no_torch_file_is_refused(tmp_path):
    for i, content in enumerate([b"hello", b"\x80\x02}q\x00.", "é" * 99, b"PK\x03\x04 no archive", bytes(512)]):
        path = tmp_path / str(i)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(RunError, match=rf"{i}: (not a whole torch checkpoint|holds no tensors)") as e:
            read_checkpoint(path)
        assert "\n" not in str(e.value) and len(str(e.value)) < len(str(path)) + 200


def test_a_file_of_another_pickle_protocol_is_read_without_a_warning(tmp_path):
    path = save(tmp_path / "x.pth.tar", small(), 0.5, pickle_protocol=3)
    assert same(read_checkpoint(path), small())


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RunError, match=r"gone\.pth\.tar: cannot be read: No such file"):
        read_checkpoint(tmp_path / "gone.pth.tar")
    with pytest.raises(RunError, match=r"cannot be read: Is a directory; give a checkpoint's file"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ({"global_step": 3, "accuracy": 0.5}, "not a state_dict: global_step, accuracy"),
        ({}, "holds no tensors: found a dict of nothing"),
        ({"state_dict": {}}, "holds no tensors: found a dict of state_dict"),
        ({"state_dict": [torch.ones(2)]}, "holds no tensors: found a dict of state_dict"),
        (torch.ones(2), "holds no tensors: found Tensor"),
        ({"state_dict": {3: torch.ones(2)}}, "not a state_dict: 3 no dense real tensor"),
        ({"state_dict": {"a": torch.ones(2, 2).to_sparse()}}, "not a state_dict: a no dense real tensor"),
        ({"state_dict": {"a": torch.ones(2, device="meta")}}, "not a state_dict: a no dense real tensor"),
        ({"state_dict": {"a": torch.ones(2, dtype=torch.complex64)}}, "not a state_dict: a no dense real tensor"),
    ],
    ids=str,
)
def test_a_file_without_a_state_dict_is_refused(tmp_path, held, says):
    torch.save(held, tmp_path / "x")
    with pytest.raises(RunError) as e:
        read_checkpoint(tmp_path / "x")
    assert says in str(e.value) and str(e.value).startswith(f"{tmp_path / 'x'}: ")


# --- names and shapes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hybrid", [False, True], ids=["rram", "hybrid"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_tensor_gets_its_name_and_its_values(hybrid, prefix):
    state = small(hybrid=hybrid)
    out = converted({prefix + k: v for k, v in state.items()}, "x")
    assert torch.equal(out["conv2.weight"], state["conv2.weight"])
    assert torch.equal(out["fc1.weight"], state["fc1.weight"]) and torch.equal(out["fc2.weight"], state["fc2.weight"])
    for name in [*(f"bntt{n}" for n in range(1, 8)), "bntt_fc"]:
        for kind in ("weight", "running_mean", "running_var", "num_batches_tracked"):
            assert len(out[f"{name}.{kind}"]) == 3
            for t in range(3):
                assert torch.equal(out[f"{name}.{kind}"][t], state[f"{name}.{t}.{kind}"])
    assert out["bntt_fc.num_batches_tracked"].dtype == torch.int64
    assert [k for k in out if k.endswith("rram")] == [f"conv{n}.rram" for n in range(1, 8) if hybrid]
    assert not hybrid or torch.equal(out["conv7.rram"], state["conv7.WR"])
    assert len(out) == 7 + 2 + 8 * 4 + 7 * hybrid
    assert network_of(out)["is_hybrid"] is hybrid


def test_steps_from_ten_on_keep_their_order():
    state = random_state(shapes(*NETWORKS["vgg5"], steps=12))
    for t in range(12):
        state[f"bntt2.{t}.weight"].fill_(t)
    shuffled = dict(sorted(state.items()))  # 0, 1, 10, 11, 2, …
    assert converted(shuffled, "x")["bntt2.weight"][:, 0].tolist() == list(range(12))


def test_a_published_network_gives_its_published_logits(tmp_path, backend):
    """Weights and statistics as the original code names them, with the logits that it computed from them."""
    published = json.loads((Path(__file__).parent / "golden" / "bntt.json").read_text(encoding="utf-8"))
    published = published["bntt_vgg9_scaled"]
    state = {k: torch.tensor(v) for k, v in {**published["params"], **published["running_stats_after"]}.items()}
    state |= {k.replace("running_var", "num_batches_tracked"): torch.tensor(1) for k in state if "running_var" in k}
    tensors = converted(read_checkpoint(save(tmp_path / "x.pth.tar", state)), "x")
    net = VggBntt(
        (2, 2, "A", 3, 3, "A", 4, 4, 4, "A"), 6, channels=3, size=(8, 8), classes=3, steps=published["T"],
        leak=published["leak"],
    )  # fmt: skip
    net.load_state_dict(tensors)
    x, r = torch.tensor(published["x_times_8"]) / 8, torch.tensor(published["r_times_128"]) / 128
    with torch.no_grad():
        logits, _ = net.eval().run(poisson_spikes(x, r))
    torch.testing.assert_close(logits, torch.tensor(published["logits_eval"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_reference_s_networks_are_recognized(name):
    convs, fc1_inputs, hidden = NETWORKS[name]
    one = torch.ones(())
    state = {k: one.expand(s) if s else torch.tensor(1) for k, s in shapes(convs, fc1_inputs, hidden).items()}
    numbers = {k: v.numel() for k, v in state.items()}
    counts = GOLDEN["arch_param_counts"][name]
    assert sum(n for k, n in numbers.items() if k.startswith("conv")) == counts["conv"]
    assert (numbers["fc1.weight"], numbers["fc2.weight"]) == (counts["fc1"], counts["fc2"])
    scales = [n for k, n in numbers.items() if k.startswith("bntt") and k.endswith(".0.weight")]
    assert sum(scales) == counts["gamma_per_step"]
    assert network_of(converted(state, "x")) == {
        "name": name, "width": 1.0, "steps": 2, "channels": 3, "size": None if name == "vgg11" else 32,
        "classes": 10, "is_hybrid": False,
    }  # fmt: skip


@pytest.mark.parametrize("width", [0.0005, 0.005, 0.01, 0.125, 0.3, 1 / 3, 0.5, 0.77, 1.5])
@pytest.mark.parametrize("name", [n for n in PLANS if n != "mlp"])
def test_the_width_that_is_found_gives_the_same_shapes(name, width):
    settings = {"channels": 1, "size": (32, 32), "classes": 7, "steps": 2}
    with torch.device("meta"):
        tensors = build(name, width=width, **settings).state_dict()
        found = network_of(tensors)
        again = build(name, width=found["width"], **settings).state_dict()
    assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in tensors.items()}
    assert (found["name"], found["channels"], found["classes"]) == (name, 1, 7)
    assert found["width"] > 0 and len(str(found["width"])) <= 6


@pytest.mark.parametrize(("pixels", "size"), [(8, 8), (28, 24), (31, 24), (32, 32), (96, 96)])
def test_the_image_is_told_by_the_inputs_of_fc1(pixels, size):
    with torch.device("meta"):
        net = build("vgg9", width=0.125, channels=1, size=(pixels, pixels), classes=10, steps=1)
    assert network_of(net.state_dict())["size"] == size


def edited(change) -> dict:
    state = dict(small(hybrid=True))
    change(state)
    return state


def drop(*keys):
    return lambda s: [s.pop(k) for k in keys]


def put(**values):
    return lambda s: s.update({k.replace("__", "."): v for k, v in values.items()})


def poke(key, value, index=0):
    def change(s):
        s[key] = s[key].clone()
        s[key].view(-1)[index] = value

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop("conv3.weight"), "conv3.weight: missing of conv3 (the file has 7 convolutions and steps 0 to 2)"),
        (drop("conv3.WR"), "conv3.WR: missing of conv3"),
        (drop("fc1.weight"), "fc1.weight: missing of fc1"),
        (drop("fc2.weight"), "fc2.weight: missing of fc2"),
        (drop("bntt2.1.running_mean"), "bntt2.1.running_mean: missing of bntt2"),
        (drop("bntt_fc.0.num_batches_tracked"), "bntt_fc.0.num_batches_tracked: missing of bntt_fc"),
        (lambda s: [s.pop(k) for k in [*s] if k.startswith("bntt7.")], "(12 in all): missing of bntt7"),
        (lambda s: [s.pop(k) for k in [*s] if k.startswith("conv7.")], "conv7.weight, conv7.WR: missing of conv7"),
        (lambda s: [s.pop(k) for k in [*s] if k[:4] == "bntt" and ".1." in k], "bntt1.1.weight, bntt1.1.running_mean"),
        (lambda s: s.update({k.replace(".2.", ".7."): s.pop(k) for k in [*s] if k[:8] == "bntt1.2."}), "steps 0 to 7"),
        (put(conv2__bias=torch.ones(8)), "conv2.bias: no BNTT VGG has this"),
        (put(fc1__WR=torch.ones(128, 32)), "fc1.WR: no BNTT VGG has this"),
        (put(bntt1__01__weight=torch.ones(8)), "bntt1.01.weight: no BNTT VGG has this"),
        (put(module__conv1__weight=torch.ones(8, 3, 3, 3)), "module.conv1.weight: no BNTT VGG has this"),
        (put(bntt_fc__0__bias=torch.ones(128)), "bntt_fc.0.bias: an offset, which BNTT had in its first version"),
        (poke("conv2.WR", float("nan")), "conv2.WR: values that are not finite"),
        (poke("conv2.weight", float("inf"), 5), "conv2.weight: values that are not finite"),
        (poke("bntt3.2.running_var", -1.0), "bntt3.2.running_var: a variance below 0"),
        (put(conv4__weight=torch.ones(16, 8, 3, 3)), "conv4.weight: found 16 x 8 x 3 x 3, expected 16 x 16 x 3 x 3"),
        (put(conv4__weight=torch.ones(16, 16, 5, 5)), "conv4.weight: found 16 x 16 x 5 x 5, expected 16 x 16 x 3 x 3"),
        (put(conv1__weight=torch.ones(0, 3, 3, 3)), "conv1.weight: found 0 x 3 x 3 x 3, expected any x any x 3 x 3"),
        (put(conv1__weight=torch.ones(())), "conv1.weight: found one number, expected any x any x 3 x 3"),
        (put(conv1__WR=torch.ones(8, 1, 3, 3)), "conv1.WR: found 8 x 1 x 3 x 3, expected 8 x 3 x 3 x 3"),
        (put(fc1__weight=torch.ones(128, 33)), "fc1.weight: found 128 x 33, expected 128 x multiple of 32"),
        (put(fc2__weight=torch.ones(10, 64)), "fc2.weight: found 10 x 64, expected any x 128"),
        (put(bntt5__1__running_var=torch.ones(16)), "bntt5.1.running_var: found 16, expected 32"),
        (put(bntt5__1__num_batches_tracked=torch.ones(1, dtype=torch.int64)), "found 1, expected one number"),
        (put(bntt5__1__num_batches_tracked=torch.tensor(1.5)), "found torch.float32, expected whole numbers"),
        (put(fc2__weight=torch.ones(10, 128, dtype=torch.int64)), "found torch.int64, expected real numbers"),
    ],
)  # fmt: skip
def test_a_state_that_is_no_whole_network_is_refused(change, says):
    converted(edited(lambda _: None), "my.pth.tar")
    with pytest.raises(RunError) as e:
        converted(edited(change), "my.pth.tar")
    assert says in str(e.value)
    assert all(line.startswith("my.pth.tar: ") for line in str(e.value).splitlines())


def test_everything_that_is_wrong_is_said_at_once():
    def change(s):
        for each in (drop("conv3.WR", "bntt2.1.weight"), put(extra=torch.ones(1)), poke("fc1.weight", float("nan"))):
            each(s)

    with pytest.raises(RunError) as e:
        converted(edited(change), "x")
    lines = str(e.value).splitlines()
    assert len(lines) == 4
    assert [line.split(": ")[1] for line in lines] == ["extra", "bntt2.1.weight", "conv3.WR", "fc1.weight"]


def test_one_mistake_is_one_line_however_many_tensors_have_it():
    def change(s):
        for key in ("conv2.WR", "conv2.weight", "fc1.weight"):
            poke(key, float("nan"))(s)
        s |= {f"bntt_fc.{t}.bias": torch.ones(128) for t in range(3)}

    with pytest.raises(RunError) as e:
        converted(edited(change), "x")
    lines = str(e.value).splitlines()
    assert len(lines) == 2
    assert "bntt_fc.0.bias, bntt_fc.1.bias, bntt_fc.2.bias: an offset" in lines[0]
    assert "conv2.weight, conv2.WR, fc1.weight: values that are not finite" in lines[1]


def test_nothing_at_all_is_refused():
    with pytest.raises(RunError, match=r"conv1\.weight: missing of conv1"):
        converted({}, "x")


def test_a_plan_that_is_unknown_is_refused_with_the_channels_that_were_found():
    for convs, fc1_inputs, hidden in [([64, 128, 100], 100, 1024), ([64, 128], 128, 1024), ([64, 128, 128], 128, 1000)]:
        tensors = converted(random_state(shapes(convs, fc1_inputs, hidden, steps=1)), "x")
        with pytest.raises(RunError) as e:
            network_of(tensors, "x.pth.tar")
        assert f"x.pth.tar: found convolutions with {convs} channels and fc1 with {hidden}" in str(e.value)
        assert "vgg5 [64, 128, 128], 1024" in str(e.value)


def test_an_image_that_is_not_square_is_refused():
    tensors = converted(random_state(shapes([8, 16, 16], 16 * 6, 128, steps=1)), "x")
    with pytest.raises(RunError, match="fc1 takes 96 inputs, but vgg5 ends with 16 channels of a square image"):
        network_of(tensors)
    convs, _, hidden = NETWORKS["vgg11"]
    few = [c // 32 for c in convs]
    tensors = converted(random_state(shapes(few, 4 * few[-1], hidden // 32, steps=1)), "x")
    with pytest.raises(RunError, match="but vgg11 ends with 16 channels of one pixel"):
        network_of(tensors)


# --- there and back -----------------------------------------------------------------------------------------------


def trained(plan: str = "vgg9", hybrid: bool = False, pruned: bool = False):
    """A network with weights, scales and statistics that no two layers or steps share."""
    net = build(plan, width=0.125, channels=3, size=(8, 8), classes=10, steps=3)
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name.startswith("bntt"):
                low = -0.5 if name.endswith("mean") else 0.25
                value.copy_(torch.rand(value.shape, generator=g) + low)
        if hybrid:
            for layer in (net.get_submodule(conv) for conv, _, _ in net.blocks):
                layer.rram = torch.rand(layer.weight.shape, generator=g) * 2 - 1
                layer.mask = torch.rand(layer.weight.shape, generator=g) > 0.3 if pruned else None
    on_stores(net, hybrid, pruned)
    return net


def on_stores(net, hybrid: bool, pruned: bool) -> None:
    sram = Masked(Sram(3)) if pruned else Sram(3, "xnor")
    rram = Rram(2, "xnor" if not pruned else "dorefa", sigma=0.2)
    place(net, {"conv*": Hybrid(rram, sram, 0, True) if hybrid else rram})


def logits(net) -> torch.Tensor:
    draw(net, torch.Generator().manual_seed(4))
    net.eval()
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return net(x, torch.Generator().manual_seed(6))[0]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("hybrid", [False, True], ids=["rram", "hybrid"])
@pytest.mark.parametrize("plan", ["vgg5", "vgg9", "vgg11"])
def test_a_network_that_went_to_the_reference_and_back_computes_the_same_bits(
    tmp_path, monkeypatch, plan, hybrid, zipped
):
    monkeypatch.setattr(lif, "forced", "reference")
    if plan == "vgg11":  # it halves the image four times
        monkeypatch.setitem(PLANS, "vgg11", ((64, "A", 128, "A", 256, 256, 512, 512, "A", 512, 512, "G"), 4096))
    net = trained(plan, hybrid)
    state = {f"module.{k}": v for k, v in export_state(net.state_dict()).items()}
    path = save(tmp_path / "x.pth.tar", state, _use_new_zipfile_serialization=zipped)
    tensors = converted(read_checkpoint(path), str(path))
    assert same(tensors, dict(net.state_dict()))
    found = network_of(tensors)
    again = build(
        found["name"], width=found["width"], channels=found["channels"], size=(8, 8), classes=found["classes"],
        steps=found["steps"],
    )  # fmt: skip
    on_stores(again, found["is_hybrid"], False)
    load(again, tensors)
    assert torch.equal(logits(again), logits(net))
    assert logits(net).std() > 0.01


def test_the_exported_names_are_the_reference_s():
    net = trained(hybrid=True)
    expected = shapes([8, 8, 16, 16, 32, 32, 32], 32, 128, steps=3, hybrid=True)
    assert {k: tuple(v.shape) for k, v in export_state(net.state_dict()).items()} == dict(expected)
    plain = shapes([8, 8, 16, 16, 32, 32, 32], 32, 128, steps=3)
    assert export_state(trained().state_dict()).keys() == plain.keys()


def test_masked_weights_go_to_the_reference_as_zeros():
    net = trained(hybrid=True, pruned=True)
    state = export_state(net.state_dict())
    assert not any("mask" in k for k in state)
    for conv, _, _ in net.blocks:
        layer = net.get_submodule(conv)
        weight = state[f"{conv}.weight"]
        assert torch.equal(weight == 0, ~layer.mask) and torch.equal(weight[layer.mask], layer.weight[layer.mask])
        assert torch.equal(state[f"{conv}.WR"], layer.rram)
        # The reference's mask, made anew, is at least as strict.
        assert not (weight.abs() > 0.005 * weight.abs().max())[~layer.mask].any()


def test_an_exported_state_shares_no_memory_with_the_network():
    net = trained()
    before = net.bntt1.weight.detach().clone(), net.conv1.weight.detach().clone()
    for value in export_state(net.state_dict()).values():
        value.zero_()
    assert torch.equal(net.bntt1.weight, before[0]) and torch.equal(net.conv1.weight, before[1])


def test_tensors_that_the_reference_has_no_name_for_are_not_exported():
    for key in ("optimizer.momentum", "conv1.z", "bntt1.bias", "fc3.weight"):
        with pytest.raises(RunError, match=f"{key}: the reference has no name"):
            export_state({key: torch.ones(2)})


# --- file names ---------------------------------------------------------------------------------------------------

STEM = GOLDEN["checkpoint_names"]["cases"]["--quant 8 --sram --sram_bit 4 --shift --shift_bit 0 --ct --load_rram_w"]


def flags_of(command: str) -> dict:
    """What the reference's own flags say: the golden's common ones and those of a case."""
    parser = argparse.ArgumentParser()
    for flag, kind, default in [
        ("quant", int, 1), ("sram_bit", int, 1), ("shift_bit", int, 0), ("var_scale", float, 1.0),
        ("model_name", str, ""), ("log_name", str, ""),
    ]:  # fmt: skip
        parser.add_argument(f"--{flag}", type=kind, default=default)
    for flag in ("no_var", "sram", "shift", "ct", "tern", "eva", "load_rram_w", "load_sram_w", "sram_init0"):
        parser.add_argument(f"--{flag}", action="store_true")
    a = parser.parse_args(command.split())
    if a.model_name:
        return {}
    flags = {
        "dataset": "cifar10", "net": "vgg9", "steps": 20, "lr": 0.1, "leak": 0.95, "quant": a.quant,
        "var_scale": a.var_scale, "no_var": a.no_var, "sram": a.sram, "sram_bit": a.sram_bit,
    }  # fmt: skip
    if not a.eva:
        flags |= {"epochs": 100, "ct": a.ct, "tern": a.tern, "shift_bit": a.shift_bit}
        init = [i for i, on in {"rram": a.load_rram_w, "sram": a.load_sram_w, "zeros": a.sram_init0}.items() if on]
        flags |= {"init": (init or ["xavier"])[0]} if a.sram else {}
    return flags


@pytest.mark.parametrize("command", GOLDEN["checkpoint_names"]["cases"])
@pytest.mark.parametrize("date", ["", "2022-06-12"])
def test_a_checkpoint_s_name_gives_back_the_flags(command, date):
    stem, flags = GOLDEN["checkpoint_names"]["cases"][command], flags_of(command)
    suffix = "_sram_bestmodel.pth.tar" if flags.get("sram") else "_rram_bestmodel.pth.tar"
    for name in (date + stem, f"{date}{stem}{suffix}", f"save_model/modelsave_2022-06-12/{date}{stem}{suffix}"):
        found = settings_of_name(name)
        assert found == flags
        assert [type(v) for v in found.values()] == [type(flags[k]) for k in found]
    assert settings_of_name(Path(f"x/{date}{stem}{suffix}")) == flags


@pytest.mark.parametrize(("word", "init"), [("rr", "rram"), ("sr", "sram"), ("ini0", "zeros"), ("xavier", "xavier")])
def test_every_beginning_of_the_sram_is_understood(word, init):
    assert settings_of_name(STEM[:-2] + word)["init"] == init


def test_numbers_are_read_as_python_prints_them():
    name = STEM.replace("lr0.1", "lr1e-05").replace("shift0", "shift-3").replace("cifar10v", "cifar100v")
    found = settings_of_name(name)
    assert (found["lr"], found["shift_bit"], found["dataset"]) == (1e-5, -3, "cifar100")


@pytest.mark.parametrize(
    "name",
    [
        "r8s4", "r8s4_rram_bestmodel.pth.tar", "", "model.pth", STEM + "x", "x" + STEM, STEM.replace("_leak", "_lek"),
        STEM.removesuffix("_srLDrr"), STEM.replace("True4", "False4"), STEM.replace("_epoch100", ""),
        STEM + "_rram_bestmodel.pth.tar", STEM.replace("lr0.1", "lr0..1"),
        "2022-05-01cifar10vgg9_timestep20_lr0.1_epoch100_leak0.95_quant8_4_bit_rran_bestmodel_test.pth.tar",
    ],
)  # fmt: skip
def test_a_name_of_another_scheme_says_nothing(name):
    assert settings_of_name(name) == {}


# --- what the reference did ---------------------------------------------------------------------------------------


def test_the_bits_of_a_weight_are_the_reference_s():
    cases = GOLDEN["effective_bits"]["cases"]
    assert len(cases) == 16
    for c in cases:
        assert effective_bits(c["index"] % 2 == 0, c["sram"], c["shift"], c["quant"], c["sram_bit"]) == c["bits"], c


def test_the_reference_s_recovery_loads_statistics_alone():
    keys = [*shapes(*NETWORKS["vgg9"], steps=2)]
    counts = GOLDEN["recovery_load"]["vgg9_T2_counts"]
    kept = kept_by_reference(keys)
    assert (len(keys), len(kept)) == (counts["total_keys"], counts["kept"])
    assert {k.rpartition(".")[2] for k in kept} == set(GOLDEN["recovery_load"]["kept_suffixes"])
    assert kept == [k for k in keys if k.split(".")[-1] in GOLDEN["recovery_load"]["kept_suffixes"]]
    assert kept_by_reference(shapes(*NETWORKS["vgg9"], steps=2, hybrid=True)) == kept
