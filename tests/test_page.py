"""The HTML page of a run: well-formed, complete in itself, escaped, with the same numbers as the CSV files."""

import csv
import html.parser
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import TINY, hwsim, refused
from test_imports import loaded_by

from hwsim.config import CardError, RunError
from hwsim.device.card import load_card
from hwsim.device.pricelist import Prices
from hwsim.recipe.report import write_report
from hwsim.recipe.tracefile import read_trace
from hwsim.report.action import Definitions
from hwsim.report.distribution import NEURONS, raster, raster_rows, rate_rows, weight_rows
from hwsim.report.energy import actions
from hwsim.report.figures import raster_figure, rate_figure, sparsity_figure, weight_figure
from hwsim.report.page import Column, figure, folded, number, page, table, verbatim
from hwsim.report.provenance import price_rows
from hwsim.report.trace import Counts, Held, LayerCounts

VOID = {"meta", "img", "br"}
PNG = b"\x89PNG"


class Parsed(html.parser.HTMLParser):
    """A page: its tags must be balanced; tables by heading, plain text, attributes."""

    def __init__(self, payload: bytes):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.heading, self.headings, self.tables = "", [], {}
        self.feed(payload.decode("utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, k, v) for k, v in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.setdefault(self.heading, []).append([])
        elif tag == "tr":
            self.tables[self.heading][-1].append([])
        elif tag in ("td", "th"):
            self.tables[self.heading][-1][-1].append(["", None])
        elif tag == "data":
            self.tables[self.heading][-1][-1][-1][1] = dict(attrs)["value"]
        elif tag == "h2":
            self.heading = ""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "h2":
            self.headings.append(self.heading)

    def handle_data(self, data):
        self.text.append(data)
        if "h2" in self.open:
            self.heading += data
        if {"td", "th"} & set(self.open):
            self.tables[self.heading][-1][-1][-1][0] += data

    def rows(self, heading: str, which: int = 0) -> list[dict[str, str]]:
        """A table as its CSV says it: column → exact number, else text."""
        (head, *rows) = self.tables[heading][which]
        return [{h: said if exact is None else exact for (h, _), (said, exact) in zip(head, row, strict=True)}
                for row in rows]  # fmt: skip


def in_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A finished run."""
    runs = tmp_path_factory.mktemp("runs")
    done = hwsim("recipe", TINY, "--quiet", "--runs", runs, "--epochs", "1", "--set", "stages.account.samples=4")
    assert done.code == 0, done
    return next(p for p in runs.iterdir() if (p / "manifest.json").is_file())


@pytest.fixture
def run(tiny, tmp_path, monkeypatch) -> Path:
    """A copy of it, to spoil; its page has empty figures, which takes less time."""
    for name in ("accuracy", "energy", "sparsity", "rate", "weight", "raster"):
        monkeypatch.setattr(f"hwsim.report.sections.{name}_figure", lambda *_: PNG)
    return Path(shutil.copytree(tiny, tmp_path / "tiny-run"))


@pytest.fixture(scope="module")
def told(tiny, tmp_path_factory) -> tuple[Path, Parsed]:
    """(folder with the page of the run by three cards and its tables, the page)."""
    folder = tmp_path_factory.mktemp("page")
    cards = ["horowitz_45nm", "loihi", "sram_cacti_32nm"]
    files = write_report(tiny, cards, folder / "r.html")
    assert files[0] == folder / "r.html" and set(files) == set(folder.iterdir())
    return folder, Parsed(files[0].read_bytes())


# ------------------------------------------------------------------------------------------------------- what it says


SECTIONS = [
    "Accuracy", "Energy", "Sparsity", "Firing rates", "Weights", "Spikes of one image", "NeuroBench's metrics",
    "Memory", "Definitions", "Prices", "Settings", "Run",
]  # fmt: skip


def test_everything_is_there(told):
    assert told[1].headings == SECTIONS
    assert sum(tag == "img" for tag in told[1].tags) == 1 + 3 + 4  # accuracy, a figure a card, and four
    links = {v for _, k, v in told[1].attributes if k == "href"}
    assert links == {f"#{v}" for tag, k, v in told[1].attributes if tag == "section" and k == "id"}


def test_nothing_is_fetched(told):
    folder, parsed = told
    payload = (folder / "r.html").read_text(encoding="utf-8")
    assert all(v.startswith("data:image/png;base64,") for _, k, v in parsed.attributes if k == "src")
    assert all(v.startswith("#") for _, k, v in parsed.attributes if k == "href")
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(parsed.tags)
    assert not {k for _, k, _ in parsed.attributes} & {"style", "srcset", "background", "action", "ping"}
    assert not [k for _, k, _ in parsed.attributes if k.startswith("on")]
    style = payload[payload.index("<style>") : payload.index("</style>")]
    assert "@import" not in style and "url(" not in style
    assert ("meta", "content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in parsed.attributes


def test_accuracy_is_that_of_the_csv(told, tiny):
    percent = {
        "mean (%)": "mean", "s.d. (%)": "std", "95 % from": "ci95_low", "to": "ci95_high", "lowest (%)": "minimum",
    }  # fmt: skip
    rows = [{percent.get(k, k.replace(" ", "_")): v for k, v in r.items()} for r in told[1].rows("Accuracy")]
    expected = in_csv(tiny / "accuracy.csv")
    assert expected and rows == [{k: v for k, v in r.items() if k != "adapt_batches"} for r in expected]
    (_, first, *_), row = told[1].tables["Accuracy"][0], expected[0]
    assert first[3][0] == f"{100 * float(row['mean']):.2f}"
    assert (told[0] / "r-accuracy.csv").read_bytes() == (tiny / "accuracy.csv").read_bytes()


def test_energy_of_every_card_is_that_of_the_csv(told, tiny):
    folder, parsed = told
    rows = in_csv(folder / "r-energy.csv")
    hashes = list(dict.fromkeys(r["card_hash"] for r in rows))
    names = dict(zip(hashes, ("horowitz_45nm", "loihi", "sram_cacti_32nm"), strict=True))
    shown = parsed.rows("Energy")
    totals = [r for r in rows if r["layer"] == "TOTAL"]
    assert {r["phase"] for r in totals} == {"inference", "ann_inference"}
    for r in totals:
        (row,) = [s for s in shown if (s["phase"], s["component"]) == (r["phase"], r["component"])]
        assert row[f"{names[r['card_hash']]} (nJ)"] == r["energy_pj"]
    numbers = [v for s in shown for k, v in s.items() if k.endswith("(nJ)") and v]
    assert len(numbers) == len(totals)  # a component that a card does not cover is empty, not zero
    (column,) = [i for i, (h, _) in enumerate(parsed.tables["Energy"][0][0]) if h == "horowitz_45nm (nJ)"]
    said, exact = parsed.tables["Energy"][0][1][column]
    assert said == number(float(exact), Column("", scale=1e-3))  # pJ in the file, nJ on the page
    for row in parsed.rows("Energy", 1):
        for hash_, name in names.items():
            parts = [float(r["energy_pj"]) for r in rows if r["card_hash"] == hash_
                     and all(r[k] == row[k] for k in ("layer", "phase", "component"))]  # fmt: skip
            assert (row[f"{name} (nJ)"] == "") == (not parts)
            assert not parts or float(row[f"{name} (nJ)"]) == pytest.approx(sum(parts), rel=1e-8)


@pytest.mark.parametrize(
    ("heading", "which", "file", "only"),
    [
        ("Sparsity", 0, "sparsity", ""), ("NeuroBench's metrics", 0, "metrics", "TOTAL"),
        ("Memory", 0, "footprint", "TOTAL"), ("Memory", 1, "footprint", "layers"),
    ],
)  # fmt: skip
def test_tables_are_those_of_their_csv(told, heading, which, file, only):
    folder, parsed = told
    rows = [r for r in in_csv(folder / f"r-{file}.csv") if not only or (r["layer"] == "TOTAL") == (only == "TOTAL")]
    shown = parsed.rows(heading, which)
    keys = [k for k in shown[0] if k in rows[0]]
    assert len(keys) > 2 and len(shown) == len(rows)
    assert [[s[k] for k in keys] for s in shown] == [[r[k] for k in keys] for r in rows]


def test_metrics_by_layer_are_those_of_the_csv(told):
    folder, parsed = told
    shown = {(s["layer"], k): v for s in parsed.rows("NeuroBench's metrics", 1) for k, v in s.items() if k != "layer"}
    expected = {(r["layer"], r["metric"]): r["value"] for r in in_csv(folder / "r-metrics.csv")}
    assert {k: v for k, v in shown.items() if v} == expected


def test_every_price_that_was_used_has_its_source(told, tiny):
    folder, parsed = told
    rows, shown = in_csv(folder / "r-prices.csv"), []
    for i, card in enumerate(("horowitz_45nm", "loihi", "sram_cacti_32nm")):
        shown += [{"prices": card, "card": card, **r} for r in parsed.rows("Prices", i)]
    assert shown == rows
    assert all(r["source"] and r["evidence"] for r in rows)
    assert {r["element"] for r in rows if r["card"] == "loihi"} == {"synop", "neuron_update"}
    energy = in_csv(folder / "r-energy.csv")
    assert {s for r in energy if r["source"] for s in r["source"].split(" + ")} == {r["source"] for r in rows}


def test_all_that_is_shown_rounds_what_is_exact(told):
    shown = [cell for tables in told[1].tables.values() for t in tables for row in t for cell in row if cell[1]]
    assert len(shown) > 200
    for said, exact in shown:
        if (number_said := float(said.replace(" ", ""))) and exact not in ("inf", "nan"):
            scale = 10 ** round(np.log10(abs(number_said / float(exact))))
            assert scale in (1, 100, 1e-3)
            assert number_said == pytest.approx(scale * float(exact), rel=6e-3 if scale == 100 else 6e-4, abs=0.006)


def test_the_run_tells_its_command_versions_settings_and_definitions(told, tiny):
    manifest = json.loads((tiny / "manifest.json").read_text())
    about = {r["what"]: r["value"] for r in told[1].rows("Run")}
    assert about["command"] == manifest["command"] and f"torch {manifest['versions']['torch']}" in about["versions"]
    assert "accuracy.csv" in about["tables of the run"] and "r-prices.csv" in about["tables beside this page"]
    settings = {r["setting"]: r["value"] for r in told[1].rows("Settings")}
    assert (settings["net.name"], settings["net.steps"], settings["device.weights.bits"]) == ("vgg5", "2", "1")
    stages = {r["stage"]: r["settings"] for r in told[1].rows("Settings", 1)}
    assert "from start" in stages["vat"] and "samples 4" in stages["account"]
    assert (tiny / "recipe.yaml").read_text() in "".join(told[1].text)
    definitions = {r["definition"]: r["value"] for r in told[1].rows("Definitions")}
    assert set(definitions) == set(Definitions.model_fields) and definitions["synapses"] == "inbounds"


# -------------------------------------------------------------------------------------------------- where it is written


def test_in_the_runs_folder_only_new_tables_are_written(run, monkeypatch):
    before = {p: p.read_bytes() for p in run.iterdir() if p.is_file()}
    done = hwsim("report", run)
    assert done.code == 0
    new = {p.name for p in run.iterdir() if p.is_file()} - {p.name for p in before}
    tables = ("firing-rates", "weight-levels", "raster", "metrics", "footprint", "prices")
    assert new == {"report.html", *(f"report-{t}.csv" for t in tables)}
    assert done.out.split() == [str(run / "report.html"), *(str(run / f"report-{t}.csv") for t in tables)]
    assert all(p.read_bytes() == content for p, content in before.items())
    first = (run / "report.html").read_bytes()
    totals = {(r["phase"], r["component"]): r["energy_pj"] for r in in_csv(run / "energy.csv") if r["layer"] == "TOTAL"}
    rows = Parsed(first).rows("Energy")
    assert {(r["phase"], r["component"]): r["horowitz_45nm (nJ)"] for r in rows} == totals

    assert hwsim("report", run).code == 0
    assert (run / "report.html").read_bytes() == first  # the same bytes, and no table lists itself
    assert hwsim("report", run / "account").code == 0  # a stage's folder will do
    assert (run / "report.html").read_bytes() == first
    monkeypatch.chdir(run)
    assert hwsim("report", ".").code == 0
    assert (run / "report.html").read_bytes() == first
    assert hwsim("report", run, "--card", "loihi").code == 0
    assert {r["card"] for r in in_csv(run / "report-energy.csv")} == {"loihi"}


def test_definitions_can_be_others_than_the_runs(run):
    assert "of 45 nm do not add up" in refused("report", run, "--card", "rram_crossbar_isaac+horowitz_45nm")
    done = hwsim(
        "report", run, "--to-node", "32", "--card", "rram_crossbar_isaac+horowitz_45nm", "--synapses", "fanout"
    )
    assert done.code == 0, done
    parsed = Parsed((run / "report.html").read_bytes())
    definitions = {r["definition"]: r["value"] for r in parsed.rows("Definitions")}
    assert (definitions["to_node_nm"], definitions["synapses"]) == ("32.0", "fanout")
    assert "crossbar" in {r["component"] for r in parsed.rows("Energy")}
    assert any("45 to 32 nm, cubic" in r["source"] for r in parsed.rows("Prices"))
    assert hwsim("report", run, "--pooled", "ac").code == 0
    actions = {r["action"] for r in in_csv(run / "report-energy.csv") if r["phase"] == "inference"}
    assert "ac" in actions and "mac" not in actions


def test_torch_is_not_imported(run):
    out, heavy = loaded_by("import runpy; runpy.run_module('hwsim', run_name='__main__')", "report", str(run))
    assert "report.html" in out
    assert heavy == {"matplotlib"}


def changed(run: Path, **values) -> None:
    path = run / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_without_counts_that_is_said_and_accuracy_is_shown(run):
    shutil.rmtree(run / "account")
    assert write_report(run, [], None) == [run / "report.html"]
    parsed = Parsed((run / "report.html").read_bytes())
    assert parsed.headings == ["Accuracy", "Energy, sparsity and spikes", "Settings", "Run"]
    assert "Left out: nothing was counted there" in "".join(parsed.text)
    assert "nothing was counted" in refused("report", run, "--card", "loihi")


def test_without_accuracy_that_is_said_and_counts_are_shown(run):
    (run / "accuracy.csv").unlink()
    write_report(run, [], None)
    parsed = Parsed((run / "report.html").read_bytes())
    assert parsed.headings == SECTIONS and "Accuracy" not in parsed.tables
    assert "Left out: no network was evaluated in this run." in "".join(parsed.text)


def test_an_unfinished_run_says_so(run):
    changed(run, state="running")
    (run / "accuracy.csv").unlink()
    (run / "account" / "stage.json").unlink()
    write_report(run, [], None)
    parsed = Parsed((run / "report.html").read_bytes())
    assert "This run has not finished" in "".join(parsed.text)
    assert "Left out: stage account has not finished." in "".join(parsed.text)
    changed(run, state="done")
    with pytest.raises(RunError, match=r"stage\.json"):
        write_report(run, [], None)


def test_mistakes_are_one_line_and_leave_nothing(run, tmp_path):
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert "is no run" in refused("report", tmp_path)
    assert "is no run" in refused("report", tmp_path / "nowhere")
    assert "horowitz_45nm" in refused("report", run, "--card", "horowitz_45")
    assert "named twice" in refused("report", run, "--card", "loihi", "--card", "loihi")
    assert "No such file" in refused("report", run, "--out", tmp_path / "none" / "x.html")
    assert "is a directory" in refused("report", run, "--out", tmp_path)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    trace = run / "account" / "trace.safetensors"
    trace.write_bytes(trace.read_bytes()[:-8])
    assert len(refused("report", run).splitlines()) == 1
    (run / "accuracy.csv").write_text("network,chips\nvat,many\n")
    assert "accuracy.csv: damaged" in refused("report", run)
    (run / "manifest.json").write_text("{")
    message = refused("report", run)
    assert "manifest.json" in message and "repeat the run's command" in message and "delete" not in message
    assert not list(run.glob("report*"))


def test_files_are_written_whole_when_everything_is_there_and_the_page_last(run, monkeypatch):
    written = []
    monkeypatch.setattr("hwsim.recipe.report.write_whole", lambda path, content: written.append(path))
    files = write_report(run, [], None)
    assert written == [*files[1:], files[0]] and not any(p.exists() for p in files)
    written.clear()
    monkeypatch.setattr("hwsim.recipe.report.page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(run, [], None)
    assert not written


# ------------------------------------------------------------------------------------------------------- odd names


ODD = "<script>alert('1')</script> & \"two\" ]]> –"


def test_odd_names_stand_for_themselves(run, tmp_path):
    changed(run, command=f"hwsim {ODD}")
    recipe = (run / "recipe.yaml").read_text(encoding="utf-8")
    recipe = re.sub(r"^title:.*", lambda _: f"title: {json.dumps(ODD)}", recipe, count=1, flags=re.M)
    (run / "recipe.yaml").write_text(recipe, encoding="utf-8")
    accuracy = (run / "accuracy.csv").read_text()
    (run / "accuracy.csv").write_text(accuracy.replace("vat,", "<b>vat</b>,"))
    card = tmp_path / "a&b<i>.yaml"
    price = f"{{pJ: 1, source: {json.dumps(ODD)}, evidence: assumed, note: {json.dumps(ODD)}}}"
    card.write_text(
        f"title: {json.dumps(ODD)}\nincludes: {json.dumps(ODD)}\n"
        f"covers: [synop]\nnode_nm: 5\nprices: {{synop: {price}}}\n",
        encoding="utf-8",
    )
    write_report(run, [str(card)], None)
    parsed = Parsed((run / "report.html").read_bytes())
    assert not {"script", "b", "i"} & set(parsed.tags)
    text = "".join(parsed.text)
    assert text.count(ODD) >= 6
    (price,) = parsed.rows("Prices")
    assert price["source"] == ODD and price["note"] == ODD
    assert "<b>vat</b>" in {r["network"] for r in parsed.rows("Accuracy")}
    assert any("a&b<i>" in h for h, _ in parsed.tables["Energy"][0][0])


def test_text_that_is_no_unicode_is_written_all_the_same():
    assert b"\\udc80" in page("a\udc80", {"": ["b\udc80"], "c<d>": ["\udc80"]})


def test_every_way_in_escapes():
    rows = [{"<i>": "<b>"}, {"<i>": 3}]
    parts = [table(rows, ["<i>"]), figure(PNG, '"><b>'), folded("<b>", "<b>"), verbatim("<b>"), "<b>"]
    parsed = Parsed(page("<b>", {"": ["<b>"], "<b>": parts}))
    assert "b" not in parsed.tags and "i" not in parsed.tags
    assert "".join(parsed.text).count("<b>") >= 8
    assert parsed.tables["<b>"] == [[[["<i>", None]], [["<b>", None]], [["3", "3"]]]]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (0.0, "0"), (0, "0"), (True, "True"), (-0.25, "-0.25"), (12345, "12 345"), (1e20, "1e+20"), (999.96, "1000"),
        (float("nan"), "unknown"), ("", ""), (None, "None"),
    ],
)  # fmt: skip
def test_how_a_value_is_shown(value, says):
    ((_, ((said, exact),)),) = Parsed(page("", {"t": [table([{"k": value}], ["k"])]})).tables["t"]
    assert said == says
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    assert exact == (f"{value:.10g}" if is_number else None)


# ------------------------------------------------------------------------------------------------------- distributions


def layer(**other) -> LayerCounts:
    """A linear layer of 2 inputs and 4 neurons, 5 images of 10 steps."""
    held = Held("synapse", 2, True, np.array([3, 4]), np.array([-0.5, 0.0, 0.5]), np.array([2, 1, 5]), 4, 3)
    settings = {
        "weight_shape": (4, 2), "image": (), "padding": (), "stride": (), "neurons": 4, "parts": 1, "signed": False,
        "unit": np.array([5, 0]), "fractional": np.array([0, 0]), "unit_T": np.arange(10),
        "fractional_T": np.zeros(10, int), "spikes_T": np.full(10, 5), "spikes_N": np.array([0, 1, 2, 50]),
        "held": [held],
    }  # fmt: skip
    return LayerCounts(**settings | other)


def made_up(**other) -> Counts:
    spikes = np.zeros((10, 4), bool)
    spikes[3, 1] = spikes[9, 3] = True
    return Counts(10, 5, {"fc1": layer(**other)}, {"fc1": spikes})


def test_firing_rates_by_hand():
    rows = list(rate_rows(made_up(), "r"))
    # 50 bins, 50 steps and images: one spike is exactly on the upper edge of the first bin.
    assert len(rows) == 51
    assert {(r["rate_above"], r["rate_to"]): r["neurons"] for r in rows if r["neurons"]} == {
        (0.0, 0.0): 1, (0.0, 0.02): 1, (0.02, 0.04): 1, (0.98, 1.0): 1,
    }  # fmt: skip
    assert sum(r["neurons_fraction"] for r in rows) == pytest.approx(1)


def test_firing_rates_and_weights_of_a_run_add_up(tiny):
    counts = read_trace(tiny)
    rates, weights = list(rate_rows(counts, "r")), list(weight_rows(counts, "r"))
    for name, here in counts.layers.items():
        own = [r for r in rates if r["layer"] == name]
        assert sum(r["neurons"] for r in own) == here.neurons
        for r in own:
            rate = here.spikes_N / (counts.images * counts.steps)
            inside = (rate > r["rate_above"] + 1e-12) & (rate <= r["rate_to"] + 1e-12)
            assert r["neurons"] == ((rate == 0) if r["rate_to"] == 0 else inside).sum()
        assert sum(r["weights"] for r in weights if r["layer"] == name) == here.weights


def test_weights_by_hand():
    rows = list(weight_rows(made_up(), "r"))
    assert [(r["weight"], r["bin_width"], r["weights"], r["weights_fraction"]) for r in rows] == [
        (-0.5, 0, 2, 0.25), (0.0, 0, 1, 0.125), (0.5, 0, 5, 0.625),
    ]  # fmt: skip


def test_many_weight_values_are_told_in_bins():
    values, at = np.arange(-320, 320) / 64 + 1 / 128, np.arange(640)
    many = Held("synapse", 32, False, np.array([4, 4]), values, at, 4, 640)
    rows = list(weight_rows(made_up(held=[many]), "r"))
    assert len(rows) == 64 and sum(r["weights"] for r in rows) == at.sum()
    width = (values[-1] - values[0]) / 64
    for i, r in enumerate(rows):
        assert r["bin_width"] == pytest.approx(width) and r["weight"] == pytest.approx(values[0] + (i + 0.5) * width)
        inside = np.abs(values - r["weight"]) < width / 2
        assert at[inside].sum() <= r["weights"] <= at[np.abs(values - r["weight"]) <= width / 2 + 1e-9].sum()
        assert r["weights_fraction"] == pytest.approx(r["weights"] / at.sum())
    exact = Held("synapse", 8, False, np.array([4, 4]), values[:256], at[:256], 4, 256)
    assert len(list(weight_rows(made_up(held=[exact]), "r"))) == 256


def test_a_raster_shows_all_of_a_small_layer_and_some_of_a_large_one():
    counts = made_up()
    assert [(r["timestep"], r["neuron"]) for r in raster_rows(counts, "r")] == [(4, 1), (10, 3)]
    n = 2 * NEURONS + 7
    counts.layers["fc1"].neurons, counts.raster["fc1"] = n, np.ones((10, n), bool)
    shown, spikes = raster(counts)["fc1"]
    assert len(shown) == len(set(shown)) == NEURONS and shown[0] == 0 and n - 4 < shown[-1] < n
    rows = list(raster_rows(counts, "r"))
    assert spikes.shape == (10, NEURONS) and len(rows) == 10 * NEURONS
    assert {r["neuron"] for r in rows} == set(shown.tolist()) and {r["timestep"] for r in rows} == set(range(1, 11))
    counts.layers["fc1"].neurons = 0
    assert raster(counts) == {} and list(rate_rows(counts, "r")) == []


def test_figures_are_drawn_of_extremes():
    """Nothing fires; everything fires; one weight value; a layer without neurons; many layers."""
    rows = [{"layer": f"l{i}", "timestep": t, "neurons": 4 * (i > 0), "zeros_fraction": 1.0 if i else "",
             "inputs": t % 2, "nonzero_inputs": 0.0} for i in range(3) for t in (1, 2)]  # fmt: skip
    assert sparsity_figure(rows, "t").startswith(PNG)
    for spikes in (np.zeros(4, int), np.full(4, 50)):
        assert rate_figure(list(rate_rows(made_up(spikes_N=spikes), "r")), "t").startswith(PNG)
    one = Held("sram", 4, False, np.array([0, 0]), np.array([0.0]), np.array([8]), 4, 1)
    assert weight_figure(list(weight_rows(made_up(held=[one]), "r")), "t").startswith(PNG)
    many = Counts(10, 5, {f"l{i}": layer() for i in range(18)}, {})
    assert weight_figure(list(weight_rows(many, "r")), "t").startswith(PNG)
    assert raster_figure({"a": np.zeros((1, 1), bool), "b": np.ones((1, 3), bool)}, "t").startswith(PNG)


def test_figures_show_their_rows():
    """Other numbers, another picture."""
    rates, weights = list(rate_rows(made_up(), "r")), list(weight_rows(made_up(), "r"))
    other = list(rate_rows(made_up(spikes_N=np.array([0, 1, 2, 40])), "r"))
    assert rate_figure(rates, "t") == rate_figure(rates, "t") != rate_figure(other, "t")
    moved = [{**r, "weights_fraction": 1 / 3} for r in weights]
    assert weight_figure(weights, "t") != weight_figure(moved, "t")
    two, swapped = (
        [{**r, "layer": name} for name, each in zip("ab", order, strict=True) for r in each]
        for order in ((weights, moved), (moved, weights))
    )
    assert weight_figure(two, "t") != weight_figure(swapped, "t")
    inputs = [{"layer": "a", "timestep": t, "neurons": 4, "zeros_fraction": 0.5, "inputs": 4, "nonzero_inputs": t}
              for t in (1, 2)]  # fmt: skip
    other = [{**r, "nonzero_inputs": 3 - r["timestep"]} for r in inputs]
    assert sparsity_figure(inputs, "t") != sparsity_figure(other, "t")
    spikes = {"fc1": made_up().raster["fc1"]}
    assert raster_figure(spikes, "t") != raster_figure({"fc1": ~spikes["fc1"]}, "t")


def test_of_an_ensemble_the_first_network_is_shown_and_all_are_in_the_tables(tiny):
    from hwsim.report.sections import Counted, activity, metrics

    together = Counts(10, 5)
    for name in ("shift0", "shift1"):
        together.beside(made_up(), name)
    files = {}
    parsed = Parsed(page("t", activity(Counted("r", "of", together), files)))
    assert "".join(parsed.text).count("Shown: the first network of the ensemble.") == 3
    for name in ("firing-rates", "weight-levels", "raster", "sparsity"):
        rows = list(csv.DictReader(io.StringIO(files[name].decode())))
        assert {r["layer"] for r in rows} == {"fc1@shift0", "fc1@shift1"}, name
    metrics(Counted("r", "of", together), files)
    assert files["metrics"].count(b"fc1@shift1") == 8


# ------------------------------------------------------------------------------------------------------- provenance


def test_prices_are_all_that_the_actions_used_at_the_sizes_that_occurred(tiny):
    counts, prices = read_trace(tiny), Prices.load("horowitz_45nm")
    rows = {r["element"]: r for r in price_rows(counts, prices, Definitions())}
    used = {}
    for a in actions(counts, prices, Definitions()):
        for element in a.elements:
            used.setdefault(element, []).append(prices.of(element, a.bits, a.kib).pJ)
            assert f"{a.component} {a.action}" in rows[element]["used_for"]
    assert set(rows) == set(used) and "add_int8" not in rows
    for element, values in used.items():
        assert (rows[element]["price_lowest"], rows[element]["price_highest"]) == (min(values), max(values))
    assert rows["memory_read"]["law"] == "by capacity" and rows["add_fp32"]["law"] == "one number"
    assert rows["add_fp32"]["node_nm"] == 45


def test_prices_that_were_scaled_say_so_and_static_power_is_in_milliwatt(tiny):
    counts = read_trace(tiny)
    scaled = price_rows(counts, Prices.load("loihi", 28), Definitions())
    assert all("x 8, 14 to 28 nm, cubic" in r["source"] for r in scaled)
    assert {r["price_lowest"] for r in scaled} == {8 * 27.1, 8 * 81}
    definitions = Definitions(step_time_us=10.0)
    rows = price_rows(counts, Prices.load("sram_cacti_32nm"), definitions)
    (static,) = [r for r in rows if r["element"] == "static memory"]
    law = load_card("sram_cacti_32nm").static["memory"]
    assert static["unit"] == "mW" and static["price_lowest"] == pytest.approx(law.milliwatt(1.0))  # the smallest macro
    assert static["price_lowest"] < static["price_highest"] < 100 * static["price_lowest"]
    assert static["used_for"] == "static leakage" and static["source"]


def test_cards_that_do_not_fit_are_refused(tiny, tmp_path):
    with pytest.raises(CardError, match="no price"):
        write_report(tiny, ["rram_crossbar_isaac"], tmp_path / "x.html")
    assert not list(tmp_path.iterdir())
