"""The training step: nothing in it waits for the GPU, and captured it does what it does eagerly, bit for bit.

Without a GPU, graphs are recordings of operations (`recorded.py`); with one, the same tests run on CUDA graphs.
"""

from pathlib import Path

import pytest
import torch
from recorded import Recorder, Unstopped

from hwsim.data.augment import augment
from hwsim.data.image import normalize
from hwsim.device.hybrid import Hybrid, Masked, Sram
from hwsim.device.store import Rram, draw, place
from hwsim.network import bitnet, lif, vgg15
from hwsim.network.vgg_bntt import build
from hwsim.recipe import step as steps
from hwsim.recipe.prune import hybrid_layers, refresh_masks
from hwsim.recipe.settings import Prune, Recipe, Train
from hwsim.recipe.step import WARM_UP, Captured, Eager, make_optimizer, set_rate, training_step, why_eager
from hwsim.recipe.xnor import center_weights

BATCH, SIZE, CLASSES = 4, 8, 3
PRUNE = Prune(group=2, threshold=0.3)
RRAM = Rram(bits=2, sigma=0.1)


def vgg(**settings):
    generator = torch.Generator().manual_seed(0)
    net = build(
        "vgg5", width=0.125, channels=2, size=(SIZE, SIZE), classes=CLASSES, steps=2, generator=generator, **settings
    )
    place(net, {"conv*": RRAM})
    return net


def hybrid():
    """A network of which the SRAM part is pruned while it learns."""
    net = vgg()
    place(net, {"conv*": Hybrid(RRAM, Masked(Sram(bits=4), revivable=True))})
    for name in ("conv1", "conv2", "conv3"):
        layer = net.get_submodule(name)
        layer.rram = layer.weight.detach().clone().flip(0)
    return net


NETS = {
    "poisson": vgg,
    "direct": lambda: vgg(coding="direct"),
    "without normalization": lambda: vgg(norm="none", threshold=0.3),
    "checkpointed": lambda: vgg(checkpoint_layers=True),
    "pruned": hybrid,
}


def ordinary():
    net = vgg15.build("vgg15", width=0.05, channels=2, size=(32, 32), classes=CLASSES)
    place(net, {"conv*": Rram(bits=1, quantizer="binary")})
    return net


def counting():
    return bitnet.build(
        "bitnet6", width=0.05, channels=2, size=(SIZE, SIZE), classes=CLASSES, steps=3,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip


@pytest.fixture
def plain_torch(monkeypatch):
    """Everything by operations of torch, so that they can be watched."""
    monkeypatch.setattr(lif, "forced", "reference")


def batch(number: int, device="cpu", size: int = SIZE):
    generator = torch.Generator().manual_seed(100 + number)
    images = torch.randint(256, (BATCH, 2, size, size), generator=generator, dtype=torch.uint8)
    return images.to(device), torch.randint(CLASSES, (BATCH,), generator=generator).to(device)


# ------------------------------------------------------------------------------------------------ nothing waits


@pytest.mark.parametrize(
    ("make", "gradient", "size"),
    [(make, "straight-through", SIZE) for make in NETS.values()]
    + [(vgg, "xnor", SIZE), (ordinary, "xnor-imagenet", 32), (counting, "straight-through", SIZE)],
    ids=[*NETS, "xnor", "ordinary", "bitnet"],
)
def test_nothing_between_two_batches_waits_for_the_gpu(make, gradient, size, plain_torch):
    net = make()
    eager = Eager(net, net.losses, make_optimizer(list(net.parameters()), Train()), gradient)
    chips, coding, picture = (torch.Generator().manual_seed(n) for n in range(3))
    images, y = batch(0, size=size)
    prune = PRUNE if hybrid_layers(net) else None
    before = [p.detach().clone() for p in net.parameters()]
    for _ in range(2):
        x = normalize(augment(images, "crop-flip", picture), (0.5, 0.5), (0.25, 0.25))
        with Unstopped():
            augment(images, "crop-flip", picture)
            draw(net, chips)
            if prune:
                refresh_masks(net, PRUNE.threshold, by=PRUNE.by, group=PRUNE.group, first=PRUNE.first)
            if gradient != "straight-through":
                center_weights(net)
            loss = eager(x, y, coding, prune)
            total = torch.zeros((), dtype=torch.float64)
            total += loss
    assert sum(not torch.equal(p, b) for p, b in zip(net.parameters(), before, strict=True)) >= 3


@pytest.mark.parametrize(
    "waiting",
    [
        lambda x: x.sum().item(), lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: bool((x > 0).any()),
        lambda x: torch.tensor([1.0, 2.0]), lambda x: float(x.max()),
    ],
    ids=["item", "nonzero", "mask", "bool", "from the host", "float"],
)  # fmt: skip
def test_the_watch_sees_what_waits(waiting):
    with Unstopped(), pytest.raises(RuntimeError, match="not permitted"):
        waiting(torch.randn(3))


# ------------------------------------------------------------------------------------------------ captured = eager


def state(net, optimizer) -> list[torch.Tensor]:
    """Everything that a step changes."""
    of_optimizer = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    return [*net.parameters(), *(b for b in net.buffers() if b.dtype != torch.bool), *of_optimizer]


def learned(make, stage: Train, graph=None, device="cpu", epochs=2, each=WARM_UP + 2, losses=None, before_step=None):
    """(losses, weights and statistics, the captured step or None) of some training like `train`'s."""
    net = make().to(device)
    net.train()
    given = [torch.tensor(stage.lr, device=device)]
    if stage.optimizer == "adam":
        optimizer = torch.optim.Adam(net.parameters(), given[0], weight_decay=1e-4, fused=True)
    else:
        optimizer = torch.optim.SGD(net.parameters(), given[0], 0.9, weight_decay=1e-4, fused=True)
    eager = Eager(net, losses(net) if losses else net.losses, optimizer, stage.gradient)
    said = []
    learn = eager
    if graph is not None:
        changes = lambda: state(net, optimizer)  # noqa: E731
        learn = Captured(eager, said.append, graph(changes))
    seen, looked = [], []
    for epoch in range(epochs):
        chips, coding = (torch.Generator(device).manual_seed(10 * epoch + n) for n in range(2))
        set_rate(optimizer, stage.lr / (1 + epoch), 1e-4 if epoch < 2 else 0.0)
        for number in range(each):
            draw(net, chips)
            prune = PRUNE if hybrid_layers(net) else None
            if prune:
                refresh_masks(net, PRUNE.threshold, by=PRUNE.by, group=PRUNE.group, first=PRUNE.first)
            images, y = batch(10 * epoch + number, device)
            x = images.float() / 64 - 2
            if before_step:
                before_step(epoch, number)
            look = (lambda loss: looked.append(loss.item())) if number % 2 else None
            seen.append(learn(x, y, coding, prune, look).item())
        draw(net, torch.Generator(device).manual_seed(99))  # as a validation does
    return (seen, looked), [t.detach().clone() for t in state(net, optimizer)], (learn, said)


def agree(a, b) -> None:
    assert a[0] == b[0]
    assert len(a[1]) == len(b[1]) and all(torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))


@pytest.mark.parametrize(
    ("make", "optimizer"),
    [*((make, "sgd") for make in NETS.values()), (vgg, "adam")],
    ids=[*NETS, "adam"],
)
def test_a_captured_step_is_the_eager_one_bit_for_bit(make, optimizer, plain_torch):
    stage = Train(optimizer=optimizer, lr=0.05 if optimizer == "sgd" else 0.005)
    recorders = []

    def graph(changes):
        recorders.append(Recorder(changes))
        return recorders[-1]

    eager, captured = learned(make, stage), learned(make, stage, graph)
    agree(eager, captured)
    assert len(set(eager[0][0])) == len(eager[0][0])  # every batch is another
    (recorder,) = recorders
    assert (recorder.captures, recorder.eager, recorder.replays) == (1, WARM_UP, 2 * (WARM_UP + 2) - WARM_UP)
    assert captured[2][1] == []


def test_another_weight_decay_or_other_cells_make_another_graph(plain_torch):
    recorders = []

    def graph(changes):
        recorders.append(Recorder(changes))
        return recorders[-1]

    stage = Train(lr=0.05)
    agree(learned(vgg, stage, epochs=3), learned(vgg, stage, graph, epochs=3))
    assert (recorders[0].captures, recorders[0].eager) == (2, 2 * WARM_UP)


def test_adam_is_told_of_the_capture_and_of_nothing_else(plain_torch):
    """Capturing, it refuses without `capturable`; eagerly it warns with it."""
    net, told = vgg(), []
    optimizer = torch.optim.Adam(net.parameters(), torch.tensor(0.01), fused=True)

    class Watching(Recorder):
        def aside(self, work):
            told.append(optimizer.param_groups[0]["capturable"])
            super().aside(work)

        def capture(self, work, generator):
            told.append(optimizer.param_groups[0]["capturable"])
            super().capture(work, generator)

    learn = Captured(
        Eager(net, net.losses, optimizer, "straight-through"), pytest.fail, Watching(lambda: state(net, optimizer))
    )
    draw(net, torch.Generator().manual_seed(0))
    images, y = batch(0)
    for _ in range(WARM_UP + 1):
        learn(images.float() / 64 - 2, y, torch.Generator())
    assert told == [False] * WARM_UP + [True] and optimizer.param_groups[0]["capturable"] is False


def test_rewritten_gradients_are_captured_too(plain_torch):
    stage = Train(lr=0.05, gradient="xnor")
    agree(learned(vgg, stage), learned(vgg, stage, Recorder))


def test_where_a_step_cannot_be_captured_it_goes_on_eagerly_and_says_why(plain_torch):
    def waiting(net):
        def losses(x, y, coding):
            for loss in net.losses(x, y, coding):
                assert loss.item() >= 0  # waits
                yield loss

        return losses

    stage = Train(lr=0.05)
    failed = learned(vgg, stage, Recorder, losses=waiting)
    agree(learned(vgg, stage), failed)
    assert len(failed[2][1]) == 1
    assert failed[2][1][0].startswith("steps run one by one: no CUDA graph could be captured (operation not permitted")


def test_the_recorder_notices_a_batch_that_is_not_copied(plain_torch, monkeypatch):
    """The recording is strict: without the copies that graphs need, captured steps differ from eager ones."""
    monkeypatch.setattr(Captured, "_fill", lambda self, x, y: None)
    eager, captured = learned(vgg, Train(lr=0.05)), learned(vgg, Train(lr=0.05), Recorder)
    assert eager[0][0][: WARM_UP + 1] == captured[0][0][: WARM_UP + 1]
    assert eager[0][0][WARM_UP + 1 :] != captured[0][0][WARM_UP + 1 :]


# ------------------------------------------------------------------------------------------------ the choice


@pytest.mark.parametrize(
    ("wanted", "device", "processes", "reason"),
    [
        ("auto", "cpu", 1, "there are no CUDA graphs on 'cpu'"),
        ("auto", "cuda", 1, None),
        ("off", "cuda", 1, "cuda_graphs is off"),
        ("auto", "cuda", 2, "what 2 processes send each other is not captured"),
    ],
)
def test_why_steps_run_one_by_one(wanted, device, processes, reason):
    assert why_eager(wanted, torch.device(device), processes) == reason


def test_on_the_cpu_steps_are_eager_with_the_plain_optimizer_and_nothing_is_said():
    net, said = vgg(), []
    optimizer = make_optimizer(list(net.parameters()), Train(lr=0.3))
    learn = training_step(net, net.losses, optimizer, Train(), wanted="auto", processes=1, say=said.append)
    assert isinstance(learn, Eager) and said == []
    assert optimizer.defaults["lr"] == 0.3 and not optimizer.defaults["fused"]


def test_a_learning_rate_on_the_device_stays_the_same_tensor():
    lr = torch.tensor(0.5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr)
    set_rate(optimizer, 0.25, 0.0)
    assert optimizer.param_groups[0]["lr"] is lr and lr.item() == 0.25
    assert optimizer.param_groups[0]["weight_decay"] == 0.0


def test_recipes_capture_where_they_can_by_default():
    assert Recipe.model_fields["cuda_graphs"].default == "auto"


# ------------------------------------------------------------------------------------------------ CUDA

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("make", NETS.values(), ids=NETS)
def test_a_cuda_graph_gives_the_eager_steps_bit_for_bit(make, optimizer):
    stage = Train(optimizer=optimizer, lr=0.05 if optimizer == "sgd" else 0.005)
    eager = learned(make, stage, device="cuda", epochs=3)
    captured = learned(make, stage, lambda changes: steps.CudaGraph(), device="cuda", epochs=3)
    agree(eager, captured)
    assert captured[2][1] == [], "the graph could not be captured"
    assert captured[2][0]._is_captured


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "captured"])
def test_a_step_on_cuda_waits_for_nothing(precision, graphs):
    net = vgg(precision=precision).cuda()
    optimizer = make_optimizer(list(net.parameters()), Train())
    learn = training_step(
        net, net.losses, optimizer, Train(), wanted="auto" if graphs else "off", processes=1, say=lambda text: None
    )
    chips, coding, picture = (torch.Generator("cuda").manual_seed(n) for n in range(3))
    images, y = batch(0, "cuda")
    total = torch.zeros((), dtype=torch.float64, device="cuda")

    def one():
        draw(net, chips)
        x = normalize(augment(images, "crop-flip", picture), (0.5, 0.5), (0.25, 0.25))
        return learn(x, y, coding)

    for _ in range(WARM_UP + 1):  # compiles, captures
        total += one()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            total += one()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert total.isfinite()


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_training_on_cuda_is_the_same_captured_and_not(precision, tmp_path: Path):
    import test_train

    found = []
    for graphs in ("auto", "off"):
        net = test_train.spiking().cuda()
        for layer in net.modules():
            layer.precision = precision
        best, rows = test_train.go(net, tmp_path / graphs, Train(epochs=2, batch_size=16), cuda_graphs=graphs)
        found.append((best, [{k: v for k, v in row.items()} for row in rows]))
    assert found[0][1] == found[1][1] and test_train.same(found[0][0], found[1][0])
