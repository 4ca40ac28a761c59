"""Run a resolved recipe: its stages in order, each found finished, resumed or done, then the tables and figures."""

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hwsim.config import ConfigError, content_hash
from hwsim.data.image import ImageData, load_images
from hwsim.device.card import card_store, load_card
from hwsim.device.store import place
from hwsim.network.lif import choose
from hwsim.network.vgg_bntt import VggBntt, build
from hwsim.recipe import manifest
from hwsim.recipe.account import count
from hwsim.recipe.checkpoint import FORMAT, load_tensors, read_json, save_tensors, write_json
from hwsim.recipe.evaluate import over_chips
from hwsim.recipe.folder import WEIGHTS, Folder, read_stage
from hwsim.recipe.load import Trained, trained_before
from hwsim.recipe.progress import Progress
from hwsim.recipe.randomness import generator
from hwsim.recipe.resolve import Resolved
from hwsim.recipe.settings import Account, Evaluate, Load, Recipe, Train
from hwsim.recipe.show import shown
from hwsim.recipe.train import train
from hwsim.report.energy import energy_rows, sparsity_rows


@dataclass
class Results:
    """What the stages of a run have left."""

    folder: Path
    trained: dict[str, Trained] = field(default_factory=dict)
    metrics: list[dict] = field(default_factory=list)
    chips: list[dict] = field(default_factory=list)
    energy: list[dict] = field(default_factory=list)
    sparsity: list[dict] = field(default_factory=list)
    levels: list[dict] = field(default_factory=list)


def compute_device(wanted: str) -> torch.device:
    """The torch device of a recipe's `compute`. Raises `ConfigError` if CUDA is asked where there is none."""
    if wanted == "cuda" and not torch.cuda.is_available():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device"
        raise ConfigError([f"compute: found cuda, but {why}; use --device cpu, or install a CUDA build of torch"])
    return torch.device("cuda" if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()) else "cpu")


class Run:
    """One execution of a recipe."""

    def __init__(self, resolved: Resolved, runs: Path, progress: Progress):
        self.resolved, self.progress = resolved, progress
        self.recipe: Recipe = resolved.recipe
        self.device = compute_device(self.recipe.compute)
        self.backend = choose(self.device)
        wanted = self.recipe.data
        self.data: ImageData = load_images(
            wanted.name, data_dir=Path(wanted.dir) if wanted.dir else None, download=wanted.download,
            limit=wanted.limit, progress=progress.fetched,
        )  # fmt: skip
        self._batches_fill()
        net = self.network(None)  # a plan that does not fit the images is found before anything runs
        shapes = {k: tuple(v.shape) for k, v in net.state_dict().items()}
        self.loaded = {
            n: trained_before(n, s.run, resolved, self.data, shapes)
            for n, s in self.recipe.stages.items() if isinstance(s, Load)
        }  # fmt: skip
        self.keys = self._keys()
        self.folder = Folder(runs, resolved.name, content_hash(self.keys))
        self.reused: list[str] = []

    def execute(self) -> Results:
        """Do the stages. Raises `UserError` kinds only for what the user can mend."""
        self._greet()
        results = Results(self.folder.path)
        with self.folder.locked(self.progress):
            started = time.time()
            self.folder.write("recipe.yaml", shown(self.resolved).encode())
            about = self._manifest(started)
            write_json(self.folder.path / "manifest.json", {**about, "state": "running"})
            for name, stage in self.recipe.stages.items():
                getattr(self, f"_{stage.do}")(name, stage, results)
            from hwsim.recipe.summary import write_tables

            write_tables(self.folder, self.recipe, self.resolved.name, results)
            done = {"state": "done", "seconds": time.time() - started, "reused": self.reused}
            write_json(self.folder.path / "manifest.json", {**about, **done})
        return results

    def _batches_fill(self) -> None:
        images, document = len(self.data.train), self.resolved.document
        too_large = {n: s for n, s in self.recipe.stages.items() if isinstance(s, Train) and s.batch_size > images}
        if too_large:
            raise ConfigError([
                f"{document.where(('stages', n, 'batch_size'))}: stages.{n}.batch_size: {s.batch_size} is more than "
                f"the {images} training images of {self.data.name}; no batch would be full"
                for n, s in too_large.items()
            ])  # fmt: skip

    def network(self, weights: Trained | None, variation_scale: float = 0.0) -> VggBntt:
        """The recipe's network on its stores, with given weights or fresh ones."""
        net_settings, C_HW = self.recipe.net, self.data.shape_CHW
        net = build(
            net_settings.name, width=net_settings.width, channels=C_HW[0], size=C_HW[1:], classes=self.data.classes,
            steps=net_settings.steps, coding=net_settings.encode, leak=net_settings.leak,
            threshold=net_settings.threshold, generator=generator(self.recipe.seed, "initial weights"),
        ).to(self.device)  # fmt: skip
        device = self.recipe.device
        store = card_store(load_card(device.card), device.weights, variation_scale)
        place(net, dict.fromkeys(device.on, store))
        if weights is not None:
            net.load_state_dict(load_tensors(weights.weights, weights.sha256)[0])
        return net

    def _keys(self) -> dict[str, str]:
        """Stage → the hash of all that its result depends on."""
        device = self.recipe.device
        shared = {
            "format": FORMAT, "seed": self.recipe.seed, "net": self.recipe.net.model_dump(), "data": self.data.checksum,
            "augment": self.recipe.data.augment, "device": device.model_dump(exclude={"card"}),
            "card": load_card(device.card).hash, "compute": self.device.type,
        }  # fmt: skip
        keys: dict[str, str] = {}
        for name, stage in self.recipe.stages.items():
            settings = stage.model_dump(exclude={"start", "of", "run"})
            parents: Any = getattr(stage, "start", None) or getattr(stage, "of", None) or []
            if isinstance(stage, Load):
                settings["weights"] = self.loaded[name].sha256
            if isinstance(stage, Account):
                settings["prices"] = load_card(stage.card).hash
            above = [(p, keys[p]) for p in ([parents] if isinstance(parents, str) else parents)]
            # A trained network is the same whatever its parent is called; a table names the networks that it measured.
            above = [k for _, k in above] if isinstance(stage, Train) else above
            keys[name] = content_hash({"shared": shared, "stage": settings, "parents": above})
        return keys

    def _greet(self) -> None:
        recipe = self.recipe
        bits = f"{recipe.device.weights.bits} bit, " if recipe.device.weights.bits else ""
        images = " + ".join(str(len(s)) for s in (self.data.train, self.data.validation, self.data.test))
        self.progress.say(
            f"{self.resolved.name}: {recipe.title}\n"
            f"  run      {self.folder.path}\n"
            f"  network  {recipe.net.name} x{recipe.net.width:g}, T = {recipe.net.steps}, {recipe.net.encode}, on "
            f"{recipe.data.name} ({images} images for training, validation and test)\n"
            f"  device   {recipe.device.card}, {bits}on {', '.join(recipe.device.on)}\n"
            f"  compute  {self.device}, {torch.get_num_threads()} threads; seed {recipe.seed}\n"
            f"  neuron   {self.backend.name}: {self.backend.reason}"
        )

    def _manifest(self, started: float) -> dict:
        recipe = self.recipe
        cards = {recipe.device.card, *(s.card for s in recipe.stages.values() if isinstance(s, Account))}
        return {
            "format": FORMAT, "recipe": self.resolved.name, "command": manifest.command(), "commit": manifest.commit(),
            "versions": manifest.versions(), "machine": manifest.machine(self.device, self.backend),
            "seed": recipe.seed, "data": {"name": recipe.data.name, "checksum": self.data.checksum},
            "cards": {c: load_card(c).hash for c in sorted(cards)}, "keys": self.keys,
            "loaded": {n: {"from": str(t.weights.parent), "sha256": t.sha256} for n, t in self.loaded.items()},
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
        }  # fmt: skip

    def _reuse(self, name: str) -> tuple[dict, Path] | None:
        found = self.folder.finished(name, self.keys[name])
        if found is not None:
            self.progress.say(f"{name}: finished before, taken from {found[1]}")
            self.reused.append(name)
        return found

    def _load(self, name: str, stage: Load, results: Results) -> None:
        results.trained[name] = self.loaded[name]
        self.progress.say(f"{name}: weights of {self.loaded[name].weights.parent}")

    def _train(self, name: str, stage: Train, results: Results) -> None:
        parent = results.trained[stage.start] if stage.start else None
        before = parent.epochs if parent else 0
        here = self.folder.stage(name)
        found = self._reuse(name)
        if found is None:
            net = self.network(parent, stage.variation_scale)
            started = time.monotonic()
            best, rows = train(
                net, self.data, stage, name=name, key=self.keys[name], seed=self.recipe.seed, epochs_before=before,
                redraw=self.recipe.device.weights.redraw, augmentation=self.recipe.data.augment,
                resume=here / "resume.safetensors", progress=self.progress,
            )  # fmt: skip
            about = {
                "stage": name,
                "key": self.keys[name],
                "net": self.recipe.net.model_dump(),
                "epochs": before + stage.epochs,
            }
            save_tensors(here / WEIGHTS, best, about)
            self.folder.finish(name, {**about, "do": "train", "rows": rows})
            self.progress.say(f"{name}: {len(rows)} epochs in {time.monotonic() - started:.1f} s")
        elif found[1] != here:
            shutil.copyfile(found[1] / WEIGHTS, here / (WEIGHTS + ".part"))
            (here / (WEIGHTS + ".part")).replace(here / WEIGHTS)
            self.folder.finish(name, found[0])
        record = read_stage(here)
        results.metrics += [{**row, "stage": name} for row in record["rows"]]
        results.trained[name] = Trained(here / WEIGHTS, record["files"][WEIGHTS], record["epochs"])

    def _evaluate(self, name: str, stage: Evaluate, results: Results) -> None:
        here = self.folder.stage(name)
        found = self._reuse(name)
        if found is not None:
            rows = [{**row, "stage": name} for row in found[0]["rows"]]
            if found[1] != here:
                self.folder.finish(name, {**found[0], "rows": rows})
            results.chips += rows
            return
        partial = here / "resume.json"
        saved = read_json(partial, "key", "rows") if partial.exists() else {"key": None}
        rows = saved["rows"] if saved["key"] == self.keys[name] else []
        done = {(r["network"], r["variation_scale"]) for r in rows}
        todo = [(n, s) for n in stage.of for s in stage.variation_scales if (n, s) not in done]
        with self.progress.task(name, len(todo) * stage.chips * len(self.data.test)) as advance:
            for network, scale in todo:
                net = self.network(results.trained[network], scale)
                before = len(rows)
                for row in over_chips(net, self.data, stage, self.recipe.seed, advance):
                    rows.append({"stage": name, "network": network, "variation_scale": scale, **row})
                write_json(partial, {"format": FORMAT, "key": self.keys[name], "rows": rows})
                mean = sum(row["accuracy"] for row in rows[before:]) / stage.chips
                self.progress.say(f"{name}: {network} at scale {scale:g}: mean {100 * mean:.2f} %, chips {stage.chips}")
        self.folder.finish(name, {"key": self.keys[name], "do": "evaluate", "rows": rows})
        results.chips += rows

    def _account(self, name: str, stage: Account, results: Results) -> None:
        card = load_card(stage.card)
        counts, held, levels = count(self.network(results.trained[stage.of]), self.data, stage, self.recipe.seed)
        run_id = self.folder.path.name
        settings = {"run_id": run_id, "synapses": stage.synapses, "pooled": stage.pooled}
        results.energy += energy_rows(counts, card, held, **settings)
        results.sparsity += sparsity_rows(counts, run_id)
        results.levels += levels
