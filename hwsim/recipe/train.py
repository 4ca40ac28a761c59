"""One training loop for every network family; what is done with a batch is in `step.py`.

Before each batch a chip is drawn (or one chip for the whole stage); the gradient passes straight through the store to
the master weights. A stage that prunes takes the masks before the batch and adds the group lasso's gradient, on the
master weights, after the batch's own. After each epoch the validation images judge the network under the stage's
variation, and the best epoch's weights are kept; the test set is never looked at. The state of every finished epoch is
on disk, so an interrupted stage goes on from there and ends with the same bytes.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from hwsim.config import RunError
from hwsim.data.augment import augment
from hwsim.data.image import ImageData, batches, normalize
from hwsim.device.store import clear, draw, load
from hwsim.network.workspace import trim
from hwsim.recipe.checkpoint import load_tensors, save_tensors
from hwsim.recipe.evaluate import measure
from hwsim.recipe.progress import Progress
from hwsim.recipe.prune import fix_masks, refresh_masks
from hwsim.recipe.randomness import generator
from hwsim.recipe.ranks import ALONE, Ranks
from hwsim.recipe.settings import Prune, Recover, Train
from hwsim.recipe.step import make_optimizer, set_rate, training_step
from hwsim.recipe.xnor import center_weights

DIVERGED = 1e4
"""A cross-entropy above this is divergence: chance is log(classes)."""


def learning_rate(stage: Train, epoch: int) -> float:
    """Learning rate of a 0-based epoch: lr drop_factor^k, k = number of drops that come before it; with schedule cosine
    lr (1 + cos(pi epoch / epochs)) / 2.

    crossing: the drop at fraction f of E epochs acts on every epoch e > f E. equality: on every epoch behind one that
    equals f E in floating point, as in the reference, which loses a drop where the product is no whole number (trap
    B15). Where all products are whole numbers the two agree.

    >>> stage = Train(epochs=10, lr=0.1)
    >>> [round(learning_rate(stage, e), 5) for e in (5, 6, 8, 9)]
    [0.1, 0.01, 0.001, 0.001]
    """
    if stage.schedule == "cosine":
        return stage.lr * (1 + math.cos(math.pi * epoch / stage.epochs)) / 2
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
    augmentation: str,
    resume: Path,
    progress: Progress,
    chip: int = 0,
    fallback: Callable[[], dict[str, torch.Tensor]] | None = None,
    ranks: Ranks = ALONE,
    statistics: str = "synchronised",
    cuda_graphs: str = "auto",
) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Train `net`, whose stores are placed; returns (best weights by validation, one row of metrics an epoch).

    epochs_before: epochs that the starting network has seen, so that batches are not repeated. chip: the one that is
    drawn where the stage keeps a chip; the validation images meet it too. resume: file that keeps the state of the last
    finished epoch. fallback: gives the weights that are judged before the first epoch (row 0) and kept where no epoch
    is better; without it only what was trained counts. Of a stage that prunes, only epochs with final masks count.
    ranks: the processes that train it together, all with the same arguments, and get the same; rank 0 writes `resume`.
    statistics: as of `Ranks.losses`. cuda_graphs: as of `step.why_eager`.
    Raises `RunError` if the loss or a weight stops being a number, naming layer, step and likely cause.
    """
    device = next(net.parameters()).device
    images = data.train.to(device)
    optimizer = make_optimizer(list(net.parameters()), stage)
    step = training_step(
        net, ranks.losses(net, statistics), optimizer, stage, wanted=cuda_graphs, processes=ranks.count,
        say=lambda text: progress.say(f"{name}: {text}"),
    )  # fmt: skip
    best, rows = None, []
    if ranks.first(resume.exists):
        best, rows = _resume(resume, key, net, optimizer)
        progress.say(f"{name}: resuming after epoch {rows[-1]['epoch']} of {stage.epochs}")
    elif fallback is not None:
        best, rows = _fallback(net, fallback(), data, stage, seed, chip, name, progress, ranks)
    done = rows[-1]["epoch"] if rows else 0
    per_epoch = len(images) // stage.batch_size
    if per_epoch == 0:
        raise RunError(
            f"stage {name}: {len(images)} training images fill no batch of {stage.batch_size}; lower batch_size"
        )
    with progress.task(name, (stage.epochs - done) * per_epoch * stage.batch_size) as advance:

        def tell(images: int, text: str) -> None:
            last = f"  validation {100 * rows[-1]['validation_accuracy']:.2f} %" if rows else ""
            advance(images, text + last)

        for epoch in range(done, stage.epochs):
            lr = learning_rate(stage, epoch)
            set_rate(optimizer, lr, weight_decay(stage, epoch))
            loss = _one_epoch(
                net, images, data, stage, step, name, epoch, epochs_before + epoch, seed, chip, augmentation, tell,
                ranks,
            )  # fmt: skip
            trim()
            accuracy, validation_loss = _validate(net, data, stage, seed, chip, ranks)
            trim()
            before = [r for r in rows if r["eligible"]]
            eligible = _is_eligible(stage, epoch)
            is_best = eligible and (
                not before
                or (accuracy, -validation_loss) > max((r["validation_accuracy"], -r["validation_loss"]) for r in before)
            )
            if is_best:
                best = {k: v.detach().clone() for k, v in net.state_dict().items()}
            rows.append(_row(name, epoch + 1, lr, loss, validation_loss, accuracy, is_best, eligible))
            progress.say(
                f"{name}: epoch {epoch + 1}/{stage.epochs}  lr {lr:g}  loss {loss:.4f}  "
                f"validation {100 * accuracy:.2f} %{'  best' if is_best else ''}"
            )
            if ranks.is_first:
                _save(resume, key, net, optimizer, best or {}, rows)
    if _prunes(stage):
        load(net, best)
        fix_masks(net)
        best = {k: v.detach().clone() for k, v in net.state_dict().items()}
    clear(net)
    return best, rows


def weight_decay(stage: Train, epoch: int) -> float:
    """Weight decay of a 0-based epoch: 0 in every epoch e >= decay_until E.

    >>> [weight_decay(Train(epochs=10, decay_until=0.5), e) for e in (4, 5)]
    [0.0001, 0.0]
    """
    return stage.weight_decay if epoch < stage.decay_until * stage.epochs - 1e-9 else 0.0


def masks_fixed_from(stage: Recover) -> int:
    """The first 0-based epoch with masks that stay: at least the last one, or none at all with fixed_from 1."""
    if stage.prune.fixed_from == 1:
        return stage.epochs
    return min(math.ceil(stage.prune.fixed_from * stage.epochs - 1e-9), stage.epochs - 1)


def _prunes(stage: Train) -> bool:
    return isinstance(stage, Recover) and stage.prune is not None


def _is_eligible(stage: Train, epoch: int) -> bool:
    """Whether the epoch's weights may be kept: not those that would still be pruned further."""
    return not _prunes(stage) or stage.prune.fixed_from == 1 or epoch >= masks_fixed_from(stage)


def _row(name, epoch, lr, loss, validation_loss, accuracy, is_best, eligible) -> dict:
    return {
        "stage": name, "epoch": epoch, "lr": lr, "train_loss": loss, "validation_loss": validation_loss,
        "validation_accuracy": accuracy, "is_best": int(is_best), "eligible": int(eligible),
    }  # fmt: skip


def _fallback(net, state, data, stage, seed, chip, name, progress, ranks) -> tuple[dict, list[dict]]:
    """(state, its row of metrics): what is kept where no epoch is better."""
    own = {k: v.detach().clone() for k, v in net.state_dict().items()}
    load(net, state)
    accuracy, loss = _validate(net, data, stage, seed, chip, ranks)
    load(net, own)
    progress.say(f"{name}: its parent  validation {100 * accuracy:.2f} %")
    return state, [_row(name, 0, 0.0, "", loss, accuracy, True, True)]


def _one_epoch(
    net, images, data, stage, learn, name, epoch, global_epoch, seed, chip, augmentation, advance, ranks
) -> float:
    net.train()
    device = images.labels_N.device
    order = generator(seed, "batches", "order", global_epoch)
    coding = generator(seed, "batches", "coding", global_epoch, device=device)
    picture = generator(seed, "batches", "augment", global_epoch, device=device)
    chips = generator(seed, "chips", "training", global_epoch, device=device)
    if stage.redraw == "chip":
        # One fabricated array: the one that `evaluate` calls by this number.
        draw(net, generator(seed, "chips", chip))
    prune = stage.prune if _prunes(stage) and epoch < masks_fixed_from(stage) else None
    if _prunes(stage) and epoch == masks_fixed_from(stage):
        _refresh(net, stage.prune)
        fix_masks(net)
    total = torch.zeros((), dtype=torch.float64, device=device)
    look_every = 1 if device.type == "cpu" else 50  # looking at a loss waits for the GPU
    step = 0
    for x_uint8, y in batches(images, stage.batch_size, order, drop_last=True):
        if stage.redraw == "batch":
            draw(net, chips)
        if prune:
            _refresh(net, prune)
        if stage.center:
            center_weights(net)
        x = normalize(augment(x_uint8, augmentation, picture), data.mean, data.std)
        step += 1
        shown: list[float] = []

        def look(loss: torch.Tensor, step=step, shown=shown) -> None:
            shown.append(float(ranks.mean(loss)))
            _check(net, name, epoch, step, shown[-1], stage)

        total += learn(x, y, coding, prune, look if step % look_every == 0 else None)
        if shown:
            advance(look_every * stage.batch_size, f"loss {shown[-1]:.3f}")
    if stage.center:  # so are the weights that are judged and kept
        center_weights(net)
    ranks.average_statistics(net)
    mean = float(ranks.mean(total)) / step
    _check(net, name, epoch, step, mean, stage)
    if prune:
        _refresh(net, prune)
    return mean


def _refresh(net: nn.Module, prune: Prune) -> None:
    refresh_masks(net, prune.threshold, by=prune.by, group=prune.group, first=prune.first)


def _validate(net, data: ImageData, stage: Train, seed: int, chip: int, ranks: Ranks) -> tuple[float, float]:
    """Mean validation accuracy and loss over the stage's validation chips (the same chips after every epoch).

    Where the stage keeps a chip, that chip is meant, with as many spike codings. Every rank measures some of them.
    """
    device = next(net.parameters()).device
    results = []
    for number in ranks.share(range(stage.validation_chips)):
        purpose = ("validation", number) if stage.redraw == "batch" else (chip,)
        draw(net, generator(seed, "chips", *purpose))
        coding = generator(seed, "batches", "validation", number, device=device)
        tested = measure(net, data.validation, data, coding, batch_size=2 * stage.batch_size)
        results.append((number, tested))
    results = [tested for _, tested in sorted(ranks.gather(results))]
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
        kept = {k: v for k, v in state.items() if v is not None}
        tensors |= {f"optimizer.{k}.{names[parameter]}": v for k, v in kept.items()}
    save_tensors(path, tensors, {"key": key, "rows": rows})


def _resume(path: Path, key: str, net: nn.Module, optimizer) -> tuple[dict, list[dict]]:
    tensors, about = load_tensors(path)
    if about["key"] != key:
        raise RunError(f"{path}: belongs to other settings; delete {path.parent} to do this stage again")

    def part(prefix: str) -> dict:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    load(net, part("net."))
    device = next(net.parameters()).device
    for where, value in part("optimizer.").items():
        what, _, name = where.partition(".")
        # Adam counts its steps on the CPU, unless one kernel does all of it.
        stays = what == "step" and not optimizer.defaults["fused"]
        optimizer.state[net.get_parameter(name)][what] = value if stays else value.to(device)
    return {k: v.to(device) for k, v in part("best.").items()} or None, about["rows"]
