"""The commands that look at the machine: doctor and bench."""

from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("recipe_name", required=False, metavar="[RECIPE]")
@click.option("--set", "sets", multiple=True, metavar="PLACE=VALUE", help="As in hwsim recipe.")
@click.option("--from", "from_run", metavar="RUN", help="As in hwsim recipe.")
@click.option("--device", "compute", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to compute.")
def doctor(recipe_name: str | None, sets: tuple[str, ...], from_run: str | None, compute: str | None) -> None:
    """Versions, device, backend and why; with RECIPE also the memory that a run of it needs."""
    if recipe_name is None and (sets or from_run):
        raise click.UsageError("--set and --from change a recipe; name one")
    from hwsim.doctor import examine

    click.echo(examine(recipe_name, list(sets), compute, from_run))


@click.command()
@click.option("--net", default="vgg9", show_default=True, help="Network.")
@click.option("--width", default=1.0, show_default=True, help="Multiplies the channels of every layer.")
@click.option("--size", default=32, show_default=True, help="Side of the input image.")
@click.option("--steps", default=20, show_default=True, help="Time steps T.")
@click.option("--batch", default=16, show_default=True, help="Images a batch.")
@click.option("--samples", default=7, show_default=True, help="Timed training steps of each variant.")
@click.option(
    "--what", type=click.Choice(["step", "inference", "digits", "chips"]), default="step", show_default=True,
    help="A training step, a pass in evaluation mode, or of the network of vat a step or an evaluation over chips.",
)  # fmt: skip
@click.option("--binary", is_flag=True, help="With --what inference: clean 1-bit weights for all.")
@click.option("--peers", is_flag=True, help="Also snnTorch and SpikingJelly, where they are installed.")
@click.option("--hybrid", is_flag=True, help="Compare layers on RRAM, on RRAM and SRAM, and as two convolutions.")
@click.option("--integer", is_flag=True, help="Compare pattern and DECOLLE learning with the published way.")
@click.option("--bitnet", is_flag=True, help="Compare the memory of BITnet's training over many steps.")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True,
    help="Where to measure; on cuda a training step, with and without CUDA graphs, in each precision.",
)  # fmt: skip
@click.option(
    "--report", "folder", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Measure everything, table after table, into this folder, with a figure and a page; goes on where it ended.",
)  # fmt: skip
@click.option("--csv", "csv_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the table here.")
@click.pass_context
def bench(
    ctx: click.Context, csv_file: Path | None, folder: Path | None, device: str, integer: bool, bitnet: bool,
    **settings: Any,
) -> None:  # fmt: skip
    """Time and peak memory of a training step: the published loop, folded plain torch, and the fast backend.

    With --hybrid: what the SRAM part of a hybrid layer costs. With --integer: integer networks at the papers' sizes.
    With --bitnet: the memory and time of a step of BITnet by surrogate and memory (its defaults: bitnet6, width 0.125,
    32 pixels, 200 steps, 32 images). With --device cuda: the same on a GPU, in images a second.
    """
    default = click.core.ParameterSource.DEFAULT
    if folder is not None:
        given = [n for n in ctx.params if ctx.get_parameter_source(n) != default]
        if set(given) - {"folder", "samples"}:
            raise click.UsageError("--report measures all networks and sizes; of the other options only --samples fits")
        from hwsim.bench_report import report

        click.echo(report(folder, settings["samples"]))
        return
    if device == "cuda":
        allowed = {"net", "width", "size", "steps", "batch", "samples"}
        given = [n for n in ctx.params if ctx.get_parameter_source(n) != default]
        if more := [n for n in given if n not in allowed | {"device", "csv_file"}]:
            raise click.UsageError(f"--device cuda measures a training step; leave out --{more[0]}")
        from hwsim.bench_cuda import bench as measure_cuda

        click.echo(measure_cuda(csv_file=csv_file, **{n: v for n, v in settings.items() if n in allowed}))
        return
    if bitnet:
        from hwsim.bench_bitnet import bench as measure_bitnet

        given = {name: v for name, v in settings.items() if ctx.get_parameter_source(name) != default}
        click.echo(measure_bitnet(csv_file=csv_file, **given))
        return
    if integer:
        from hwsim.bench_integer import bench as measure_integer

        click.echo(measure_integer(csv_file=csv_file, samples=settings["samples"]))
        return
    from hwsim.bench import bench as measure

    click.echo(measure(csv_file=csv_file, **settings))
