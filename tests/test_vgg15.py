"""The constrained VGG: the published architecture, its counts, its keys, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hwsim.config import ConfigError, RunError
from hwsim.device.store import load
from hwsim.network import vgg15
from hwsim.network.vgg15 import Vgg15, build, from_reference, to_reference

TINY = json.loads((Path(__file__).parent / "golden" / "conversion.json").read_text())["tiny_net"]


def tiny() -> Vgg15:
    """The golden network, with its binarized weights."""
    net = Vgg15((3, 4, "A", 4, "A"), 6, channels=2, size=(4, 4), classes=3)
    load(net, from_reference({k: torch.tensor(v) for k, v in TINY["weights_binarised"].items()}))
    return net.eval()


def images() -> torch.Tensor:
    return torch.tensor(next(v for k, v in TINY.items() if k.startswith("norm_images")))


def meta(name: str, classes: int, size: int) -> Vgg15:
    with torch.device("meta"):
        return build(name, channels=3, size=(size, size), classes=classes)


@pytest.mark.parametrize(("classes", "size", "parameters"), [(100, 32, 17_217_216), (1000, 224, 121_566_912)])
def test_vgg15_has_the_published_parameters(classes, size, parameters):
    net = meta("vgg15", classes, size)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert list(net.state_dict()) == [f"{n}.weight" for n in net.layers]  # no bias, no statistics


@pytest.mark.parametrize(("size", "macs"), [(32, 315_703_296), (224, 15_453_487_104)])
def test_vgg15_has_the_published_multiplications(size, macs):
    net, side, total = meta("vgg15", 100 if size == 32 else 1000, size), size, 0
    for name, layer in net.layers.items():
        total += layer.weight.numel() * (side * side if name.startswith("conv") else 1)
        side //= 1 + net.pooled.get(name, False)
    assert total == macs


def test_thirteen_layers_of_vgg15_are_binary():
    net = meta("vgg15", 100, 32)
    inner = list(net.layers.values())[1:-1]
    ends = [net.conv1, net.fc2]
    assert len(inner) == 13
    assert sum(m.weight.numel() for m in inner) == 16_805_888
    assert sum(m.weight.numel() for m in ends) == 411_328
    assert sum(len(m.weight) for m in inner) == 8_256


def test_logits_and_activations_match_golden():
    net, x = tiny(), images()
    torch.testing.assert_close(net(x)[0], torch.tensor(TINY["ann_logits"]), rtol=1e-6, atol=1e-7)
    wanted = [torch.tensor(v) for v in TINY["post_relu_activations"].values()]
    found = dict(net.activations(x))
    assert list(found) == ["conv1", "conv2", "conv3", "fc1"]
    for mine, theirs in zip(found.values(), wanted, strict=True):
        torch.testing.assert_close(mine.reshape(theirs.shape), theirs, rtol=1e-6, atol=1e-7)


def test_averages_stand_before_the_relu():
    net = Vgg15((1, "A"), 1, channels=1, size=(2, 2), classes=1).eval()
    with torch.no_grad():
        net.conv1.weight.zero_()
        net.conv1.weight[0, 0, 1, 1] = 1
    x = torch.tensor([[[[3.0, -1.0], [-1.0, -1.0]]]])
    assert dict(net.activations(x))["conv1"].item() == 0.0  # behind the ReLU it would be 3/4


def test_keys_of_the_published_code_are_read_in_the_order_of_their_numbers():
    net = build("vgg15", width=1 / 64, channels=3, size=(32, 32), classes=5)
    theirs = to_reference(net, net.state_dict())
    assert list(theirs)[:3] == [f"features.module.{i}.weight" for i in (0, 3, 6)]
    assert list(theirs)[-3:] == ["features.module.36.weight", "classifier.1.weight", "classifier.4.weight"]
    shuffled = dict(sorted(theirs.items()))  # features.module.12 before features.module.3
    back = from_reference(shuffled)
    assert all(torch.equal(back[k], v) for k, v in net.state_dict().items()) and len(back) == len(net.state_dict())
    plain = {k.replace(".module", ""): v for k, v in theirs.items()}
    assert from_reference(plain).keys() == back.keys()


@pytest.mark.parametrize("key", ["features.module.0.bias", "features.module.1.running_mean", "conv1.weight"])
def test_a_checkpoint_with_other_tensors_is_refused(key):
    with pytest.raises(RunError, match=key.replace(".", r"\.")):
        from_reference({key: torch.zeros(1)})


def test_a_checkpoint_with_another_classifier_is_refused():
    with pytest.raises(RunError, match="1 convolutions and 1 linear layers; this network has 2"):
        from_reference({"features.0.weight": torch.zeros(1), "classifier.1.weight": torch.zeros(1)})


@pytest.mark.parametrize(("name", "size"), [("vgg15", 28), ("vgg9-abr", 7), ("vgg6-abr", 3)])
def test_an_image_too_small_for_the_plan_is_explained(name, size):
    with pytest.raises(ConfigError, match=f"pixels, the data have {size}x{size}. Take a network with fewer pools"):
        meta(name, 10, size)


def test_an_odd_side_loses_its_last_row():
    net = meta("vgg9-abr", 10, 28)  # 28, 14, 7, 3
    assert net.fc1.weight.shape[1] == 256 * 3 * 3


def test_dropout_acts_in_training_only_and_keeps_the_mean():
    net = build("vgg6-abr", width=0.25, channels=1, size=(8, 8), classes=4)
    x = torch.randn(2, 1, 8, 8)
    one, two = (net(x, torch.Generator().manual_seed(s))[0] for s in (1, 2))
    assert not torch.equal(one, two) and torch.equal(one, net(x, torch.Generator().manual_seed(1))[0])
    net.eval()
    assert torch.equal(net(x)[0], net(x, torch.Generator().manual_seed(1))[0])
    net.train()
    kept = net._dropped(torch.ones(100_000), torch.Generator().manual_seed(0))
    assert abs(float(kept.mean()) - 1) < 0.01 and abs(float((kept == 0).float().mean()) - 0.1) < 0.01


def test_first_weights_are_normal_with_the_published_spread():
    net = build("vgg15", width=0.5, channels=3, size=(32, 32), classes=100, generator=torch.Generator().manual_seed(0))
    assert float(net.conv5.weight.detach().std()) == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert float(net.fc1.weight.detach().std()) == pytest.approx(0.01, rel=0.02)


def test_the_loss_is_the_cross_entropy_and_reaches_every_weight():
    net = build("vgg6-abr", width=0.25, channels=1, size=(8, 8), classes=4).eval()
    x, y = torch.randn(3, 1, 8, 8), torch.tensor([0, 3, 1])
    (loss,) = net.losses(x, y)
    assert torch.equal(loss, F.cross_entropy(net(x)[0], y))
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in net.parameters())


def test_a_trace_counts_analog_inputs():
    net = build("vgg6-abr", width=0.25, channels=1, size=(8, 8), classes=4).eval()
    x = torch.randn(2, 1, 8, 8)
    _, trace = net(x, account=[64])
    assert list(trace) == list(net.layers)
    assert int(trace["conv1"]["fractional"].sum()) == 2 * 64 and trace["conv1"]["signed"]
    assert int(trace["conv2"]["fractional"].sum()) == int((dict(net.activations(x))["conv1"] != 0).sum())
    assert all(not here["unit"].any() and here["neurons"] == 0 for here in trace.values())


def test_widths_multiply_every_layer():
    net = meta("vgg6-abr", 10, 8)
    with torch.device("meta"):
        half = build("vgg6-abr", width=0.5, channels=3, size=(8, 8), classes=10)
    assert [len(m.weight) for m in half.layers.values()][:-1] == [len(m.weight) // 2 for m in net.layers.values()][:-1]
    assert set(vgg15.PLANS) == {"vgg6-abr", "vgg9-abr", "vgg15"}
