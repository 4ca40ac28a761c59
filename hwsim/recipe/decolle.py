"""Train DECOLLE networks of a stage on events: one for each repeat, tested at the epoch that was best on validation."""

from pathlib import Path

import torch

from hwsim.config import ConfigError
from hwsim.data.event import EventData, load_events, windows_for
from hwsim.data.windows import Window, batches
from hwsim.network.decolle import Decolle as Network
from hwsim.network.decolle import build, evaluate, train_epoch
from hwsim.network.decolle_count import counted, layer_name, readout_name
from hwsim.network.decolle_trace import LayerTrace
from hwsim.recipe.account import IDEAL_BITS, array
from hwsim.recipe.checkpoint import load_tensors, save_tensors
from hwsim.recipe.integer_settings import Decolle
from hwsim.recipe.pattern import Trainer
from hwsim.recipe.randomness import generator
from hwsim.recipe.settings import Account
from hwsim.report.learned import Learned, Readout, Traced
from hwsim.report.organization import code_bits
from hwsim.report.trace import Counts

LEARNED = ("recordings", "steps", "updates", "changes", "drawn", "errors", "gradients", "scores", "features")
"""Columns of the tensor `learned` [layers, numbers] beside the weights, summed over epochs; as in `Learned`."""
SPIKE_BITS = {0: 1, 1: 1, 2: 2, 3: 2, "counts": 8}
"""Bits of an input of the first layer, by input mode."""
FIRST = ("stage", "repeat", "epoch", "rate", "is_best", "test_recordings")


def metric_columns(rows: list[dict]) -> tuple[str, ...]:
    """Columns of metrics.csv: a row an epoch and what each layer has; tested only where validation was best so far."""
    return (*FIRST, *(k for k in dict.fromkeys(k for r in rows for k in r) if k not in FIRST))


def checked(stage: Decolle, trainer: Trainer) -> EventData:
    """The stage's recordings. Raises `ConfigError`, `DataError` for what cannot be, before anything is trained."""
    e = stage.events
    data = load_events(
        e.name, data_dir=Path(e.dir) if e.dir else None, split=e.split, seed=trainer.seed, limit=e.limit,
        profile=stage.profile, chunk_ms=e.chunk_ms, variant=e.variant,
    )  # fmt: skip
    training, _ = windows(stage, data)
    inputs, *image = training.shape_CXY(data.sensor)
    stage.rule(tuple(image), inputs, data.classes)
    if stage.batch_size > len(data.train):
        raise ConfigError([f"batch_size: {stage.batch_size} is more than the {len(data.train)} training recordings"])
    if training.steps <= stage.burn_in:
        raise ConfigError([f"burn_in: {stage.burn_in} steps leave none of {training.steps} to learn; take fewer"])
    for note in data.notes:
        trainer.progress.say(f"  {note}")
    return data


def windows(stage: Decolle, data: EventData) -> tuple[Window, Window]:
    """Windows for training, and for validation and test."""
    e = stage.events
    given = {"steps": e.steps, "test_steps": e.test_steps, "step_ms": e.step_ms, "ds": e.ds}
    return windows_for(data, stage.profile, **given, mode=e.mode, short=e.short)


def described(stage: Decolle, data: EventData) -> str:
    """The network and its data in a few words."""
    training, testing = windows(stage, data)
    sizes = "-".join(map(str, stage.channels))
    parts = " + ".join(str(len(s)) for s in (data.train, data.validation, data.test))
    return f"{stage.kind} {sizes} on {data.name} ({parts} recordings), T = {training.steps}, {testing.steps} in tests"


def train(name: str, stage: Decolle, trainer: Trainer, key: str, folder: Path, data: EventData) -> list[dict]:
    """Train every repeat in the stage's folder, from where an interrupted training stopped; the rows of all.

    Leaves weights-<repeat>.safetensors: the network of the epoch that was best on validation, and what learning did in
    all epochs (`learned`).
    """
    rows = []
    for repeat in range(stage.repeats):
        rows += _repeat(name, stage, trainer, f"{key}/{repeat}", folder, data, repeat)
    return rows


def _network(stage: Decolle, trainer: Trainer, data: EventData, repeat: int) -> Network:
    training, _ = windows(stage, data)
    inputs, *image = training.shape_CXY(data.sensor)
    first = generator(trainer.seed, "initial weights", repeat)
    return build(first, stage.rule(tuple(image), inputs, data.classes)).to(trainer.device)


def _repeat(
    name: str, stage: Decolle, trainer: Trainer, key: str, folder: Path, data: EventData, repeat: int
) -> list[dict]:
    net, progress = _network(stage, trainer, data, repeat), trainer.progress
    path, partial = folder / f"weights-{repeat}.safetensors", folder / f"resume-{repeat}.safetensors"
    rows: list[dict] = []
    best, learned = None, torch.zeros(len(net.layers), len(LEARNED), dtype=torch.int64)
    if path.exists():
        _, about = load_tensors(path)
        if about["key"] == key:
            return about["rows"]
    if partial.exists():
        tensors, about = load_tensors(partial)
        if about["key"] == key and "learned" in tensors:
            rows, learned = about["rows"], tensors["learned"]
            net.load_state_dict({k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")})
            best = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}
            progress.say(f"{name}: repeat {repeat} goes on after epoch {len(rows)}")
    with progress.task(f"{name} {repeat}", (stage.epochs - len(rows)) * len(data.train), "recordings") as advance:
        for epoch in range(len(rows), stage.epochs):
            row, trace = _epoch(net, stage, trainer, data, repeat, epoch)
            learned = learned + torch.tensor([learning(own) for own in trace])
            last = f"validation_accuracy{len(stage.channels)}"
            row["is_best"] = all(row[last] > r[last] for r in rows)
            if row["is_best"]:
                best = {k: v.clone() for k, v in net.state_dict().items()}
                row |= _tested(net, stage, trainer, data, repeat)
            rows.append(row)
            state = {f"net.{k}": v for k, v in net.state_dict().items()} | {f"best.{k}": v for k, v in best.items()}
            save_tensors(partial, state | {"learned": learned}, {"key": key, "rows": rows})
            advance(len(data.train), f"validation {100 * row[last]:.1f} %")
            progress.say(
                f"{name}: repeat {repeat}, epoch {epoch + 1}: validation {100 * row[last]:.1f} %"
                f"{', best so far' if row['is_best'] else ''}"
            )
    save_tensors(path, {**best, "learned": learned}, {"key": key, "rows": rows})
    return rows


def learning(trace: LayerTrace) -> list[int]:
    """What one epoch's learning did in a layer: the numbers of `LEARNED`."""
    steps = trace.samples * int((trace.learned > 0).sum())
    numbers = (trace.learned, trace.updates, trace.steps, trace.errors, trace.gradients, trace.scores, trace.features)
    return [trace.samples, steps, *(int(n.sum()) for n in numbers)]


def _epoch(
    net: Network, stage: Decolle, trainer: Trainer, data: EventData, repeat: int, epoch: int
) -> tuple[dict, list[LayerTrace]]:
    training, _ = windows(stage, data)
    order = generator(trainer.seed, "batches", "events", repeat, epoch)
    noise = generator(trainer.seed, "rounding", repeat, epoch)
    shown = batches(
        data.train, training, data.sensor, stage.batch_size, order, shuffle=True, drop_last=True, device=trainer.device
    )
    out = train_epoch(net, shown, noise, epoch, stage.backend)
    row = {"repeat": repeat, "epoch": epoch + 1, "rate": out["rate"], "test_recordings": ""}
    validated = _accuracies(net, stage, trainer, data, data.validation, "validation", repeat)
    for i, trace in enumerate(out["trace"]):
        shares = trace.shares()
        row |= {
            f"train_accuracy{i + 1}": out["accuracy"][i], f"validation_accuracy{i + 1}": validated[i],
            f"test_accuracy{i + 1}": "", f"spike_density{i + 1}": shares["spike"],
            f"error_density{i + 1}": shares["error"], f"update_share{i + 1}": shares["p_upd"],
            f"trace_density{i + 1}": shares["p"], f"gradient_density{i + 1}": shares["gradient"],
        }  # fmt: skip
    return row, out["trace"]


def _tested(net: Network, stage: Decolle, trainer: Trainer, data: EventData, repeat: int) -> dict:
    each = _accuracies(net, stage, trainer, data, data.test, "test", repeat)
    row = {f"test_accuracy{i + 1}": value for i, value in enumerate(each)}
    return row | {"test_recordings": len(data.test)}


def _accuracies(net: Network, stage: Decolle, trainer: Trainer, data: EventData, split, part: str, repeat: int):
    _, testing = windows(stage, data)
    jitter = generator(trainer.seed, "batches", "events", part, repeat)
    shown = batches(split, testing, data.sensor, stage.batch_size, jitter, device=trainer.device)
    drop = generator(trainer.seed, "dropout", part, repeat)
    return evaluate(net, shown, drop, stage.backend)["accuracy"]


def count(stage: Decolle, trainer: Trainer, weights: Path, data: EventData, account: Account) -> Counts:
    """What the trained network (of the first repeat) does on the first `account.samples` test recordings.

    Layers and their readouts are layers of their own; with them stand what training left and the widths of the stage.
    """
    net = _network(stage, trainer, data, 0)
    tensors, _ = load_tensors(weights)
    learned = tensors.pop("learned", None)
    net.load_state_dict(tensors)
    _, testing = windows(stage, data)
    jitter, drop = (generator(trainer.seed, *of, "test", 0) for of in (("batches", "events"), ("dropout",)))
    chosen = data.test[: account.samples]
    counts, inputs = Counts(testing.steps), [0] * len(net.layers)
    for x, _ in batches(chosen, testing, data.sensor, stage.batch_size, jitter, device=trainer.device):
        trace, own = counted(net, x, generator=drop, rows=account.window_rows, backend=stage.backend)
        counts.add(trace, x.shape[1])
        inputs = [n + int(layer.inputs.sum()) for n, layer in zip(inputs, own, strict=True)]
    votes = testing.steps - stage.burn_in - 1
    for i, layer in enumerate(net.layers):
        here, readout = counts.layers[layer_name(i)], counts.layers[readout_name(i)]
        here.normalized = readout.normalized = False
        bits = stage.widths("wb", "sb")
        held = layer.used().flatten(1) if stage.kind == "dense" else layer.used()
        here.held = [array("synapse", held, bits["wb"] or IDEAL_BITS, cells=False)]
        readout.held = [array("synapse", layer.readout, bits["sb"] or IDEAL_BITS, cells=False)]
        here.traced = Traced(inputs[i], layer.plan.features, votes, biases=layer.bias.numel())
        readout.readout = Readout(layer_name(i), votes)
        if learned is not None:
            numbers = dict(zip(LEARNED, learned[i].tolist(), strict=True))
            here.learned = Learned(**numbers, weights=layer.weight.numel() + layer.bias.numel())
            readout.learned = Learned(**{**numbers, "changes": 0, "drawn": 0, "errors": 0, "gradients": 0}, weights=0)
        here.widths, readout.widths = _widths(stage, layer.plan.out[1:], here.learned, is_first=i == 0)
    return counts


def _widths(
    stage: Decolle, places: tuple[int, ...], learned: Learned | None, *, is_first: bool
) -> tuple[dict[str, int], dict[str, int]]:
    """Bits by variable of a layer and of its readout; what is in floating point has none here."""
    b = stage.widths(*stage.WIDTHS)
    batch = learned.shared if learned else 1
    sums = b["pb"] + b["eb"] + code_bits(batch * places[0] * places[1]) if b["pb"] and b["eb"] else None
    layer = {
        "input": b["pb"], "membrane_trace": b["pb"], "synaptic_trace": b["qb"], "refractory": b["rfb"],
        "potential": b["ub"], "error": b["eb"], "gradient": sums, "master": b["gb"] and max(b["gb"], b["wb"] or 0),
        "spike": SPIKE_BITS[stage.events.mode] if is_first else 1,
    }  # fmt: skip
    readout = {"input": b["sig"], "score": b["ab"], "error": b["eb"]}
    return tuple({k: v for k, v in each.items() if v} for each in (layer, readout))
