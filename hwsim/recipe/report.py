"""A run as one HTML page, and the same numbers as CSV files beside it. No network runs."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hwsim.config import RunError, check, read_yaml
from hwsim.recipe.checkpoint import read_json, write_whole
from hwsim.recipe.reprice import repriced
from hwsim.recipe.settings import Recipe
from hwsim.recipe.tracefile import counted_stage, load_trace
from hwsim.report.energy import energy_rows
from hwsim.report.page import figure, folded, page, table, verbatim


def write_report(run: Path, cards: Sequence[str], out: Path | None, given: dict[str, Any] | None = None) -> list[Path]:
    """Write the page of a run (report.html in its folder, or `out`) and its CSV files beside it; returns all of them.

    cards: prices to show side by side, CARD or CARD+CARD each; none is the run's own. given: definitions that differ
    from the run's own; None stays. What a run does not have (accuracy, counts) is left out with a sentence. Tables that
    stand in the run's folder are written again only with other cards or definitions, or when the page lies elsewhere.

    Raises `RunError` if there is no run, a file of it is damaged, or cards or definitions are given and nothing was
    counted; `CardError` and `ConfigError` as `repriced`.
    """
    root = run.parent if (run / "stage.json").is_file() else run
    manifest = _manifest(root)
    recipe: Recipe = check(Recipe, read_yaml(root / "recipe.yaml"))
    target = root / "report.html" if out is None else out
    name = root.resolve().name
    from hwsim.report import sections as say  # imports matplotlib's figures, not matplotlib

    parts: dict[str, list[str]] = {"": [f"Recipe {manifest['recipe']}: {recipe.title}."]}
    of = ", ".join(recipe.stages) if recipe.is_integer else f"{recipe.net.name} on {recipe.data.name}"
    files: dict[str, bytes] = {}
    if manifest["state"] != "done":
        parts[""].append(
            f"This run has not finished (its state is {manifest['state']}); what is not done yet is missing here. Its "
            "command, repeated, goes on."
        )
    if recipe.is_integer:
        parts["Learning"] = _learning(root, files)
    else:
        parts["Accuracy"] = _accuracy(root, of, files)
    given = {k: v for k, v in (given or {}).items() if v is not None}
    priced_anew = bool(cards or given)
    stage = _counted(run, manifest, must=priced_anew)
    if isinstance(stage, str):
        parts["Energy, sparsity and spikes"] = [stage]
    else:
        of = recipe.stages[stage.name].of if recipe.is_integer else of
        counts = load_trace(stage)
        counted = say.Counted(name, of, counts)
        _, definitions, prices = repriced(stage, cards, given)
        priced = [(p, energy_rows(counts, p, definitions, name)) for p in prices]
        parts["Energy"] = say.energy(priced, of, recipe.stages[stage.name].of, files)
        parts |= say.activity(counted, files)
        parts["NeuroBench's metrics"] = say.metrics(counted, files)
        parts["Memory"] = say.memory(counted, definitions, files)
        parts["Definitions"] = say.definitions_used(definitions)
        parts["Prices"] = say.prices(counted, prices, definitions, files)
    if target.resolve().parent == root.resolve():
        there = {"accuracy", "sparsity"} | (set() if priced_anew else {"energy"})
        there |= {"footprint"} if recipe.is_integer and not priced_anew else set()
        files = {k: v for k, v in files.items() if k not in there}
    named = {target.with_name(f"{target.stem}-{k}.csv"): v for k, v in files.items()}
    own = [p.name for p in sorted(root.glob("*.csv")) if not p.name.startswith(f"{target.stem}-")]
    parts["Settings"] = _settings(root, recipe)
    parts["Run"] = _run(root, manifest, own, [p.name for p in named])
    payload = page(name, parts)
    for path, content in named.items():
        write_whole(path, content)
    write_whole(target, payload)
    return [target, *named]


def _manifest(root: Path) -> dict[str, Any]:
    path = root / "manifest.json"
    if not path.is_file():
        raise RunError(f"{root}: is no run, it has no manifest.json; give a run's folder, as runs/vat-…")
    try:
        return read_json(path, "recipe", "command", "versions", "state")
    except RunError as e:
        what = str(e).partition("; delete")[0]
        raise RunError(f"{what}; repeat the run's command, which writes it again") from None


def _counted(run: Path, manifest: dict, *, must: bool) -> Path | str:
    """The stage that counted; or, where there is none and need not be one, the sentence about it."""
    try:
        stage = counted_stage(run)
    except RunError as e:
        if must:
            raise
        return f"Left out: {str(e).partition(': ')[2]}."
    if manifest["state"] != "done" and not must and not (stage / "stage.json").is_file():
        return f"Left out: stage {stage.name} has not finished."
    return stage


def _accuracy(root: Path, of: str, files: dict[str, bytes]) -> list[str]:
    from hwsim.report.sections import accuracy

    path = root / "accuracy.csv"
    if not path.is_file():
        return ["Left out: no network was evaluated in this run."]
    files["accuracy"] = path.read_bytes()
    try:
        rows = [
            {k: v if k == "network" else _number(v) for k, v in row.items()}
            for row in csv.DictReader(files["accuracy"].decode().splitlines())
        ]
        return accuracy(rows, of)
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{path}: damaged or changed; repeat the run's command, which writes it again") from None


def _learning(root: Path, files: dict[str, bytes]) -> list[str]:
    """Of integer networks: the figures of their training that the run has, and test accuracy by layer."""
    captions = {"learning": "Accuracy over epochs.", "loss": "Van Rossum distance over epochs."}
    captions |= {p.stem: f"Target and output of {p.stem.removeprefix('rasters-')}." for p in root.glob("rasters-*.png")}
    parts = [figure(p.read_bytes(), text) for k, text in captions.items() if (p := root / f"{k}.png").is_file()]
    path = root / "accuracy.csv"
    if path.is_file():
        files["accuracy"] = path.read_bytes()
        try:
            rows = list(csv.DictReader(files["accuracy"].decode().splitlines()))
            columns = list(rows[0])
        except (ValueError, IndexError):
            raise RunError(f"{path}: damaged or changed; repeat the run's command, which writes it again") from None
        parts.append("Test accuracy by layer, at the epoch that was best on validation; the interval is over seeds.")
        parts.append(table(rows, columns))
    return parts


def _number(text: str) -> int | float:
    return int(text) if text.lstrip("-").isdigit() else float(text)


def _settings(root: Path, recipe: Recipe) -> list[str]:
    """The shared settings one by one, the stages by what differs from the defaults, the recipe whole."""
    rows = []
    for block in () if recipe.is_integer else ("net", "data", "device"):
        settings = getattr(recipe, block)
        for key, value in settings.model_dump().items():
            meaning = type(settings).model_fields[key].description
            inner = value if isinstance(value, dict) else {"": value}
            rows += [
                {"setting": ".".join(filter(None, (block, key, k))), "value": str(v), "meaning": meaning}
                for k, v in inner.items()
                if v is not None
            ]
    stages = []
    for name, stage in recipe.stages.items():
        given = stage.model_dump(by_alias=True, exclude_defaults=True, exclude={"do"})
        stages.append({"stage": name, "does": stage.do, "settings": ", ".join(f"{k} {v}" for k, v in given.items())})
    shared = [table(rows, ("setting", "value", "meaning"))] if rows else []
    return [
        *shared,
        "Stages, with the settings that differ from the defaults:",
        table(stages, ("stage", "does", "settings")),
        folded("recipe.yaml", verbatim((root / "recipe.yaml").read_text(encoding="utf-8"))),
    ]


def _run(root: Path, manifest: dict, own: list[str], written: list[str]) -> list[str]:
    def listed(key: str) -> str:
        return ", ".join(f"{k} {v}" for k, v in manifest.get(key, {}).items())

    rows = {
        "command": manifest["command"], "run": root.resolve().name, "state": manifest["state"],
        "started": manifest.get("started"), "seconds": manifest.get("seconds"), "commit": manifest.get("commit"),
        "versions": listed("versions"), "machine": listed("machine"), "seed": manifest.get("seed"),
        "data": listed("data"), "cards": listed("cards"), "taken from before": ", ".join(manifest.get("reused", [])),
        "tables of the run": ", ".join(own), "tables beside this page": ", ".join(written),
    }  # fmt: skip
    return [table([{"what": k, "value": v} for k, v in rows.items() if v not in (None, "")], ("what", "value"))]
