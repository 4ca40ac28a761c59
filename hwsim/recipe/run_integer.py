"""Run a recipe of integer networks: stages pattern, decolle and account, each found finished, resumed or done."""

import time
from pathlib import Path
from typing import Any

from hwsim.config import content_hash
from hwsim.recipe import decolle, pattern
from hwsim.recipe.checkpoint import FORMAT
from hwsim.recipe.folder import read_stage
from hwsim.recipe.integer_settings import Decolle, Pattern
from hwsim.recipe.run import Results, Run
from hwsim.recipe.settings import Account
from hwsim.recipe.tracefile import save_trace

TRAINERS = {"pattern": pattern, "decolle": decolle}
"""The module of each kind of stage: `checked`, `described`, `train`, `count`."""
COUNTS = 2
"""Version of what is counted; counts of another are made anew. 2: with what training left, and formats of states."""


class IntegerRun(Run):
    """One execution of a recipe whose stages train integer networks."""

    def _prepare(self) -> None:
        self.loaded, self.first_weights = {}, {}
        self.trainer = pattern.Trainer(self.recipe.seed, self.device, self.progress)
        self.data_of = {
            name: TRAINERS[stage.do].checked(stage, self.trainer)
            for name, stage in self.recipe.stages.items()
            if isinstance(stage, Pattern | Decolle)
        }

    def _keys(self) -> dict[str, str]:
        shared = {"format": FORMAT, "seed": self.recipe.seed, "compute": self.device.type}
        keys: dict[str, str] = {}
        for name, stage in self.recipe.stages.items():
            if isinstance(stage, Account):
                asked = {"samples": stage.samples, "window_rows": stage.window_rows, "of": keys[stage.of]}
                keys[name] = content_hash({"do": "account", "counts": COUNTS, **asked})
                continue
            where = {"card": True, "target": True, "events": {"dir"}}  # what lies there is in the checksum
            settings = {**stage.model_dump(exclude=where), **stage.widths(*stage.WIDTHS)}
            keys[name] = content_hash({**shared, "stage": settings, "data": self.data_of[name].checksum})
        return keys

    def _greet(self) -> None:
        lines = [f"{self.resolved.name}: {self.recipe.title}", f"  run      {self.folder.path}"]
        for name, stage in self.recipe.stages.items():
            if not isinstance(stage, Account):
                bits = ", ".join(f"{k} {v or 'none'}" for k, v in stage.widths(*stage.WIDTHS).items())
                lines.append(f"  {name:8} {TRAINERS[stage.do].described(stage, self.data_of[name])}; {bits}")
        self.progress.say("\n".join([*lines, f"  compute  {self.device}; seed {self.recipe.seed}"]))

    def _cards(self) -> list[str]:
        return list(dict.fromkeys(s.card for s in self.recipe.stages.values() if not isinstance(s, Account)))

    def _inputs(self) -> dict[str, Any]:
        data = {n: {"name": d.name, "checksum": d.checksum} for n, d in self.data_of.items()}
        return {"data": data, "loaded": {}}

    def _train_integer(self, name: str, stage: Pattern | Decolle, results: Results) -> None:
        here, found = self.folder.stage(name), self._reuse(name)
        if found is None:
            started = time.monotonic()
            rows = TRAINERS[stage.do].train(name, stage, self.trainer, self.keys[name], here, self.data_of[name])
            self.folder.finish(name, {"key": self.keys[name], "do": stage.do, "rows": rows})
            self.progress.say(f"{name}: {stage.epochs} epochs in {time.monotonic() - started:.1f} s")
        elif found[1] != here:
            self._copy(found, here)
        results.metrics += [{"stage": name, **row} for row in read_stage(here)["rows"]]

    _pattern = _decolle = _train_integer

    def _account(self, name: str, stage: Account, results: Results) -> None:
        here, found = self.folder.stage(name), self._reuse(name)
        if found is None:
            of = self.recipe.stages[stage.of]
            counts = TRAINERS[of.do].count(of, self.trainer, self._weights(stage.of), self.data_of[stage.of], stage)
            save_trace(here, counts, {"key": self.keys[name]})
            self.folder.finish(name, {"key": self.keys[name], "do": "account", "of": stage.of, "rows": []})
        elif found[1] != here:
            self._copy(found, here)
        self._price(stage, here, results)

    def _weights(self, stage: str) -> Path:
        folder = self.folder.stage(stage)
        return folder / next(iter(read_stage(folder)["files"]))

    def _write_tables(self, results: Results) -> None:
        from hwsim.recipe.integer_summary import write_tables

        write_tables(self.folder, self.recipe, self.resolved.name, results)
