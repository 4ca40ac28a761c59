"""The training loop: published optimizer steps, learning rate, best epoch, chips, interruption, divergence."""

import json
import math
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hwsim.config import RunError
from hwsim.data.image import ImageData, Split, normalize
from hwsim.device.store import Rram, draw, place
from hwsim.network.layer import BNTT, Conv2d, Linear
from hwsim.network.vgg_bntt import VggBntt
from hwsim.recipe.evaluate import measure
from hwsim.recipe.progress import Progress
from hwsim.recipe.randomness import generator as derived
from hwsim.recipe.settings import Train
from hwsim.recipe.train import learning_rate, train

GOLDEN = json.loads((Path(__file__).parent / "golden" / "rram_sram_network.json").read_text(encoding="utf-8"))
CLASSES = 4
STORE = Rram(bits=2, sigma=0.12)


class Untouchable:
    """Test images: whoever looks at them fails."""

    def __getattribute__(self, name):
        raise AssertionError(f"the test images were looked at: {name}")

    def __len__(self):
        raise AssertionError("the test images were counted")


def images(n: int, seed: int) -> Split:
    """Four noisy patterns of 8 x 8 pixels; image i belongs to class i mod 4."""
    patterns = torch.rand(CLASSES, 1, 8, 8, generator=torch.Generator().manual_seed(5)) * 180
    noise = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 75
    labels = torch.arange(n) % CLASSES
    return Split((patterns[labels] + noise).to(torch.uint8), labels)


DATA = ImageData("patterns", images(100, 1), images(32, 2), Untouchable(), CLASSES, (0.5,), (0.25,), "")


class Recorder(nn.Module):
    """A linear classifier that writes down what the loop gives it."""

    def __init__(self, losses_a_batch: int = 1):
        super().__init__()
        self.fc = Linear(64, CLASSES)
        nn.init.constant_(self.fc.weight, 0.01)
        self.losses_a_batch = losses_a_batch
        self.chips, self.masters, self.used, self.pictures, self.labels, self.codings = [], [], [], [], [], []
        self.judged, self.judged_chips, self.judged_codings = [], [], []

    def forward(self, x, coding=None):
        self.judged.append(x)
        self.judged_chips.append(self.fc.z)
        self.judged_codings.append(coding.get_state())
        return self.fc(x.flatten(1)[None])[0], {}

    def losses(self, x, y, coding=None):
        assert self.training
        self.chips.append(self.fc.z)
        self.pictures.append(x)
        self.labels.append(y)
        self.codings.append(coding.get_state())
        for _ in range(self.losses_a_batch):
            self.masters.append(self.fc.weight.detach().clone())
            held = self.fc.store.read(self.fc)
            self.used.append(held.detach().clone())
            yield held.sum()  # its gradient is 1 everywhere


class Interrupted(Exception):
    pass


class Interrupting(Progress):
    """Breaks off after a number of batches, or at a message that contains some text; keeps all messages."""

    def __init__(self, after: int | None = None, at: str | None = None):
        super().__init__(quiet=True)
        self.left, self.at, self.said = after, at, []

    def say(self, text):
        self.said.append(text)
        if self.at is not None and self.at in text:
            raise Interrupted

    @contextmanager
    def task(self, title, total, unit="images"):
        def advance(n, text=""):
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise Interrupted

        yield advance


def spiking() -> VggBntt:
    net = VggBntt(
        (4, "A", 6, "A"), 12, channels=1, size=(8, 8), classes=CLASSES, steps=3,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    place(net, {"conv*": STORE})
    return net


def recorder(losses_a_batch: int = 1) -> Recorder:
    net = Recorder(losses_a_batch)
    place(net, {"fc": STORE})
    return net


def go(net, folder: Path, stage: Train | None = None, **changes):
    """Train on the patterns; returns (best weights, rows)."""
    settings = {
        "name": "vat", "key": "k", "seed": 1, "epochs_before": 0, "augmentation": "none",
        "resume": folder / "resume.safetensors", "progress": Progress(quiet=True),
    }  # fmt: skip
    data = changes.pop("data", DATA)
    return train(net, data, stage or Train(epochs=4, batch_size=16), **settings | changes)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ------------------------------------------------------------------------------------------------ published numbers


def test_three_optimizer_steps_match_golden(backend):
    golden = GOLDEN["train_step_vat"]
    conv, bntt, fc = Conv2d(2, 3), BNTT(2, 3), Linear(12, 4)
    conv.weight.data, fc.weight.data = torch.tensor(golden["W0"]), torch.tensor(golden["fc0"])
    conv.store = Rram(bits=2, quantizer="xnor", sigma=0.12542, clamp="signed")
    parameters = [conv.weight, fc.weight, bntt.weight]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)
    close = {"rtol": 1e-5, "atol": 1e-6}
    for x, y, z, expected in zip(golden["X"], golden["Y"], golden["z"], golden["steps"], strict=True):
        conv.z = torch.tensor(z)
        torch.testing.assert_close(conv.store.read(conv).detach(), torch.tensor(expected["used_W"]), **close)
        s, _ = bntt(conv(torch.tensor(x, dtype=torch.float32), 1), leak=0.95, threshold=1.0, pool=2)
        logits = fc(s.flatten(2)).mean(0)
        torch.testing.assert_close(logits, torch.tensor(expected["logits"]), **close)
        loss = F.cross_entropy(logits, torch.tensor(y))
        assert loss.item() == pytest.approx(expected["loss"], abs=1e-6)
        optimizer.zero_grad()
        loss.backward()
        torch.testing.assert_close(conv.weight.grad, torch.tensor(expected["grad_W_ce"]), **close)
        optimizer.step()
        for p, after in zip(parameters, ("W_after", "fc_after", "gamma_after"), strict=True):
            torch.testing.assert_close(p.detach(), torch.tensor(expected[after]), **close)


@pytest.mark.parametrize("epochs, drops", [(int(e), d) for e, d in GOLDEN["lr_drops"]["cases"].items()])
def test_the_equality_rule_drops_where_the_reference_does(epochs, drops):
    stage = Train(epochs=epochs, lr=0.1, drop_rule="equality")
    # A drop after epoch e acts from epoch e + 1.
    for epoch in range(epochs + 1):
        assert learning_rate(stage, epoch) == 0.1 * 0.1 ** sum(e < epoch for e in drops)


@pytest.mark.parametrize("epochs", [*range(1, 31), 90, 170, 180, 200])
def test_the_crossing_rule_drops_in_the_first_epoch_past_each_fraction(epochs):
    stage = Train(epochs=epochs, lr=0.1)
    drops = [math.floor(Fraction(tenths, 10) * epochs) for tenths in (5, 7, 9)]
    for epoch in range(epochs + 2):
        assert learning_rate(stage, epoch) == 0.1 * 0.1 ** sum(e < epoch for e in drops)
    assert learning_rate(stage, epochs + 1) == 0.1 * 0.1**3  # no drop is lost


def test_the_crossing_rule_drops_on_time_where_the_product_is_rounded_up():
    assert 0.55 * 100 > 55
    assert learning_rate(Train(epochs=100, lr=1.0, drop_at=[0.55]), 56) == 0.1


@pytest.mark.parametrize("epochs, first_lower", [(5, [3, 4]), (25, [13, 18, 23]), (90, [46, 64, 82])])
def test_the_crossing_rule_keeps_drops_that_equality_loses(epochs, first_lower):
    stage = Train(epochs=epochs, lr=1.0)
    rates = [learning_rate(stage, e) for e in range(epochs)]
    assert [e for e in range(1, epochs) if rates[e] < rates[e - 1]] == first_lower
    lossy = Train(epochs=epochs, lr=1.0, drop_rule="equality")
    kept = [learning_rate(lossy, e) for e in range(epochs)]
    assert len(set(kept)) < len(set(rates))


# ---------------------------------------------------------------------------------------------------- what it learns


def test_the_loss_falls_and_the_network_learns(tmp_path):
    _, rows = go(spiking(), tmp_path, Train(epochs=6, batch_size=16))
    losses = [r["train_loss"] for r in rows]
    assert losses[-1] < 0.75 * losses[0]
    assert rows[-1]["validation_accuracy"] > 0.5  # chance is 0.25
    assert [r["epoch"] for r in rows] == [1, 2, 3, 4, 5, 6]


class Scripted(Recorder):
    """Its weight falls by 1 an epoch, and tells which accuracy and how sure the judged network is."""

    script = [("all", 0.1), ("three quarters", 9.0), ("all", 0.2), ("all", 0.2), ("three quarters", 9.0)]

    def forward(self, x, coding=None):
        epoch = round(0.01 - float(self.fc.weight.detach().mean()))
        right, sure = self.script[epoch - 1]
        label = torch.arange(len(x)) % CLASSES
        if right == "all":
            return sure * F.one_hot(label, CLASSES).float(), {}
        wrong = label == 0
        return torch.where(wrong, 0.01, sure)[:, None] * F.one_hot(label + wrong.long(), CLASSES), {}


def test_the_best_epoch_is_the_most_accurate_of_these_the_one_of_least_loss_and_of_these_the_first(tmp_path):
    net = Scripted()
    stage = Train(epochs=5, batch_size=100, lr=1.0, momentum=0.0, weight_decay=0.0, drop_at=[], validation_chips=1)
    best, rows = go(net, tmp_path, stage)
    assert [r["validation_accuracy"] for r in rows] == [1, 0.75, 1, 1, 0.75]
    losses = [r["validation_loss"] for r in rows]
    assert losses[1] < losses[2] == losses[3] < losses[0]
    assert [r["is_best"] for r in rows] == [1, 0, 1, 0, 0]
    assert [r["eligible"] for r in rows] == [1] * 5
    assert float(best["fc.weight"].mean()) == pytest.approx(0.01 - 3)
    assert float(net.fc.weight.detach().mean()) == pytest.approx(0.01 - 5)


def test_the_weights_given_back_are_those_that_were_judged(tmp_path):
    net = spiking()
    best, rows = go(net, tmp_path, Train(epochs=5, batch_size=16, lr=0.5, drop_at=[], validation_chips=2))
    (row,) = [r for r in rows if r["is_best"]][-1:]
    net.load_state_dict(best)
    results = []
    for chip in range(2):
        draw(net, derived(1, "chips", "validation", chip))
        coding = derived(1, "batches", "validation", chip)
        results.append(measure(net, DATA.validation, DATA, coding, batch_size=32))
    assert sum(r.accuracy for r in results) / 2 == row["validation_accuracy"]
    assert sum(r.loss for r in results) / 2 == pytest.approx(row["validation_loss"], rel=1e-12)


def test_the_test_images_are_never_looked_at(tmp_path):
    with pytest.raises(AssertionError, match="looked at"):
        DATA.test.images_NCHW  # noqa: B018
    with pytest.raises(AssertionError, match="counted"):
        len(DATA.test)
    go(spiking(), tmp_path, Train(epochs=2, batch_size=16, redraw="chip"), augmentation="crop-flip")


def test_a_cosine_begins_at_the_learning_rate_and_would_end_at_zero():
    stage = Train(epochs=8, lr=0.3, schedule="cosine", drop_at=[0.5])
    rates = [learning_rate(stage, e) for e in range(9)]
    assert rates[0] == 0.3 and rates[4] == pytest.approx(0.15) and rates[8] == pytest.approx(0, abs=1e-15)
    assert rates == sorted(rates, reverse=True)
    assert rates[2] == pytest.approx(0.3 * math.cos(math.pi / 8) ** 2)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_steps_as_its_equations_say(decay, tmp_path):
    """The recorder's loss has gradient 1 everywhere, to which the decay adds its share of the weight."""
    stage = Train(
        epochs=2, batch_size=16, lr=0.02, optimizer="adam", betas=[0.8, 0.95], weight_decay=decay, drop_at=[0.5]
    )  # fmt: skip
    net = recorder()
    go(net, tmp_path, stage)
    w = net.masters[0].double()
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t in range(1, 12):
        g = 1 + decay * w
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        lr = learning_rate(stage, (t - 1) // 6)
        w = w - lr * (m / (1 - 0.8**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
        torch.testing.assert_close(net.masters[t].double(), w, rtol=1e-4, atol=1e-6)


def test_the_learning_rate_of_the_table_is_the_one_that_steps(tmp_path):
    stage = Train(epochs=10, batch_size=50, lr=0.01, momentum=0.0, weight_decay=0.0)
    net = recorder()
    _, rows = go(net, tmp_path, stage)
    assert [r["lr"] for r in rows] == [learning_rate(stage, e) for e in range(10)]
    after = [*net.masters[1:], net.fc.weight.detach()]
    moved = [float((a - b).mean()) for a, b in zip(net.masters, after, strict=True)]
    assert moved == pytest.approx([r["lr"] for r in rows for _ in range(2)], rel=1e-3)


def test_momentum_and_weight_decay_are_those_of_sgd(tmp_path):
    net = recorder()
    go(net, tmp_path, Train(epochs=1, batch_size=25, lr=0.1, momentum=0.8, weight_decay=0.5))
    w, velocity = net.masters[0], 0.0
    for found in [*net.masters[1:], net.fc.weight.detach()]:
        velocity = 0.8 * velocity + 1.0 + 0.5 * w
        w = w - 0.1 * velocity
        torch.testing.assert_close(found, w)


def test_every_loss_of_a_batch_is_stepped_for(tmp_path):
    # Online local learning gives a loss at every time step.
    net = recorder(losses_a_batch=3)
    go(net, tmp_path, Train(epochs=1, batch_size=50, lr=0.01, momentum=0.0, weight_decay=0.0))
    assert len(net.masters) == 6
    assert float((net.masters[0] - net.fc.weight.detach()).mean()) == pytest.approx(0.06, rel=1e-4)


# ------------------------------------------------------------------------------------------------------------- chips


def test_a_chip_for_every_batch_is_a_new_one(tmp_path):
    net = recorder()
    go(net, tmp_path, Train(epochs=2, batch_size=25, validation_chips=3))
    assert len(net.used) == 8
    for master, z, used in zip(net.masters, net.chips, net.used, strict=True):
        assert torch.equal(used, STORE.held(master, z))
        assert not torch.equal(used, STORE.held(master))
    distinct = [z.numpy().tobytes() for z in net.chips]
    assert len(set(distinct)) == 8


@pytest.mark.parametrize("chip", [0, 3])
def test_one_chip_for_the_stage_is_the_one_that_evaluation_calls_by_its_number(tmp_path, chip):
    net = recorder()
    stage = Train(epochs=3, batch_size=25, redraw="chip", validation_chips=2)
    go(net, tmp_path, stage, **({"chip": chip} if chip else {}))
    same_chip = recorder()
    draw(same_chip, derived(1, "chips", chip))
    z = same_chip.fc.z
    assert len(net.chips) == 12
    assert all(torch.equal(found, z) for found in net.chips)
    assert all(torch.equal(u, STORE.held(m, z)) for u, m in zip(net.used, net.masters, strict=True))
    # It is judged on that chip too.
    assert len(net.judged_chips) == 6 and all(torch.equal(found, z) for found in net.judged_chips)


def test_on_one_chip_validation_has_as_many_spike_codings_as_it_has_chips_otherwise(tmp_path):
    nets = [recorder(), recorder()]
    for net, redraw in zip(nets, ("chip", "batch"), strict=True):
        (tmp_path / redraw).mkdir()
        go(net, tmp_path / redraw, Train(epochs=1, batch_size=25, redraw=redraw, validation_chips=3))
        net.judged_codings = [c.numpy().tobytes() for c in net.judged_codings]
    assert len(set(nets[0].judged_codings)) == 3
    assert nets[0].judged_codings == nets[1].judged_codings


def test_validation_judges_the_same_chips_after_every_epoch_and_training_sees_none_of_them(tmp_path):
    net = recorder()
    go(net, tmp_path, Train(epochs=2, batch_size=25, validation_chips=3))
    judged = [z.numpy().tobytes() for z in net.judged_chips]
    assert len(judged) == 6
    assert judged[:3] == judged[3:]
    assert len(set(judged)) == 3
    assert not set(judged) & {z.numpy().tobytes() for z in net.chips}


def test_after_training_no_chip_is_left_and_the_weights_are_masters(tmp_path):
    net = recorder()
    best, _ = go(net, tmp_path, Train(epochs=1, batch_size=25))
    assert net.fc.z is None
    assert list(best) == ["fc.weight"]
    assert torch.equal(best["fc.weight"], net.fc.weight)


# ----------------------------------------------------------------------------------------------------------- batches


def pixels(batches: list[torch.Tensor]) -> list[bytes]:
    return [x.numpy().tobytes() for batch in batches for x in batch]


def test_an_epoch_takes_each_image_at_most_once_in_an_order_of_its_own(tmp_path):
    net = recorder()
    go(net, tmp_path, Train(epochs=2, batch_size=16))
    own = pixels([normalize(DATA.train.images_NCHW, DATA.mean, DATA.std)])
    first, second = pixels(net.pictures[:6]), pixels(net.pictures[6:])
    for epoch in (first, second):
        assert len(epoch) == len(set(epoch)) == 96  # the incomplete seventh batch is left out
        assert set(epoch) <= set(own)
    assert first != second
    label_of = dict(zip(own, DATA.train.labels_N.tolist(), strict=True))
    assert [label_of[x] for x in first] == torch.cat(net.labels[:6]).tolist()


def test_a_continued_network_does_not_see_the_same_batches_again(tmp_path):
    nets = [recorder() for _ in range(3)]
    for i, (net, changes) in enumerate(zip(nets, [{}, {"epochs_before": 1}, {"seed": 2}], strict=True)):
        folder = tmp_path / str(i)
        folder.mkdir()
        go(net, folder, Train(epochs=2, batch_size=16), **changes)
    whole, later, other = (pixels(net.pictures) for net in nets)
    assert later[:96] == whole[96:]
    assert later[96:] not in (whole[:96], whole[96:])
    assert other != whole
    codings = [{c.numpy().tobytes() for c in net.codings} for net in nets]
    assert len(codings[0]) == 2  # a generator of its own for each epoch
    assert len(codings[0] & codings[1]) == 1


def test_training_images_are_augmented_and_validation_images_are_not(tmp_path):
    net = recorder()
    go(net, tmp_path, Train(epochs=1, batch_size=16, validation_chips=1), augmentation="crop")
    assert pixels(net.judged) == pixels([normalize(DATA.validation.images_NCHW, DATA.mean, DATA.std)])
    own = set(pixels([normalize(DATA.train.images_NCHW, DATA.mean, DATA.std)]))
    unmoved = sum(x in own for x in pixels(net.pictures))
    assert 0 < unmoved < 40  # one of nine places is the old one


def test_images_that_fill_no_batch_are_refused(tmp_path):
    with pytest.raises(RunError, match="stage vat: 100 training images fill no batch of 128; lower batch_size"):
        go(recorder(), tmp_path, Train(epochs=1))


# ------------------------------------------------------------------------------------------------------ interruption

STAGE = Train(epochs=4, batch_size=16, drop_at=[0.5], validation_chips=2)


@pytest.fixture(
    scope="module",
    params=[{"redraw": "batch"}, {"redraw": "chip"}, {"optimizer": "adam", "schedule": "cosine", "lr": 0.01}],
    ids=["batch", "chip", "adam"],
)
def uninterrupted(request, tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    stage = STAGE.model_copy(update=request.param)
    best, rows = go(spiking(), folder, stage, augmentation="crop")
    return stage, best, rows, (folder / "resume.safetensors").read_bytes()


@pytest.mark.parametrize("where", [{"after": 6 * e + within} for e in (1, 2, 3) for within in (0, 4)]
                                  + [{"at": f"epoch {e}/4"} for e in (1, 4)], ids=str)  # fmt: skip
def test_an_interrupted_stage_ends_with_the_same_bytes(where, uninterrupted, tmp_path):
    stage, best, rows, file = uninterrupted
    with pytest.raises(Interrupted):
        go(spiking(), tmp_path, stage, augmentation="crop", progress=Interrupting(**where))
    again = Interrupting()
    net = spiking()
    found, found_rows = go(net, tmp_path, stage, augmentation="crop", progress=again)
    finished = where["after"] // 6 if "after" in where else int(where["at"][6]) - 1
    assert [s for s in again.said if "resuming" in s] == [f"vat: resuming after epoch {finished} of 4"] * bool(finished)
    assert found_rows == rows
    assert same(found, best)
    assert (tmp_path / "resume.safetensors").read_bytes() == file


def test_a_finished_stage_is_not_trained_again(tmp_path):
    net = recorder()
    best, rows = go(net, tmp_path, Train(epochs=2, batch_size=25))
    again = recorder()
    found, found_rows = go(again, tmp_path, Train(epochs=2, batch_size=25))
    assert again.used == []
    assert found_rows == rows
    assert same(found, best)


def test_a_state_of_other_settings_is_refused(tmp_path):
    go(recorder(), tmp_path, Train(epochs=1, batch_size=25))
    with pytest.raises(RunError, match="resume.safetensors: belongs to other settings; delete"):
        go(recorder(), tmp_path, Train(epochs=1, batch_size=25), key="other")


# -------------------------------------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("layer", ["conv1", "conv2", "bntt1", "fc1", "fc2"])
def test_a_weight_that_is_no_number_is_named(layer, value, tmp_path):
    # In a convolution the loss alone would not tell: a neuron whose current is nan falls silent.
    net = spiking()
    with torch.no_grad():
        net.get_submodule(layer).weight.view(-1)[1] = value
    with pytest.raises(RunError, match=rf"stage vat: loss is .* at epoch 1, step 1; first non-finite: {layer}.weight "):
        go(net, tmp_path)


def test_a_learning_rate_that_explodes_is_named(tmp_path):
    with pytest.raises(RunError) as caught:
        go(spiking(), tmp_path, Train(epochs=1, batch_size=16, lr=1e9))
    message = str(caught.value)
    assert "\n" not in message
    assert "at epoch 1, step 2; largest value" in message
    assert "in fc2.weight. Likely cause: lr 1e+09 may be too high" in message


def test_a_large_variation_is_named_as_a_cause(tmp_path):
    with pytest.raises(RunError, match="variation_scale 4 makes single cells dominate; try clamp: magnitude"):
        go(spiking(), tmp_path, Train(epochs=1, batch_size=16, lr=1e9, variation_scale=4.0))


def test_a_gradient_that_is_no_number_is_named_after_the_step_that_it_spoils(tmp_path):
    class Spoiled(Recorder):
        def losses(self, x, y, coding=None):
            for loss in super().losses(x, y, coding):
                yield loss + 0 * torch.sqrt(0 * self.fc.weight.sum())  # value 0, gradient 0 * inf

    with pytest.raises(RunError, match=r"at epoch 1, step 2; first non-finite: fc.weight \(value\)"):
        go(Spoiled(), tmp_path)
    with pytest.raises(RunError, match=r"at epoch 1, step 1; first non-finite: fc.weight \(value\)"):
        go(Spoiled(), tmp_path, Train(epochs=1, batch_size=100))  # the last batch counts as well
