"""One training loop for every network family: for each loss of a batch, backward and step.

Before each batch a chip is drawn (or one chip for the whole stage); the gradient passes straight through the store to
the master weights. After each epoch the validation images judge the network under the stage's variation, and the best
epoch's weights are kept; the test set is never looked at. The state of every finished epoch is on disk, so an
interrupted stage goes on from there and ends with the same bytes.
"""

import math
from pathlib import Path

import torch
from torch import nn

from hwsim.config import RunError
from hwsim.data.augment import augment
from hwsim.data.image import ImageData, batches, normalize
from hwsim.device.store import clear, draw
from hwsim.recipe.checkpoint import load_tensors, save_tensors
from hwsim.recipe.evaluate import measure
from hwsim.recipe.progress import Progress
from hwsim.recipe.randomness import generator
from hwsim.recipe.settings import Train

DIVERGED = 1e4
"""A cross-entropy above this is divergence: chance is log(classes)."""


def learning_rate(stage: Train, epoch: int) -> float:
    """Learning rate of a 0-based epoch: lr drop_factor^k, k = number of drops that come before it.

    crossing: the drop at fraction f of E epochs acts on every epoch e > f E. equality: on every epoch behind one that
    equals f E in floating point, as in the reference, which loses a drop where the product is no whole number (trap
    B15). Where all products are whole numbers the two agree.

    >>> stage = Train(epochs=10, lr=0.1)
    >>> [round(learning_rate(stage, e), 5) for e in (5, 6, 8, 9)]
    [0.1, 0.01, 0.001, 0.001]
    """
    if stage.drop_rule == "equality":
        drops = sum(e == f * stage.epochs for e in range(epoch) for f in stage.drop_at)
    else:
        drops = sum(epoch > f * stage.epochs + 1e-9 for f in stage.drop_at)
    return stage.lr * stage.drop_factor**drops


def train(
    net: nn.Module,
    data: ImageData,
    stage: Train,
    *,
    name: str,
    key: str,
    seed: int,
    epochs_before: int,
    redraw: str,
    augmentation: str,
    resume: Path,
    progress: Progress,
) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Train `net`, whose stores are placed; returns (best weights by validation, one row of metrics an epoch).

    epochs_before: epochs that the starting network has seen, so that batches are not repeated. redraw: a fresh chip for
    every batch, or one chip for the whole stage. resume: file that keeps the state of the last finished epoch.
    Raises `RunError` if the loss or a weight stops being a number, naming layer, step and likely cause.
    """
    device = next(net.parameters()).device
    images = data.train.to(device)
    parameters = dict(net.named_parameters())
    optimizer = torch.optim.SGD(parameters.values(), stage.lr, stage.momentum, weight_decay=stage.weight_decay)
    best, rows = None, []
    if resume.exists():
        best, rows = _resume(resume, key, net, optimizer)
        progress.say(f"{name}: resuming after epoch {len(rows)} of {stage.epochs}")
    per_epoch = len(images) // stage.batch_size
    if per_epoch == 0:
        raise RunError(
            f"stage {name}: {len(images)} training images fill no batch of {stage.batch_size}; lower batch_size"
        )
    with progress.task(name, (stage.epochs - len(rows)) * per_epoch * stage.batch_size) as advance:

        def tell(images: int, text: str) -> None:
            last = f"  validation {100 * rows[-1]['validation_accuracy']:.2f} %" if rows else ""
            advance(images, text + last)

        for epoch in range(len(rows), stage.epochs):
            lr = optimizer.param_groups[0]["lr"] = learning_rate(stage, epoch)
            loss = _one_epoch(
                net, images, data, stage, optimizer, name, epoch, epochs_before + epoch, seed, redraw, augmentation,
                tell,
            )  # fmt: skip
            accuracy, validation_loss = _validate(net, data, stage, seed)
            is_best = not rows or (accuracy, -validation_loss) > max(
                (r["validation_accuracy"], -r["validation_loss"]) for r in rows
            )
            if is_best:
                best = {k: v.detach().clone() for k, v in net.state_dict().items()}
            rows.append({
                "stage": name, "epoch": epoch + 1, "lr": lr, "train_loss": loss, "validation_loss": validation_loss,
                "validation_accuracy": accuracy, "is_best": int(is_best),
            })  # fmt: skip
            progress.say(
                f"{name}: epoch {epoch + 1}/{stage.epochs}  lr {lr:g}  loss {loss:.4f}  "
                f"validation {100 * accuracy:.2f} %{'  best' if is_best else ''}"
            )
            _save(resume, key, net, optimizer, best, rows)
    clear(net)
    return best, rows


def _one_epoch(
    net, images, data, stage, optimizer, name, epoch, global_epoch, seed, redraw, augmentation, advance
) -> float:
    net.train()
    device = images.labels_N.device
    order = generator(seed, "batches", "order", global_epoch)
    coding = generator(seed, "batches", "coding", global_epoch, device=device)
    picture = generator(seed, "batches", "augment", global_epoch, device=device)
    chips = generator(seed, "chips", "training", global_epoch if redraw == "batch" else 0, device=device)
    if redraw == "chip":
        # One fabricated array: the chip that `evaluate` calls number 0.
        draw(net, generator(seed, "chips", 0))
    total = torch.zeros((), dtype=torch.float64, device=device)
    look_every = 1 if device.type == "cpu" else 50  # looking at a loss waits for the GPU
    step = 0
    for x_uint8, y in batches(images, stage.batch_size, order, drop_last=True):
        if redraw == "batch":
            draw(net, chips)
        x = normalize(augment(x_uint8, augmentation, picture), data.mean, data.std)
        look = (step + 1) % look_every == 0
        for loss in net.losses(x, y, coding):
            if look:
                _check(net, name, epoch, step + 1, float(loss.detach()), stage)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        total += loss.detach()
        step += 1
        if look:
            advance(look_every * stage.batch_size, f"loss {float(loss.detach()):.3f}")
    mean = float(total) / step
    _check(net, name, epoch, step, mean, stage)
    return mean


def _validate(net, data: ImageData, stage: Train, seed: int) -> tuple[float, float]:
    """Mean validation accuracy and loss over the stage's validation chips (the same chips after every epoch)."""
    device = next(net.parameters()).device
    results = []
    for chip in range(stage.validation_chips):
        draw(net, generator(seed, "chips", "validation", chip))
        coding = generator(seed, "batches", "validation", chip, device=device)
        results.append(measure(net, data.validation, data, coding, batch_size=2 * stage.batch_size))
    n = len(results)
    return math.fsum(r.accuracy for r in results) / n, math.fsum(r.loss for r in results) / n


def _check(net: nn.Module, name: str, epoch: int, step: int, loss: float, stage: Train) -> None:
    """Raise `RunError` if the loss has diverged, or a weight: a neuron whose current is nan only falls silent."""
    finite = torch.stack([torch.isfinite(p).all() for p in net.parameters()]).all()
    if abs(loss) < DIVERGED and bool(finite):
        return
    named = list(net.named_parameters())
    tensors = [(f"{n} (value)", p) for n, p in named] + [(f"{n} (gradient)", p.grad) for n, p in named]
    broken = [what for what, t in tensors if t is not None and not bool(torch.isfinite(t).all())]
    layer, largest = max(((n, float(p.detach().abs().max())) for n, p in named), key=lambda x: x[1])
    causes = [f"lr {learning_rate(stage, epoch):g} may be too high"]
    if stage.variation_scale > 1:
        causes.append(f"variation_scale {stage.variation_scale:g} makes single cells dominate; try clamp: magnitude")
    first = f"first non-finite: {broken[0]}" if broken else f"largest value: {largest:.3g} in {layer}"
    raise RunError(
        f"stage {name}: loss is {loss:g} at epoch {epoch + 1}, step {step}; {first}. Likely cause: {'; '.join(causes)}"
    )


def _save(path: Path, key: str, net: nn.Module, optimizer, best: dict, rows: list[dict]) -> None:
    names = {p: n for n, p in net.named_parameters()}
    tensors = {f"net.{k}": v for k, v in net.state_dict().items()} | {f"best.{k}": v for k, v in best.items()}
    for parameter, state in optimizer.state.items():
        if state.get("momentum_buffer") is not None:
            tensors[f"momentum.{names[parameter]}"] = state["momentum_buffer"]
    save_tensors(path, tensors, {"key": key, "rows": rows})


def _resume(path: Path, key: str, net: nn.Module, optimizer) -> tuple[dict, list[dict]]:
    tensors, about = load_tensors(path)
    if about["key"] != key:
        raise RunError(f"{path}: belongs to other settings; delete {path.parent} to do this stage again")

    def part(prefix: str) -> dict:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    net.load_state_dict(part("net."))
    device = next(net.parameters()).device
    for name, buffer in part("momentum.").items():
        optimizer.state[net.get_parameter(name)]["momentum_buffer"] = buffer.to(device)
    return {k: v.to(device) for k, v in part("best.").items()}, about["rows"]
