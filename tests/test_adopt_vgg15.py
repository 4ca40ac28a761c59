"""Checkpoints of SNN-Conversion become runs that are converted and evaluated."""

import csv
from pathlib import Path

import pytest
import torch
from command_line import hwsim, refused

from hwsim.network.vgg15 import build, to_reference
from hwsim.recipe.adopt_vgg15 import is_binary


def checkpoint(path: Path, *, binary: bool = True, **plan) -> Path:
    settings = {"width": 0.25, "channels": 1, "size": (8, 8), "classes": 10} | plan
    net = build("vgg6-abr", **settings, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        net.fc1.weight.mul_(10)
        for layer in list(net.layers.values())[1:-1] if binary else []:
            over = tuple(range(1, layer.weight.dim()))
            layer.weight.copy_(layer.weight.sign() * layer.weight.abs().mean(over, keepdim=True))
    torch.save({"state_dict": to_reference(net, net.state_dict())}, path)
    return path


@pytest.mark.parametrize("binary", [True, False])
def test_a_checkpoint_is_imported_converted_and_evaluated(tmp_path, binary):
    file = checkpoint(tmp_path / "net.pth.tar", binary=binary)
    done = hwsim("import", file, "--data", "digits", "--runs", tmp_path / "runs")
    assert done.code == 0, done.err
    assert f"its inner layers are taken as {'binary' if binary else 'float'}" in done.err
    folder = Path(done.out.splitlines()[0])
    ran = hwsim("recipe", "convert", "--from", folder, "--time", "12", "--chips", "2", "--var-scales", "0,4",
                "--runs", tmp_path / "runs", "--eval-size", "40", "--norm", "64", "--set", "stages.account.samples=20",
                "--set", "stages.snn.verify=2")  # fmt: skip
    assert ran.code == 0, ran.err
    with (Path(ran.out.splitlines()[-1]).parent / "conversion.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert [r["weight_bits"] for r in rows] == ["32", *["1" if binary else "32"] * 4, "32"]


def test_what_does_not_fit_is_explained(tmp_path):
    file = checkpoint(tmp_path / "net.pth.tar")
    runs = ("--runs", tmp_path / "runs")
    assert "its tensors do not tell --data" in refused("import", file, *runs)
    assert "--data mnist: no plan of vgg6-abr" in refused("import", file, "--data", "mnist", *runs)
    assert "there is no data set 'digit'; did you mean 'digits'" in refused("import", file, "--data", "digit", *runs)
    assert "--quant: " in refused("import", file, "--data", "digits", "--quant", "1", *runs)
    tensors = torch.load(file, weights_only=True)["state_dict"]
    torch.save({**tensors, "features.module.0.bias": torch.zeros(8)}, file)
    said = refused("import", file, "--data", "digits", *runs)
    assert "net.pth.tar: features.module.0.bias: this network has weights" in said
    assert not (tmp_path / "runs").exists()


def test_one_magnitude_a_filter_is_binary_and_a_zero_does_not_hurt():
    ends = {"conv1.weight": torch.randn(2, 2), "fc2.weight": torch.randn(2, 2)}

    def held(*filters) -> bool:
        return is_binary({"conv1.weight": ends["conv1.weight"], "x": torch.tensor(filters), **ends})

    assert held([1.0, -1.0], [0.5, 0.5]) and held([1.0, 0.0], [0.0, 0.0])
    assert not held([1.0, -1.0], [0.5, 0.4])
