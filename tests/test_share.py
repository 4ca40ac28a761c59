"""One network in several processes: the numbers of one process with the same batches, in float64."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks_started import together

from hwsim.data.image import ImageData, Split
from hwsim.device.hybrid import Hybrid, Masked, Sram
from hwsim.device.store import Rram, place
from hwsim.network import bitnet, lif, vgg15
from hwsim.network.layer import BNTT
from hwsim.network.share import Share
from hwsim.network.vgg_bntt import VggBntt
from hwsim.recipe.progress import Progress
from hwsim.recipe.ranks import ALONE, Ranks
from hwsim.recipe.recover import begin
from hwsim.recipe.settings import Prune, Recover, Train
from hwsim.recipe.train import train

CLASSES = 4


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ----------------------------------------------------------------------------------------------- merged statistics


@given(st.integers(1, 5), st.integers(1, 9), st.floats(-1e6, 1e6), st.integers(0, 99))
def test_merged_statistics_are_those_of_the_whole_batch(ranks, n, offset, seed):
    x_RNC = offset + torch.randn(ranks, n, 3, dtype=torch.float64, generator=seeded(seed))
    own = torch.stack([x_RNC.mean(1), x_RNC.var(1, correction=0)], 1)
    mean, var = Share(0, ranks, lambda _: own).statistics(*own[0])
    whole = x_RNC.flatten(0, 1)
    assert torch.allclose(mean, whole.mean(0), rtol=1e-14, atol=1e-14)
    assert torch.allclose(var, whole.var(0, correction=0), rtol=1e-9, atol=1e-9)


def test_statistics_are_merged_in_float64_and_come_back_in_their_own_type():
    means = torch.tensor([[[4096.0]], [[4096.25]]])
    own = torch.stack([means, torch.full_like(means, 0.5)], 1)
    asked = []
    mean, var = Share(0, 2, lambda x: (asked.append(x.dtype), own.double())[1]).statistics(*own[0])
    assert asked == [torch.float64] and mean.dtype == var.dtype == torch.float32
    assert mean.item() == 4096.125 and var.item() == 0.5 + 0.125**2


def test_shares_are_equal_parts_in_order_and_nothing_else():
    x = torch.arange(24).reshape(2, 6, 2)
    parts = [Share(r, 3, torch.stack).of(x, 1) for r in range(3)]
    assert torch.equal(torch.cat(parts, 1), x) and {p.shape for p in parts} == {(2, 2, 2)}
    with pytest.raises(ValueError, match="a batch of 6 for 4 processes"):
        Share(0, 4, torch.stack).of(x, 1)


# ---------------------------------------------------------------------------------------------------- the neuron

SHAPES = [(3, 4, 3, 4, 4, 1), (2, 6, 2, 5, 4, 2), (4, 16, 5, 1, 1, 1), (2, 2, 3, 1, 1, 1)]
"""T, B, C, H, W, pool: an image, an odd one that is pooled, fc layers; two images make one a process."""


def neurons(ranks: Ranks, backend: str) -> list[dict[str, float]]:
    """For each of `SHAPES` the largest differences between the share and that part of the whole batch."""
    lif.forced = backend
    out = []
    for T, B, C, H, W, pool in SHAPES:
        x = 3 + 2 * torch.randn(T, B, C, H, W, dtype=torch.float64, generator=seeded(1))
        weight = torch.randn(T, B, C, H // pool, W // pool, dtype=torch.float64, generator=seeded(2))
        gains = 0.5 + torch.rand(T, C, dtype=torch.float64, generator=seeded(3))
        settings = {"leak": 0.9, "threshold": 1.0, "pool": pool}

        def run(x, weight, share, settings=settings, gains=gains, shape=(T, C)):
            layer = BNTT(*shape).double()
            layer.weight.data.copy_(gains)
            layer.share = share
            x = x.clone().requires_grad_()
            spikes, _ = layer(x, **settings)
            ((spikes * weight).sum() / x.shape[1]).backward()
            found = {"grad": x.grad, "spikes": spikes.detach(), "gain": layer.weight.grad}
            return found | {n: b.double() for n, b in layer.named_buffers()}

        part = ranks.of_a_batch
        whole, own = run(x, weight, None), run(part.of(x, 1), part.of(weight, 1), part)
        alone = run(part.of(x, 1), part.of(weight, 1), None)
        own["grad"], own["gain"] = own["grad"] / ranks.count, ranks.mean(own["gain"])
        whole |= {k: part.of(whole[k], 1) for k in ("grad", "spikes")}
        out.append({k: float((own[k] - whole[k]).abs().max()) for k in whole})
        out[-1]["without"] = float((alone["running_var"] - whole["running_var"]).abs().max())
        out[-1]["size"] = float(whole["grad"].abs().max())
    return out


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_share_has_the_spikes_gradients_and_statistics_of_the_whole_batch(backend):
    for of_rank in together(neurons, backend):
        for shape, found in zip(SHAPES, of_rank, strict=True):
            size, without = found.pop("size"), found.pop("without")
            assert size > 1e-3 and without > 1e-3  # there is something to compare, and sharing makes a difference
            assert max(found.values()) < 1e-12, (shape, found)


# -------------------------------------------------------------------------------------------------------- training


def images(n: int, seed: int) -> Split:
    """Four noisy patterns of 8 x 8 pixels."""
    patterns = torch.rand(CLASSES, 1, 8, 8, generator=seeded(5)) * 180
    noise = torch.rand(n, 1, 8, 8, generator=seeded(seed)) * 75
    labels = torch.arange(n) % CLASSES
    return Split((patterns[labels] + noise).to(torch.uint8), labels)


DATA = ImageData("patterns", images(48, 1), images(16, 2), None, CLASSES, (0.5,), (0.25,), "")


class _Double:
    """A network that computes in float64 from its input on."""

    def encode(self, *args, **kwargs):
        return super().encode(*args, **kwargs).double()


class DoubleVgg(_Double, VggBntt):
    pass


class DoubleOrdinary(_Double, vgg15.Vgg15):
    pass


class DoubleBitnet(_Double, bitnet.Bitnet):
    pass


def spiking(store=None, on="conv*", **more):
    net = DoubleVgg(
        (4, "A", 6, "A"), 12, channels=1, size=(8, 8), classes=CLASSES, steps=3, generator=seeded(0), **more
    ).double()
    place(net, {on: store or Rram(bits=2, sigma=0.12)})
    return net


def hybrid():
    held = Hybrid(Rram(bits=2, sigma=0.12), Masked(Sram(4), revivable=True))
    net, stage = spiking(held), Recover(**{"from": "vat"}, init="rram")
    begin(net, spiking().state_dict(), stage, None, seed=5)
    return net


def ordinary():
    size = {"channels": 1, "size": (8, 8), "classes": CLASSES}
    net = DoubleOrdinary((4, "A", 6, "A"), 12, **size, generator=seeded(0)).double()
    place(net, {"conv*": Rram(bits=1, quantizer="binary")})
    return net


def bits():
    size = {"channels": 1, "size": (8, 8), "classes": CLASSES}
    return DoubleBitnet((1, 2, 4), fs=0.0625, **size, steps=3, generator=seeded(0)).double()


SHORT = {"epochs": 2, "batch_size": 8, "lr": 0.05, "validation_chips": 3}
KINDS = {
    "poisson": (spiking, Train(**SHORT), {"augmentation": "crop-flip"}),
    "direct": (lambda: spiking(coding="direct"), Train(**SHORT), {}),
    "one chip": (spiking, Train(**SHORT | {"lr": 0.002}, redraw="chip", optimizer="adam"), {"chip": 3}),
    "without normalization": (lambda: spiking(norm="none", gain=8.0), Train(**SHORT), {}),
    "computed again": (lambda: spiking(checkpoint_layers=True), Train(**SHORT), {}),
    "xnor": (
        lambda: spiking(Rram(bits=1, quantizer="binary"), "conv2"),
        Train(**SHORT | {"lr": 0.01}, gradient="xnor", center=True), {},
    ),
    "pruned": (
        hybrid, Recover(**{"from": "vat"}, **SHORT, prune=Prune(group=2, lamda=0.05, threshold=0.2, fixed_from=0.5)), {}
    ),
    "dropout": (ordinary, Train(**SHORT | {"lr": 0.01}, optimizer="adam"), {}),
    "bitnet": (bits, Train(**SHORT), {}),
}  # fmt: skip


def trained(ranks: Ranks, folder: Path, kind: str, backend: str = "cpu", statistics: str = "synchronised"):
    """(best weights, rows, last gradients, last weights) of a training."""
    lif.forced = backend
    make, stage, more = KINDS[kind]
    net = make()
    settings = {
        "name": "vat", "key": "k", "seed": 1, "epochs_before": 0, "augmentation": "none",
        "resume": folder / "resume.safetensors", "progress": Progress(quiet=True), "statistics": statistics,
    }  # fmt: skip
    best, rows = train(net, DATA, stage, **settings | more, ranks=ranks)
    gradients = {n: p.grad for n, p in net.named_parameters()}
    return best, rows, gradients, net.state_dict()


def every(ranks: Ranks, folder: Path, kinds: list[tuple[str, str, str]]) -> list:
    out = []
    for i, how in enumerate(kinds):
        at = folder / str(i)
        ranks.first(lambda at=at: at.mkdir(parents=True))
        out.append(trained(ranks, at, *how))
    return out


def close(rows: list[dict], expected: list[dict]) -> bool:
    """Whether rows of metrics.csv are equal, numbers within 1e-9 of themselves."""
    numbers, wanted = ([[v for v in r.values() if v not in ("vat", "")] for r in part] for part in (rows, expected))
    return numbers == [pytest.approx(w, rel=1e-9, abs=0) for w in wanted]


def test_several_processes_train_as_one_with_the_same_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(lif, "forced", "auto")
    kinds = [(kind, "cpu", "synchronised") for kind in KINDS]
    kinds += [("poisson", "reference", "synchronised"), ("computed again", "reference", "synchronised")]
    ranks = together(every, tmp_path / "two", kinds)
    for how, *found, one in zip(kinds, *ranks, every(ALONE, tmp_path / "one", kinds), strict=True):
        assert len({row["train_loss"] for row in one[1]}) == 2  # it learns
        for of_rank in found:
            assert of_rank[1] == found[0][1], how  # all know the same
            assert close(of_rank[1], one[1]), how
            for mine, expected in zip(of_rank, one, strict=True):
                for name in expected if isinstance(expected, dict) else ():
                    difference = (mine[name].double() - expected[name].double()).abs().max()
                    assert difference <= 1e-9 * expected[name].double().abs().max(), (how, name)
            for mine, first in ((of_rank[0], found[0][0]), (of_rank[3], found[0][3])):
                assert all(torch.equal(mine[k], first[k]) for k in first), how  # bit for bit on all ranks


def test_local_statistics_train_and_are_averaged_over_the_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(lif, "forced", "auto")
    kinds = [("poisson", "cpu", "local"), ("poisson", "cpu", "synchronised"), ("poisson", "reference", "local")]
    first, second = together(every, tmp_path, kinds)
    local, synchronised, reference = first
    assert all(torch.equal(first[0][3][k], second[0][3][k]) for k in local[3])
    assert local[1] == second[0][1] and local[1][-1]["train_loss"] < local[1][0]["train_loss"]
    assert close(local[1], reference[1]) and not close(local[1], synchronised[1])
    means = [k for k in local[3] if k.endswith("running_mean")]
    assert len(means) == 3 and not any(torch.allclose(local[3][k], synchronised[3][k], rtol=1e-6) for k in means)


def averaged(ranks: Ranks, is_local: bool) -> list[torch.Tensor]:
    layer = BNTT(2, 3)
    layer.running_mean += ranks.rank
    layer.running_var *= 1 + 2 * ranks.rank
    layer.share = None if is_local else ranks.of_a_batch
    ranks.average_statistics(layer)
    return [layer.running_mean, layer.running_var]


@pytest.mark.parametrize("is_local", [True, False])
def test_averaged_statistics_are_means_over_the_processes(is_local):
    for rank, (mean, var) in enumerate(together(averaged, is_local)):
        assert (mean == (0.5 if is_local else rank)).all() and (var == (2 if is_local else 1 + 2 * rank)).all()


def test_one_process_takes_every_item_and_is_asked_nothing():
    alone = Ranks()
    assert alone.first(lambda: 3) == 3 and alone.gather([1]) == [1] and alone.share((1, 2)) == (1, 2)
    assert alone.leave(5) == 5 and alone.tells(2) and alone.one_fetches(lambda: 4) == 4
    net, one = spiking(), torch.ones(())
    assert alone.mean(one) is one and alone.losses(net, "local") == net.losses and net.bntt1.share is None
