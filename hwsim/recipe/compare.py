"""Several runs in one table: accuracy of every network, with the settings in which the runs differ as columns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwsim.config import RunError, check, nearest, read_yaml
from hwsim.recipe.checkpoint import read_json
from hwsim.recipe.folder import read_stage
from hwsim.recipe.results import ACCURACY, accuracy_rows
from hwsim.recipe.settings import Recipe

SPARSITY = ("zero_words", "zero_groups")
"""Fractions of the SRAM words, and of their groups, that are zero, without the first layer; "" for RRAM alone, and for
networks that another run has trained."""
NO_SETTINGS = ("title", "time", "expected", "options", "smoke", "faithful", "from_replaces", "stages")
NO_RESULT = ("data.dir", "data.download")
"""Settings that no result depends on."""


def compare(runs: Sequence[Path], networks: Sequence[str] = ()) -> tuple[list[dict], tuple[str, ...]]:
    """(rows, columns): run, the places whose values differ, those of accuracy.csv, and the sparsity of the SRAM.

    networks: only these; none is all. A setting of a stage counts for that stage's networks: "sram.bits" of `recover`
    and of `prune` share a column. What shares its name with a column of accuracy.csv is called trained_…, settings of
    the evaluation are called evaluate.…, and `from` says where a network comes from that another run has trained. The
    same network measured alike in several runs is one row, of the first of them.

    Raises `RunError` for a folder that is no finished run, one that measured nothing, and a network that is not there.
    """
    rows = [row for run in runs for row in _rows(run)]
    there = dict.fromkeys(row["accuracy"]["network"] for row in rows)
    if absent := [n for n in networks if n not in there]:
        raise RunError(f"--networks: none of these runs has measured '{absent[0]}'{nearest(absent[0], there)}")
    unique: dict[str, dict] = {}
    for row in rows:
        if not networks or row["accuracy"]["network"] in networks:
            unique.setdefault(repr((row["key"], row["tested"], row["accuracy"])), row)
    rows = list(unique.values())
    settings = list(dict.fromkeys(k for row in rows for k in row["settings"]))
    differ = [k for k in settings if len({repr(row["settings"][k]) for row in rows if k in row["settings"]}) > 1]
    flat = [
        {"run": row["run"], **{k: _plain(row["settings"].get(k, "")) for k in differ}, **row["accuracy"]}
        for row in rows
    ]  # fmt: skip
    return flat, ("run", *differ, *ACCURACY, *SPARSITY)


def _rows(run: Path) -> list[dict]:
    """A run's rows of accuracy.csv, each with the settings that it depends on and the key of its network."""
    if not (run / "manifest.json").is_file():
        raise RunError(f"{run}: this is no run's folder; one has a manifest.json and lies in runs/, see `ls runs`")
    manifest = read_json(run / "manifest.json", "state", "keys", "command")
    if manifest["state"] != "done":
        raise RunError(f"{run}: this run is not finished; its command goes on: {manifest['command']}")
    recipe = check(Recipe, read_yaml(run / "recipe.yaml")).model_dump(by_alias=True)
    stages = recipe["stages"]
    shared = _flat({k: v for k, v in recipe.items() if k not in NO_SETTINGS})
    out: list[dict] = []
    records: dict[str, list[dict]] = {}
    for measuring, stage in stages.items():
        for accuracy in accuracy_rows(read_stage(run / measuring)["rows"]) if stage["do"] == "evaluate" else ():
            name, _, shift = accuracy["network"].partition("/shift")
            if name not in stages or name not in manifest["keys"]:
                raise RunError(f"{run / 'recipe.yaml'}: has no stage '{name}', which was measured: changed since")
            if name not in records:
                is_here = (run / name / "stage.json").exists()
                records[name] = read_stage(run / name)["sram_rows"] if is_here else []
            sram = [r for r in records[name] if not shift or r["shift_bit"] == int(shift)]
            own = {f"trained_{k}" if k in ACCURACY else k: v for k, v in _own(name, stages, manifest).items()}
            tested = {f"evaluate.{k}": stage[k] for k in _mattering(stage, accuracy["adapt_batches"])}
            settings = {k: v for k, v in {**shared, **own, **tested}.items() if k not in NO_RESULT}
            out.append({
                "run": run.resolve().name, "key": manifest["keys"][name], "tested": tested, "settings": settings,
                "accuracy": {**accuracy, **_sparsity(sram)},
            })  # fmt: skip
    if not out:
        raise RunError(f"{run}: this run has measured nothing; hwsim recipe evaluate --from {run} does")
    return out


def _own(name: str, stages: dict[str, dict], manifest: dict) -> dict[str, Any]:
    """Settings of a network's stage, and of those that it started from where it has no such setting itself."""
    out: dict[str, Any] = {}
    line: str | None = name
    while line:
        stage = stages[line]
        if stage["do"] == "load":
            return out | {"from": "/".join(Path(manifest["loaded"][line]["from"]).parts[-2:])}
        out = {**_flat({k: v for k, v in stage.items() if k not in ("do", "from")}), **out}
        line = stage["from"]
    return out


def _mattering(evaluation: dict, adapt_batches: int) -> list[str]:
    """Settings of an evaluation that a row of it depends on, without those that are columns anyway."""
    is_batched = evaluation["redraw"] == "batch" or evaluation["drop_last"]
    return ["redraw", "drop_last"] + ["batch_size"] * is_batched + ["adapt_batch_size"] * (adapt_batches > 0)


def _sparsity(sram: list[dict]) -> dict[str, Any]:
    rows = [r for r in sram if r["layer"] != sram[0]["layer"]]
    weights, groups = sum(r["weights"] for r in rows), sum(r["groups"] or 0 for r in rows)
    words = sum(r["weights"] * r["zero_fraction"] for r in rows)
    empty = sum(r["groups"] * r["zero_groups_fraction"] for r in rows if r["groups"])
    return dict(zip(SPARSITY, (words / weights if weights else "", empty / groups if groups else ""), strict=True))


def _flat(values: dict, above: str = "") -> dict[str, Any]:
    out = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{above}{key}.")
        else:
            out[above + key] = value
    return out


def _plain(value: Any) -> Any:
    """A setting as a cell of a table: nothing as null, the values of a list with spaces."""
    return " ".join(map(str, value)) if isinstance(value, list) else "null" if value is None else value
