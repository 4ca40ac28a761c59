"""Run a resolved recipe: its stages in order, each found finished, resumed or done, then the tables and figures."""

import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hwsim.config import RunError, content_hash
from hwsim.data.image import ImageData, load_images
from hwsim.device.card import load_card
from hwsim.device.pricelist import Prices
from hwsim.network.lif import choose
from hwsim.network.workspace import trim
from hwsim.recipe import manifest, network
from hwsim.recipe.account import count
from hwsim.recipe.attack import attacks, victims_of
from hwsim.recipe.bitnet import curves
from hwsim.recipe.bitnet_settings import Curve
from hwsim.recipe.checkpoint import FORMAT, write_json
from hwsim.recipe.chips import chip_rows
from hwsim.recipe.coding_settings import Attack, Exit, Published
from hwsim.recipe.codings import Point, measure_grid, train_grid
from hwsim.recipe.compute import compute_device
from hwsim.recipe.convert import convert
from hwsim.recipe.convert_settings import Convert
from hwsim.recipe.exits import exits
from hwsim.recipe.folder import Folder, finished_keys, read_stage
from hwsim.recipe.keys import stage_keys
from hwsim.recipe.load import Trained
from hwsim.recipe.member import Work, train_member
from hwsim.recipe.memory_fit import refuse
from hwsim.recipe.parents import before_running
from hwsim.recipe.progress import Progress
from hwsim.recipe.ranks import ALONE, Ranks
from hwsim.recipe.resolve import Resolved
from hwsim.recipe.settings import Account, Codings, Evaluate, Load, Recipe, Recover, Train
from hwsim.recipe.show import shown
from hwsim.recipe.tracefile import load_trace, save_trace
from hwsim.report.energy import energy_rows
from hwsim.report.sparsity import level_rows, sparsity_rows

SHARED = ("train", "recover", "codings", "evaluate")
"""Stages that several processes do together; the others are rank 0's."""


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
    sram: list[dict] = field(default_factory=list)
    conversion: dict[str, list[dict]] = field(default_factory=dict)
    curves: dict[str, list[dict]] = field(default_factory=dict)
    grids: dict[str, list[Point]] = field(default_factory=dict)
    timing: dict[str, list[dict]] = field(default_factory=dict)


class Run:
    """One execution of a recipe."""

    def __init__(self, resolved: Resolved, runs: Path, progress: Progress, ranks: Ranks = ALONE):
        self.resolved, self.progress, self.ranks = resolved, progress, ranks
        self.recipe: Recipe = resolved.recipe
        self.device = compute_device(self.recipe.compute, self.recipe.precision, ranks.local)
        self.backend = choose(self.device)
        self._prepare()
        self.keys = self._keys()
        key = content_hash({**self.keys, **self._pricing()})
        if len({*ranks.gather([key])}) > 1:
            raise RunError("the processes have other data or other versions of hwsim; give them the same")
        done = finished_keys(runs)
        if self.recipe.check_memory:
            refuse(self.recipe, self.device, frozenset(n for n, k in self.keys.items() if k in done), ranks.count)
        self.folder = ranks.first(lambda: Folder(runs, resolved.name, key))
        self.reused: list[str] = []

    def _prepare(self) -> None:
        """Read the data, and check what needs them, before anything runs."""
        wanted = self.recipe.data
        self.data: ImageData = self.ranks.one_fetches(lambda: load_images(
            wanted.name, data_dir=Path(wanted.dir) if wanted.dir else None, download=wanted.download,
            limit=wanted.limit, progress=self.progress.fetched,
        ))  # fmt: skip
        self.loaded, self.first_weights = before_running(self.resolved, self.data, self.ranks.count)

    def execute(self) -> Results:
        """Do the stages. Raises `UserError` kinds only for what the user can mend."""
        self._greet()
        results = Results(self.folder.path)
        with self.folder.locked(self.progress) if self.ranks.is_first else nullcontext():
            started = time.time()
            about = self.ranks.first(lambda: self._begun(started))
            for name, stage in self.recipe.stages.items():
                if stage.do in SHARED:
                    getattr(self, f"_{stage.do}")(name, stage, results)
                else:
                    results.trained |= self.ranks.first(partial(self._by_one, name, stage, results))
                trim()
            self.ranks.first(lambda: self._write_tables(results))
            done = {"state": "done", "seconds": time.time() - started, "reused": self.reused}
            self.ranks.first(lambda: write_json(self.folder.path / "manifest.json", {**about, **done}))
        return results

    def _begun(self, started: float) -> dict[str, Any]:
        """Write what the run is; returns what its manifest says."""
        self.folder.write("recipe.yaml", shown(self.resolved).encode())
        about = self._manifest(started)
        write_json(self.folder.path / "manifest.json", {**about, "state": "running"})
        return about

    def _by_one(self, name: str, stage, results: Results) -> dict[str, Trained]:
        """Do a stage that is one process's; returns the network that it leaves, if it does, by its name."""
        getattr(self, f"_{stage.do}")(name, stage, results)
        return {name: results.trained[name]} if name in results.trained else {}

    def _write_tables(self, results: Results) -> None:
        from hwsim.recipe.summary import write_tables

        write_tables(self.folder, self.recipe, self.resolved.name, results)

    def _keys(self) -> dict[str, str]:
        """Stage → the hash of all that its result depends on."""
        return stage_keys(
            self.recipe, self.data.checksum, self.device.type, self.loaded, self.first_weights, self.ranks.count
        )

    def _pricing(self) -> dict[str, Any]:
        """What makes the run's tables another's though its stages are the same: how counts are priced."""
        return {
            f"{name} priced": {
                "cards": [load_card(c).hash for c in stage.card.split("+")], **stage.definitions.model_dump()
            }
            for name, stage in self.recipe.stages.items()
            if isinstance(stage, Account)
        }  # fmt: skip

    def _greet(self) -> None:
        recipe = self.recipe
        bits = f"{recipe.device.weights.bits} bit, " if recipe.device.weights.bits else ""
        images = " + ".join(str(len(s)) for s in (self.data.train, self.data.validation, self.data.test))
        self.progress.say(
            f"{self.resolved.name}: {recipe.title}\n"
            f"  run      {self.folder.path}\n"
            f"  network  {recipe.net.name} x{recipe.net.width:g}{recipe.net.in_time}, on "
            f"{recipe.data.name} ({images} images for training, validation and test)\n"
            f"  device   {recipe.device.card}, {bits}on {', '.join(recipe.device.on)}\n"
            f"  compute  {self.device}{self._together()}, {torch.get_num_threads()} threads; seed {recipe.seed}\n"
            f"  neuron   {self.backend.name}: {self.backend.reason}"
        )

    def _together(self) -> str:
        """How many processes work together, in words; nothing of one."""
        count = self.ranks.count
        return f", {count} processes, BNTT statistics {self.recipe.statistics}" if count > 1 else ""

    def _manifest(self, started: float) -> dict:
        recipe = self.recipe
        priced = [s.card.split("+") for s in recipe.stages.values() if isinstance(s, Account | Published)]
        cards = {*self._cards(), *(card for each in priced for card in each)}
        return {
            "format": FORMAT, "recipe": self.resolved.name, "command": manifest.command(self.ranks.count),
            "commit": manifest.commit(), "versions": manifest.versions(),
            "machine": manifest.machine(self.device, self.backend, self.ranks.count),
            "seed": recipe.seed, "cards": {c: load_card(c).hash for c in sorted(cards)}, "keys": self.keys,
            **self._inputs(),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
        }  # fmt: skip

    def _cards(self) -> list[str]:
        """The cards that hold weights and states."""
        return [self.recipe.device.card]

    def _inputs(self) -> dict[str, Any]:
        """What the manifest says of the data and of other runs' networks."""
        loaded = {n: {"from": str(t.folder), "sha256": [m.sha256 for m in t.members]} for n, t in self.loaded.items()}
        return {"data": {"name": self.recipe.data.name, "checksum": self.data.checksum}, "loaded": loaded}

    def _reuse(self, name: str, key: str | None = None) -> tuple[dict, Path] | None:
        found = self.ranks.first(lambda: self.folder.finished(name, key or self.keys[name]))
        if found is not None:
            self.progress.say(f"{name}: finished before, taken from {found[1]}")
            self.reused.append(name)
        return found

    def _load(self, name: str, stage: Load, results: Results) -> None:
        results.trained[name] = self.loaded[name]
        self.progress.say(f"{name}: weights of {self.loaded[name].folder}")

    def _train(self, name: str, stage: Train, results: Results) -> None:
        parent = results.trained[stage.start] if stage.start else None
        results.trained[name] = self.train(name, stage, self.recipe, self.keys[name], results, parent)

    def train(
        self, name: str, stage: Train, recipe: Recipe, key: str, results: Results, parent: Trained | None = None
    ) -> Trained:
        """The network of stage `name`, whose result `key` stands for: found finished, or trained by `recipe`."""
        here = self.ranks.first(lambda: self.folder.stage(name))
        found = self._reuse(name, key)
        if found is None:
            started = time.monotonic()
            self.progress.say(f"{name}: no finished one in {self.folder.runs}, it is trained now")
            work = Work(recipe, self.data, self.device, self.progress, self.ranks)
            other = self.first_weights.get(name)
            made = [
                train_member(work, name, stage, key, here, parent, chip, shift, other) for chip, shift in stage.members
            ]
            rows = [row for m in made for row in m["rows"]]
            recovers = isinstance(stage, Recover)
            self.ranks.first(lambda: self.folder.finish(name, {
                "stage": name, "key": key, "do": "train", "net": recipe.net.model_dump(),
                "device": recipe.device.model_dump(), "epochs": (parent.epochs if parent else 0) + stage.epochs,
                "members": [{k: m[k] for k in ("file", "chip", "shift_bit")} for m in made],
                "sram": stage.sram.model_dump() if recovers else None,
                "masked": recovers and (stage.prune is not None or parent.masked),
                "is_float": stage.weights == "float", "conversion": None, "rows": rows,
                "sram_rows": [row for m in made for row in m["sram_rows"]],
            }))  # fmt: skip
            epochs = stage.epochs * len(made)
            self.progress.say(f"{name}: {epochs} epochs in {time.monotonic() - started:.1f} s")
        elif found[1] != here:
            self.ranks.first(lambda: self._copy(found, here))
        record = self.ranks.first(lambda: read_stage(here))
        results.metrics += [{**row, "stage": name} for row in record["rows"]]
        results.sram += [{**row, "stage": name} for row in record["sram_rows"]]
        return Trained.of_record(here, record)

    _recover = _train

    def _convert(self, name: str, stage: Convert, results: Results) -> None:
        here, found = self.folder.stage(name), self._reuse(name)
        if found is None:
            parent = results.trained[stage.start]
            made = convert(Work(self.recipe, self.data, self.device, self.progress), name, stage, parent, here)
            self.folder.finish(name, {
                "stage": name, "key": self.keys[name], "do": "convert", "net": self.recipe.net.model_dump(),
                "device": self.recipe.device.model_dump(), "epochs": parent.epochs, "sram": None, "masked": False,
                "is_float": parent.is_float, "conversion": stage.model_dump(by_alias=True), "sram_rows": [], **made,
            })  # fmt: skip
        elif found[1] != here:
            self._copy(found, here)
        record = read_stage(here)
        results.trained[name] = Trained.of_record(here, record)
        for table, rows in record["tables"].items():
            results.conversion.setdefault(table, []).extend({"stage": name, **row} for row in rows)

    def _curve(self, name: str, stage: Curve, results: Results) -> None:
        self._measured(name, results.curves, lambda work: curves(work, name, stage, results.trained))

    def _codings(self, name: str, stage: Codings, results: Results) -> None:
        results.grids[name] = grid = train_grid(self, name, stage, results)
        self.ranks.first(lambda: self._measured(
            name, results.timing, lambda work: measure_grid(work, name, stage, grid)
        ))  # fmt: skip

    def _exit(self, name: str, stage: Exit, results: Results) -> None:
        self._measured(name, results.timing, lambda work: exits(work, name, stage, results.trained))

    def _attack(self, name: str, stage: Attack, results: Results) -> None:
        victims = victims_of(self.recipe, stage, results.trained, results.grids)
        self._measured(name, results.timing, lambda work: attacks(work, name, stage, victims))

    def _measured(self, name: str, into: dict[str, list[dict]], make: Callable[[Work], dict[str, list[dict]]]) -> None:
        """Do a stage whose result is tables, and add their rows to those of the run."""
        here, found = self.folder.stage(name), self._reuse(name)
        if found is None:
            made = make(Work(self.recipe, self.data, self.device, self.progress))
            do = self.recipe.stages[name].do
            self.folder.finish(name, {"key": self.keys[name], "do": do, "rows": [], "tables": made})
        elif found[1] != here:
            self._copy(found, here)
        for table, rows in read_stage(here)["tables"].items():
            into.setdefault(table, []).extend(rows)

    def _evaluate(self, name: str, stage: Evaluate, results: Results) -> None:
        here = self.ranks.first(lambda: self.folder.stage(name))
        found = self._reuse(name)
        if found is None:
            work = Work(self.recipe, self.data, self.device, self.progress, self.ranks)
            rows = chip_rows(work, name, stage, results.trained, self.keys[name], here / "resume.json")
            self.ranks.first(lambda: self.folder.finish(name, {"key": self.keys[name], "do": "evaluate", "rows": rows}))
        else:
            rows = [{**row, "stage": name} for row in found[0]["rows"]]
            if found[1] != here:
                self.ranks.first(lambda: self.folder.finish(name, {**found[0], "rows": rows}))
        results.chips += rows

    def _account(self, name: str, stage: Account, results: Results) -> None:
        here = self.folder.stage(name)
        found = self._reuse(name)
        if found is None:
            of = results.trained[stage.of]
            members = [m for m in of.members if m.chip in (None, of.members[0].chip)]
            nets = {
                f"shift{m.shift_bit}": network.trained(self.recipe, self.data, self.device, of, m, 0.0) for m in members
            }
            counts = count(nets, self.data, stage, self.recipe.seed)
            save_trace(here, counts, {"key": self.keys[name]})
            self.folder.finish(name, {"key": self.keys[name], "do": "account", "of": stage.of, "rows": []})
        elif found[1] != here:
            self._copy(found, here)
        self._price(stage, here, results)

    def _price(self, stage: Account, here: Path, results: Results) -> None:
        counts = load_trace(here)
        prices = Prices.load(stage.card, stage.to_node_nm, stage.scaling)
        results.energy += energy_rows(counts, prices, stage.definitions, self.folder.path.name)
        results.sparsity += sparsity_rows(counts, self.folder.path.name)
        results.levels += level_rows(counts)

    def _copy(self, found: tuple[dict, Path], here: Path) -> None:
        """Take the files of a stage that another run has finished."""
        for file in found[0]["files"]:
            shutil.copyfile(found[1] / file, here / (file + ".part"))
            (here / (file + ".part")).replace(here / file)
        self.folder.finish(here.name, found[0])
