"""The run folder of a checkpoint that was imported: the weights, a recipe that loads them, where they come from."""

import hashlib
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from hwsim.config import content_hash
from hwsim.recipe import manifest
from hwsim.recipe.checkpoint import FORMAT, save_tensors, write_json
from hwsim.recipe.folder import Folder
from hwsim.recipe.progress import Progress
from hwsim.recipe.settings import Recipe

STAGE = "imported"


def keep(
    path: Path, runs: Path, recipe: Recipe, record: dict[str, Any], tensors: dict[str, Tensor], also: dict[str, Any]
) -> Path:
    """Write the run of a file's tensors; returns its folder. also: what else makes it another run than this record."""
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    key = content_hash({"format": FORMAT, "source": sha256, **also, **record})
    folder = Folder(runs, "import", key)
    with folder.locked(Progress(quiet=True)):
        save_tensors(folder.stage(STAGE) / "weights.safetensors", tensors, {"key": key, "rows": [], "sram_rows": []})
        folder.finish(STAGE, {**record, "key": key})
        written = recipe.model_dump(by_alias=True)
        written["stages"][STAGE]["run"] = str(folder.path)
        folder.write("recipe.yaml", yaml.safe_dump(written, sort_keys=False).encode())
        write_json(folder.path / "manifest.json", {
            "format": FORMAT, "recipe": "import", "command": manifest.command(), "commit": manifest.commit(),
            "versions": manifest.versions(), "source": {"file": str(path), "sha256": sha256}, "keys": {STAGE: key},
            "state": "done",
        })  # fmt: skip
    return folder.path
