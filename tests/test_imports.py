"""The shape of the package: who imports whom, what importing costs, how large a file may be."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hwsim"
RANKS = (
    (
        "cli",
        "cli_bench",
        "cli_energy",
        "cli_sweep",
        "bench",
        "bench_bitnet",
        "bench_cuda",
        "bench_hybrid",
        "bench_integer",
        "bench_peers",
        "bench_parts",
        "bench_report",
        "bench_ways",
        "doctor",
        "__main__",
    ),
    ("recipe",),
    ("network", "report", "data"),
    ("device",),
    ("config",),
    ("fields",),
)
"""Top to bottom; a module may import its own package and those of lower rows."""
HEAVY = ("torch", "pandas", "matplotlib", "triton", "numba", "scipy", "sklearn")


def modules() -> dict[str, Path]:
    """Dotted name → file of every module of the package."""
    files = sorted(PACKAGE.rglob("*.py"))
    assert files
    out = {}
    for file in files:
        parts = file.relative_to(ROOT).with_suffix("").parts
        out[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return out


def imported(name: str, file: Path) -> set[str]:
    """Modules of the package that a module imports anywhere in it, also inside functions."""
    there, found = modules(), set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            found |= {
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in there else str(node.module)
                for alias in node.names
            }
    return {f for f in found if f.split(".")[0] == "hwsim"}


def part(name: str) -> str:
    """The package, or the module beside them, that a module belongs to."""
    return (name.split(".") + [""])[1]


def rank(name: str) -> int:
    (row,) = [i for i, parts in enumerate(RANKS) if part(name) in parts]
    return row


def test_every_module_has_a_rank():
    known = {p for row in RANKS for p in row} | {""}
    assert {part(name) for name in modules()} == known


@pytest.mark.parametrize("name", [n for n in modules() if n != "hwsim"])
def test_modules_import_only_downwards(name):
    for other in imported(name, modules()[name]):
        if other == "hwsim":
            continue  # only the version
        assert other in modules(), f"{name} imports {other}, which is not there"
        top = rank(name) == 0  # the commands share one row and may call each other
        assert part(other) == part(name) or rank(other) > rank(name) or (top and rank(other) == 0), (
            f"{name} imports {other}"
        )


def test_the_root_imports_nothing_of_the_package():
    assert imported("hwsim", modules()["hwsim"]) == set()


def test_networks_know_stores_and_never_cards():
    names = [n for n in modules() if part(n) == "network"]
    assert names
    for name in names:
        of_devices = {o for o in imported(name, modules()[name]) if part(o) == "device"}
        arithmetic = {"hwsim.device.integer", "hwsim.device.integer_codes"}
        assert of_devices <= {"hwsim.device.store"} | arithmetic, f"{name} imports {of_devices}"


def test_fast_backends_are_imported_only_by_the_rule_that_chooses():
    for name, file in modules().items():
        fast = {o for o in imported(name, file) if o in ("hwsim.network.lif_cpu", "hwsim.network.lif_cuda")}
        assert not fast or name == "hwsim.network.lif", f"{name} imports {fast}"


def test_no_module_has_a_name_that_says_nothing():
    for name in modules():
        assert not {"utils", "util", "common", "helpers", "helper", "base", "manager", "misc"} & set(name.split("."))


def test_files_are_short():
    for name, file in modules().items():
        assert len(file.read_text(encoding="utf-8").splitlines()) < 330, name


def test_every_module_says_what_it_is():
    for name, file in modules().items():
        assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))), name


def loaded_by(*arguments: str) -> tuple[str, set[str]]:
    """(standard output, heavy packages loaded) of a fresh Python with these arguments."""
    watch = (
        "import atexit, json, sys; "
        f"atexit.register(lambda: print(json.dumps([m for m in {HEAVY} if m in sys.modules]), file=sys.stderr)); "
    )
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    program = watch + f"sys.argv = ['hwsim', *{list(arguments[1:])}]; {arguments[0]}"
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, set(json.loads(done.stderr.strip().splitlines()[-1]))


def test_import_hwsim_is_lean():
    assert loaded_by("import hwsim")[1] == set()
    assert loaded_by("import hwsim.config, hwsim.device.card")[1] == set()
    # The watch itself sees what is loaded.
    assert "torch" in loaded_by("import hwsim.device.store")[1]


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["recipe"], ["recipe", "vat", "--help"], ["recipe", "sram-recover", "--help"], ["device"]],
    ids=" ".join,
)
def test_looking_around_does_not_import_torch(arguments):
    out, heavy = loaded_by("import runpy; runpy.run_module('hwsim', run_name='__main__')", *arguments)
    assert out
    assert heavy == set()


def test_networks_import_neither_backend_nor_figures_until_they_run():
    assert loaded_by("import hwsim.network.vgg_bntt, hwsim.recipe.train")[1] <= {"torch"}
