"""The memory that a run needs, before it runs: its stages entered into a ledger, step by step, as they would take it.

What counts: data, weights with their gradients, optimizer and best copy, the passes of training, validation,
evaluation over chips, adaptation and accounting, files while they are written, several networks of an ensemble. On the
CPU it is the peak resident size above that of the libraries, on CUDA what `torch.cuda.max_memory_allocated` says.
`memory_vgg.py` holds the law of the BNTT family, `memory_others.py` those of the other networks.

T steps, B batch, P parameters.
"""

import math

import torch

from hwsim.data.release import RELEASES
from hwsim.recipe.bitnet_settings import Curve
from hwsim.recipe.coding_settings import Attack, Exit
from hwsim.recipe.convert_settings import Convert
from hwsim.recipe.integer_settings import Decolle, Pattern
from hwsim.recipe.memory_ledger import Ledger
from hwsim.recipe.memory_others import Bitnets, Ordinary, Spikings, decolle_bytes, pattern_bytes
from hwsim.recipe.memory_vgg import Passes, made
from hwsim.recipe.settings import Account, Codings, Evaluate, Recipe, Recover, Train

COUNTED = 128
"""Images that are counted at a time (`account.py`)."""
DATA, WEIGHTS, FILES, CELLS = "data", "weights, their gradients, optimizer and best copy", "files", "cells of chips"


def needed(recipe: Recipe, device: torch.device, skip: frozenset[str] = frozenset(), share: int = 1) -> Ledger:
    """The ledger of a run's stages. skip: stages that are finished already. share: processes that share each batch."""
    ledger = Ledger(has_buffers=device.type == "cpu")
    stages = {name: stage for name, stage in recipe.stages.items() if name not in skip}
    if recipe.is_integer:
        _integers(ledger, stages)
        return ledger
    sizes = _Sizes(recipe)
    ledger.at = ("", "data")
    on_gpu = device.type == "cuda"
    held = ledger.take(DATA, sizes.train_bytes if on_gpu else sizes.bytes)
    if not on_gpu:
        ledger.touch(DATA, sizes.read_bytes)
    run = _Stages(ledger, recipe, device, sizes, share)
    for name, stage in stages.items():
        run.enter(name, stage)
        ledger.trim()
    ledger.drop(held)
    return ledger


def _integers(ledger: Ledger, stages: dict) -> None:
    for name, stage in stages.items():
        for kind, law in ((Pattern, pattern_bytes), (Decolle, decolle_bytes)):
            if isinstance(stage, kind):
                ledger.at = (name, "training")
                ledger.touch("states, weights and gradients", law(stage))


class _Sizes:
    """How many images a recipe has, and of what shape."""

    def __init__(self, recipe: Recipe):
        from hwsim.data.image import FOLDERS
        from hwsim.data.image_folder import CROP_PX

        if recipe.data.name == FOLDERS:  # read as they are used; their number is not known before
            self.shape_CHW, self.classes = (3, CROP_PX, CROP_PX), 1000
            self.train = self.validation = self.test = recipe.data.limit or 10**6
            self.bytes = self.train_bytes = self.read_bytes = 0
            return
        release = RELEASES[recipe.data.name]
        self.shape_CHW, self.classes = release.shape_CHW, release.classes
        train = release.train - release.validation
        share = 1.0 if recipe.data.limit is None else min(1.0, recipe.data.limit / train)
        counts = (max(release.classes, round(share * n)) for n in (train, release.validation, release.test))
        self.train, self.validation, self.test = counts
        each = math.prod(self.shape_CHW) + 8
        self.train_bytes = each * self.train
        self.bytes = each * (self.train + self.validation + self.test)
        self.read_bytes = each * (release.train + release.test)


class _Stages:
    """Enters a recipe's stages into a ledger."""

    def __init__(self, ledger: Ledger, recipe: Recipe, device: torch.device, sizes: _Sizes, share: int):
        self.ledger, self.recipe, self.device, self.sizes, self.share = ledger, recipe, device, sizes, share

    def passes(self, recipe: Recipe | None = None, stage: Convert | None = None):
        """What enters the passes of a network: it knows `net`, `train`, `infer` and `count`."""
        recipe, sizes = recipe or self.recipe, self.sizes
        given = {"channels": sizes.shape_CHW[0], "size": sizes.shape_CHW[1:], "classes": sizes.classes}
        net = recipe.net
        if stage is not None:
            return Spikings(self.ledger, recipe, given, self.device, stage)
        if net.is_ordinary:
            return Ordinary(self.ledger, recipe, given, self.device)
        if net.is_bitnet:
            return Bitnets(self.ledger, recipe, given, self.device)
        same = {"steps": net.steps, "coding": net.encode, "norm": net.norm, "precision": recipe.precision,
                "checkpoint_layers": recipe.checkpoint_layers}  # fmt: skip
        return Passes(self.ledger, made(net.name, net.width, **given, **same), sizes.shape_CHW, self.device)

    def enter(self, name: str, stage) -> None:
        """All that a stage does."""
        if isinstance(stage, Codings):
            for encode in stage.encodings:
                net = self.recipe.net.model_copy(update={"encode": encode, "steps": max(stage.steps)})
                recipe = self.recipe.model_copy(update={"net": net})
                self._train(name, stage.train, recipe)
                self._tested(name, recipe, 256, 1, cells=0)
                self._counted(name, recipe, stage.samples)
        elif isinstance(stage, Train):
            self._train(name, stage, self.recipe)
        elif isinstance(stage, Evaluate):
            self._evaluate(name, stage)
        elif isinstance(stage, Account):
            self._counted(name, self.recipe, stage.samples, self._converted(stage.of))
        elif isinstance(stage, Convert):
            self.ledger.at = (name, "simulation")
            passes = self.passes(stage=stage)
            weights = self.ledger.take(WEIGHTS, 2 * 4 * passes.parameters)
            passes.infer(min(stage.batch_size, self.sizes.test))
            self.ledger.drop(weights)
        elif isinstance(stage, Curve | Exit):
            self._tested(name, self.recipe, stage.batch_size, 1, cells=0, factor=getattr(stage, "times", 1))
        elif isinstance(stage, Attack):
            self.ledger.at = (name, "attack")
            passes = self.passes()
            weights = self.ledger.take(WEIGHTS, 4 * 4 * _parameters(passes))
            passes.train(min(stage.batch_size, stage.images))
            self.ledger.drop(weights)

    def _converted(self, name: str) -> Convert | None:
        stage = self.recipe.stages.get(name)
        return stage if isinstance(stage, Convert) else None

    def _train(self, name: str, stage: Train, recipe: Recipe) -> None:
        L, passes = self.ledger, self.passes(recipe)
        P = _parameters(passes)
        L.at = (name, "training")
        own = [L.take(WEIGHTS, 4 * P)]
        if stage.start:
            L.touch(FILES, 3 * 4 * P)  # the parent: its file, and its tensors
            own.append(L.take(WEIGHTS, 4 * P))
        if isinstance(stage, Recover):
            own.append(L.take(WEIGHTS, 2 * 4 * P))  # the frozen part, and the sum that is read
        copies = 3 if stage.optimizer == "adam" else 2
        own += [L.take(WEIGHTS, copies * 4 * P), L.take(CELLS, 4 * P)]
        batch = max(1, stage.batch_size // self.share)
        for _ in range(min(2, self.sizes.train // stage.batch_size)):  # the second finds the first one's buffers
            passes.train(batch)
        L.trim()
        L.at = (name, "validation")
        if self.sizes.validation:
            passes.infer(min(2 * stage.batch_size, self.sizes.validation))
        L.trim()
        L.at = (name, "saving")
        own.append(L.take(WEIGHTS, 4 * P))
        L.touch(FILES, 2 * 4 * P * (copies + 1))
        L.drop(*own)

    def _evaluate(self, name: str, stage: Evaluate) -> None:
        for of in stage.of:
            trained = self.recipe.stages.get(of)
            together = len({shift for _, shift in trained.members}) if isinstance(trained, Recover) else 1
            cells = min(stage.chips, 25) if stage.spikes == "shared" or self.recipe.net.encode != "poisson" else 1
            self._tested(name, self.recipe, stage.batch_size, together, cells, self._converted(of))
            if max(stage.adapt):
                self.ledger.at = (name, "adaptation")
                self.passes().infer(min(stage.adapt_batch_size, self.sizes.train))

    def _tested(
        self, name: str, recipe: Recipe, batch: int, together: int, cells: int, converted: Convert | None = None,
        factor: int = 1,
    ) -> None:  # fmt: skip
        """Passes over the test images of networks that answer together; cells: chips that are held at a time."""
        from hwsim.recipe.together import CELLS_BYTES

        L, passes = self.ledger, self.passes(recipe, converted)
        P = _parameters(passes)
        L.at = (name, "evaluation")
        own = [L.take(WEIGHTS, 4 * P * together), L.take(CELLS, 4 * P + max(4 * P, min(4 * P * cells, CELLS_BYTES)))]
        L.touch(FILES, 2 * 4 * P)
        passes.infer(min(batch, self.sizes.test) * factor)
        L.drop(*own)

    def _counted(self, name: str, recipe: Recipe, samples: int, converted: Convert | None = None) -> None:
        L, passes = self.ledger, self.passes(recipe, converted)
        L.at = (name, "accounting")
        own = L.take(WEIGHTS, 2 * 4 * _parameters(passes))
        passes.count(min(COUNTED, samples, self.sizes.test))
        L.drop(own)


def _parameters(passes) -> int:
    return sum(p.numel() for p in passes.net.parameters())


def largest_batch(recipe: Recipe, device: torch.device, free: int) -> int | None:
    """The largest power of two of images a batch, in training and evaluation, with which the run fits; or None."""
    most = max((getattr(s, "batch_size", 1) for s in recipe.stages.values()), default=1)
    batch = 2 ** int(math.log2(max(2, most)))
    while batch >= 2:
        if needed(with_batch(recipe, batch), device).highest.total <= free:
            return batch
        batch //= 2
    return None


def with_batch(recipe: Recipe, batch: int) -> Recipe:
    """The recipe with at most so many images a batch in every stage; what is counted comes in one batch at most."""
    stages = {}
    for name, stage in recipe.stages.items():
        field = "samples" if isinstance(stage, Account) and batch < COUNTED else "batch_size"
        changed = {field: min(batch, getattr(stage, field))} if hasattr(stage, field) else {}
        stages[name] = stage.model_copy(update=changed)
    return recipe.model_copy(update={"stages": stages})
