"""Train DECOLLE networks of a stage on events: one for each repeat, tested at the epoch that was best on validation."""

from pathlib import Path

from hwsim.config import ConfigError
from hwsim.data.event import EventData, load_events, windows_for
from hwsim.data.windows import Window, batches
from hwsim.network.decolle import Decolle as Network
from hwsim.network.decolle import build, evaluate, train_epoch
from hwsim.recipe.checkpoint import load_tensors, save_tensors
from hwsim.recipe.integer_settings import Decolle
from hwsim.recipe.pattern import Trainer
from hwsim.recipe.randomness import generator

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

    Leaves weights-<repeat>.safetensors: the network of the epoch that was best on validation.
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
    best = None
    if path.exists():
        _, about = load_tensors(path)
        if about["key"] == key:
            return about["rows"]
    if partial.exists():
        tensors, about = load_tensors(partial)
        if about["key"] == key:
            rows = about["rows"]
            net.load_state_dict({k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")})
            best = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}
            progress.say(f"{name}: repeat {repeat} goes on after epoch {len(rows)}")
    with progress.task(f"{name} {repeat}", (stage.epochs - len(rows)) * len(data.train), "recordings") as advance:
        for epoch in range(len(rows), stage.epochs):
            row = _epoch(net, stage, trainer, data, repeat, epoch)
            last = f"validation_accuracy{len(stage.channels)}"
            row["is_best"] = all(row[last] > r[last] for r in rows)
            if row["is_best"]:
                best = {k: v.clone() for k, v in net.state_dict().items()}
                row |= _tested(net, stage, trainer, data, repeat)
            rows.append(row)
            state = {f"net.{k}": v for k, v in net.state_dict().items()} | {f"best.{k}": v for k, v in best.items()}
            save_tensors(partial, state, {"key": key, "rows": rows})
            advance(len(data.train), f"validation {100 * row[last]:.1f} %")
            progress.say(
                f"{name}: repeat {repeat}, epoch {epoch + 1}: validation {100 * row[last]:.1f} %"
                f"{', best so far' if row['is_best'] else ''}"
            )
    save_tensors(path, best, {"key": key, "rows": rows})
    return rows


def _epoch(net: Network, stage: Decolle, trainer: Trainer, data: EventData, repeat: int, epoch: int) -> dict:
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
        }  # fmt: skip
    return row


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
