"""The README tells the truth: every module has its line in the tree, every command parses."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from hwsim.cli import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def listed() -> set[str]:
    """Modules that the tree names, as paths below hwsim/."""
    tree = README[README.index("## The tree") :]
    folder, out = "", set()
    for line in tree.splitlines():
        if match := re.match(r"  (\w+)/$", line):
            folder = match[1] + "/"
        elif match := re.match(r"  (  )?(\w+\.py) ", line):
            out.add((folder if match[1] else "") + match[2])
    return out


def test_the_tree_has_a_line_for_every_module():
    there = {p.relative_to(ROOT / "hwsim").as_posix() for p in (ROOT / "hwsim").rglob("*.py")}
    there = {p for p in there if not p.endswith(("__init__.py", "__main__.py"))}
    assert there
    assert listed() == there


def commands() -> list[str]:
    """Every hwsim command in the README, the reports and the docs, without placeholders."""
    pages = [*sorted((ROOT / "reports").glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
    texts = [README, *(p.read_text(encoding="utf-8") for p in pages)]
    form = re.compile(r"(?:^|&& |`)(hwsim (?:recipe|device|schema|doctor|bench)[^`\n&|]*)", re.M)
    found = [c for t in texts for c in form.findall(t)]
    return sorted({c.strip() for c in found if not re.search(r"RUN|NAME|CARD|FILE|\./|\.yaml|…", c)})


@pytest.mark.parametrize("command", commands())
def test_every_command_parses(command, monkeypatch):
    words = shlex.split(command)[1:]
    if words[0] in ("bench", "doctor"):
        words.append("--help")
    elif words[0] == "recipe" and len(words) > 1 and "--help" not in words:
        words.append("--show")
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output


def test_there_are_commands_to_check():
    assert any("vat --quant 1" in c for c in commands())
    assert len(commands()) > 5
