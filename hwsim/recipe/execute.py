"""Run a resolved recipe, whatever its networks are, and say what its stages have reached."""

from pathlib import Path

from hwsim.config import ConfigError
from hwsim.recipe.progress import Progress
from hwsim.recipe.ranks import ALONE, Ranks
from hwsim.recipe.resolve import Resolved
from hwsim.recipe.run import Results, Run


def execute(resolved: Resolved, runs: Path, progress: Progress, ranks: Ranks = ALONE) -> Results:
    """Do the recipe's stages in a run folder below `runs`. Raises `UserError` kinds only for what the user can mend.

    ranks: the processes that do them together.
    """
    if resolved.recipe.is_integer:
        if ranks.count > 1:
            raise ConfigError([
                f"{resolved.name}: integer networks learn in one process; start it without torchrun ({ranks.count} "
                "processes can share stages train, recover, codings and evaluate)"
            ])  # fmt: skip
        from hwsim.recipe.run_integer import IntegerRun

        return IntegerRun(resolved, runs, progress).execute()
    return Run(resolved, runs, progress, ranks).execute()


def reached(resolved: Resolved, results: Results) -> list[dict]:
    """For each network of a run its result: stage, measure (accuracy or loss), value, and where the run lies.

    The accuracy of an image network is its mean over chips at each scale of variation, `at`.
    """
    if resolved.recipe.is_integer:
        from hwsim.recipe.integer_summary import headlines

        rows = headlines(resolved.recipe, results.metrics)
        found = [(r["stage"], "", "accuracy", r["mean"]) if "mean" in r else (r["stage"], "", "loss", r["loss"])
                 for r in rows]  # fmt: skip
    else:
        from hwsim.recipe.results import accuracy_rows, label

        found = [(label(r), r["variation_scale"], "accuracy", r["mean"]) for r in accuracy_rows(results.chips)]
    return [
        {"stage": s, "at": at, "measure": m, "value": value, "run": results.folder.name} for s, at, m, value in found
    ]
