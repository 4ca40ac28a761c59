"""Stage evaluate: every network at every scale of variation over its chips, which the processes of a run share.

The rows of finished networks and scales lie in the stage's folder meanwhile, so an interrupted stage goes on.
"""

from pathlib import Path

from hwsim.recipe.checkpoint import FORMAT, read_json, write_json
from hwsim.recipe.evaluate import over_chips
from hwsim.recipe.load import Trained
from hwsim.recipe.member import Work
from hwsim.recipe.settings import Evaluate
from hwsim.recipe.view import views


def chip_rows(
    work: Work, name: str, stage: Evaluate, trained: dict[str, Trained], key: str, partial: Path
) -> list[dict]:  # fmt: skip
    """Rows of chips.csv of stage `name`, by network, scale and chip, in every process.

    Each process measures every so many-th chip. partial: file of the rows so far, of a stage with the same `key`.
    """
    ranks = work.ranks
    saved = ranks.first(lambda: read_json(partial, "key", "rows") if partial.exists() else {"key": None})
    rows = saved["rows"] if saved["key"] == key else []
    done = {(r["network"], r["variation_scale"]) for r in rows}
    seen = [v for n in stage.of for v in views(n, trained[n], stage.chips)]
    todo = [(view, scale) for view in seen for scale in stage.variation_scales if (view.name, scale) not in done]
    images = sum(len(ranks.share(view.chips)) for view, _ in todo) * len(stage.adapt) * len(work.data.test)
    with work.progress.task(name, images) as advance:
        for view, scale in todo:
            on = view.networks(work.recipe, work.data, work.device, scale)
            own = [
                {"stage": name, "network": view.name, "variation_scale": scale, **row}
                for row in over_chips(on, ranks.share(view.chips), work.data, stage, work.recipe.seed, advance)
            ]
            new = sorted(ranks.gather(own), key=lambda row: row["chip"])
            rows += new
            if ranks.is_first:
                write_json(partial, {"format": FORMAT, "key": key, "rows": rows})
            for number in stage.adapt:
                each = [r["accuracy"] for r in new if r["adapt_batches"] == number]
                after = f", adapted by {number} batches" if number else ""
                mean = 100 * sum(each) / len(each)
                work.progress.say(
                    f"{name}: {view.name} at scale {scale:g}{after}: mean {mean:.2f} %, chips {len(each)}"
                )
    return rows
