"""Crossbars: mappings and actions counted by hand and by loops over windows, cells and bits; the cards' prices."""

import functools
import itertools
import re
from collections import Counter

import counted
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cards import DEVICES, changed, numbers
from torch import nn

from hwsim.config import CardError, ConfigError, Document, RunError, check, read_yaml
from hwsim.device.card import load_card
from hwsim.device.crossbar import Crossbar, map_layer, outputs_by_array
from hwsim.device.price import AdcSurvey
from hwsim.device.pricelist import Prices
from hwsim.device.schema import Card
from hwsim.network.arrivals import active_windows
from hwsim.report.action import Action, Definitions
from hwsim.report.crossbar import ann_actions, crossbar_actions, sum_bits
from hwsim.report.work import update_actions

CARDS = ("rram_crossbar_spikesim", "rram_crossbar_isaac", "rram_crossbar_neurram")
SKIP, READ_ALL = Definitions(), Definitions(skip_zero_windows=False)


def arrays_of(**over) -> Crossbar:
    said = {
        "rows": 4, "columns": 8, "bits_per_cell": 1, "signs": "differential", "adc_bits": 3, "columns_per_adc": 4,
        "input_bits": 2, "source": "made up", "evidence": "assumed",
    }  # fmt: skip
    return Crossbar(**said | over)


def conv(channels: int, outputs: int, kernel, padding=0, stride=1) -> nn.Conv2d:
    return nn.Conv2d(channels, outputs, kernel, padding=padding, stride=stride, bias=False)


def actions(counts, crossbar: Crossbar, definitions: Definitions = SKIP) -> list[Action]:
    (layer,) = counts.layers.values()
    return list(crossbar_actions("layer", layer, layer.held[0], crossbar, definitions, counts.images))


def totals(found: list[Action]) -> dict[str, float]:
    out: Counter[str] = Counter()
    for a in found:
        out[a.action] += a.count
    return dict(out)


def by_bits(found: list[Action]) -> dict[tuple[str, int], float]:
    assert len({(a.action, a.bits) for a in found}) == len(found)
    return {(a.action, a.bits): a.count for a in found}


# ---------------------------------------------------------------------------------------------- mappings by hand


def test_a_convolution_that_fills_its_arrays_exactly_uses_every_cell():
    # 2x3x3 = 18 rows on 9: 2 tiles. 3 bits: 2 of magnitude on 1-bit cells, 2 pairs an output; 4 outputs on 16 columns.
    mapping = map_layer(arrays_of(rows=9, columns=16), (4, 2, 3, 3), 3)
    assert mapping[:6] == (18, 4, 2, 2, 1, 16)
    assert (mapping.arrays, mapping.cells, mapping.used_cells, mapping.adcs) == (2, 288, 288, 8)
    assert mapping.utilization == 1.0


def test_a_short_last_tile_of_rows_leaves_cells_unused():
    mapping = map_layer(arrays_of(rows=16, columns=16), (4, 2, 3, 3), 3)
    assert (mapping.row_tiles, mapping.arrays, mapping.used_cells, mapping.cells) == (2, 2, 18 * 16, 2 * 16 * 16)
    assert mapping.utilization == 18 / 32


@pytest.mark.parametrize(
    ("signs", "bits", "per_cell", "slices"),
    [
        ("differential", 1, 1, 1), ("differential", 2, 1, 1), ("differential", 5, 1, 4), ("differential", 5, 3, 2),
        ("paired_rows", 1, 1, 1), ("paired_rows", 4, 3, 1), ("paired_rows", 8, 3, 3),
        ("offset", 1, 1, 1), ("offset", 2, 1, 2), ("offset", 16, 2, 8), ("offset", 5, 2, 3),
    ],
)  # fmt: skip
def test_signs_take_a_bit_of_a_pair_and_none_of_an_offset(signs, bits, per_cell, slices):
    crossbar = arrays_of(signs=signs, columns=64, bits_per_cell=per_cell)
    assert map_layer(crossbar, (1, 1), bits).slices == slices


def test_an_offset_takes_a_column_of_every_array():
    # 8 columns, 7 for weights, 3 slices a weight: 2 outputs an array, 5 outputs on 3 arrays: 15 columns and 3 offsets.
    mapping = map_layer(arrays_of(signs="offset"), (5, 4), 3)
    assert (mapping.column_tiles, mapping.columns, mapping.used_cells, mapping.cells) == (3, 18, 72, 96)
    assert outputs_by_array(arrays_of(signs="offset"), mapping) == {2: 2, 1: 1}


def test_pairs_of_rows_have_two_cells_at_every_place_and_one_column_a_slice():
    mapping = map_layer(arrays_of(signs="paired_rows"), (5, 4), 3)  # 2 slices: 4 outputs an array
    assert (mapping.column_tiles, mapping.columns, mapping.cells, mapping.used_cells) == (2, 10, 2 * 64, 2 * 40)


def test_a_weight_too_wide_for_an_array_is_spread_over_several():
    # 5 slices of two columns, 4 of which fit in 8 columns: 2 arrays an output.
    mapping = map_layer(arrays_of(), (3, 4), 6)
    assert (mapping.slices, mapping.column_tiles, mapping.columns, mapping.arrays_of_output) == (5, 6, 30, 2)
    assert outputs_by_array(arrays_of(), mapping) == {1: 6}


def test_a_pair_is_never_torn_apart():
    assert map_layer(arrays_of(columns=5), (4, 4), 2).column_tiles == 2


def test_converters_are_shared_by_columns_and_the_last_may_have_fewer():
    assert map_layer(arrays_of(columns=10, columns_per_adc=4), (4, 4), 2).adcs == 3


@pytest.mark.parametrize("signs", ["differential", "offset"])
def test_an_array_of_one_column_cannot_hold_signed_weights(signs):
    with pytest.raises(ValueError, match="columns: 1 is too few"):
        arrays_of(columns=1, signs=signs)
    assert arrays_of(columns=1, signs="paired_rows").slices_across == 1


def test_weights_of_no_bits_are_refused():
    with pytest.raises(CardError, match="at least 1 bit, found 0"):
        map_layer(arrays_of(), (4, 4), 0)


# ----------------------------------------------------------------------------------------------- actions by hand


def spike_at(row: int, column: int, value: float = 1.0, size: int = 4) -> torch.Tensor:
    x = torch.zeros(1, 1, 1, size, size)
    x[0, 0, 0, row, column] = value
    return x


def test_one_spike_in_the_middle_drives_one_row_in_each_of_nine_windows():
    # 9 rows on tiles of 4, 4 and 1; the spike is kernel element 0 … 8 of nine windows: 4, 4 and 1 windows are active.
    # 3 bits: 2 pairs an output, 2 outputs on 8 columns: one array each.
    counts = counted.one_layer(conv(1, 2, 3, padding=1), spike_at(1, 1), held=[counted.array((2, 1, 3, 3), bits=3)])
    found = actions(counts, arrays_of())
    word = sum_bits(map_layer(arrays_of(), (2, 1, 3, 3), 3), arrays_of(), 1)
    assert word == 1 + 5  # 7 (1 + 2) = 21
    assert by_bits(found) == {
        ("row_drive", 1): 9, ("array_read", 1): 9, ("mux", 1): 72, ("adc_conversion", 3): 72, ("subtract", 3): 36,
        ("shift_add", word): 18, ("tile_add", word): 18,
        ("buffer_read", 4): 8, ("buffer_read", 1): 1, ("register_read", 4): 8, ("register_read", 1): 1,
        ("register_write", 12): 9, ("interconnect", 16): 8, ("interconnect", 13): 1, ("buffer_write", 12): 9,
        ("route", 12): 9,
    }  # fmt: skip
    assert {a.elements for a in found} == {(a.action,) for a in found}
    assert {(a.component, a.phase, a.layer, a.timesteps, a.weight_bits, a.input_bits) for a in found} == {
        ("crossbar", "inference", "layer", 1, 3, 1)
    }
    assert {(a.input_density, a.weight_density) for a in found} == {(1 / 16, 1.0)}


def test_a_spike_in_the_corner_meets_four_windows_with_padding_and_one_without():
    for padding, windows in ((1, 4), (0, 1)):
        counts = counted.one_layer(conv(1, 1, 3, padding=padding), spike_at(0, 0))
        assert totals(actions(counts, arrays_of(rows=256)))["row_drive"] == windows


def test_stride_two_reads_fewer_windows():
    # Output places are at rows and columns 0 and 2 of the padded image's windows: only the window at (1, 1) has (3, 3).
    counts = counted.one_layer(conv(1, 1, 3, padding=1, stride=2), spike_at(3, 3))
    got = totals(actions(counts, arrays_of(rows=256)))
    assert (got["array_read"], got["row_drive"]) == (1, 1)
    assert totals(actions(counts, arrays_of(rows=256), READ_ALL))["array_read"] == 4


def test_pruned_weights_are_read_like_the_others():
    layer = conv(1, 2, 3)
    held = [counted.array((2, 1, 3, 3), bits=3, zeros=z) for z in ([], [(0, 0, 1, 1), (1, 0, 0, 0)])]
    dense, pruned = (actions(counted.one_layer(layer, spike_at(1, 1), held=[h]), arrays_of()) for h in held)
    assert by_bits(dense) == by_bits(pruned)
    assert pruned[0].weight_density == 16 / 18


def test_averages_of_four_spikes_go_in_by_three_bits():
    counts = counted.one_layer(nn.Linear(2, 1, bias=False), [[[0.25, 1.0]]], parts=4)
    got = totals(actions(counts, arrays_of()))  # 4 bits on 1-bit cells: 3 slices, 6 columns
    assert (got["row_drive"], got["array_read"], got["adc_conversion"]) == (6, 3, 18)
    assert (got["subtract"], got["shift_add"]) == (9, 8)
    assert "tile_add" not in got


def test_analog_inputs_go_in_by_the_bits_of_the_card():
    counts = counted.one_layer(nn.Linear(2, 1, bias=False), [[[0.3, 1.0]]], parts=0)
    assert totals(actions(counts, arrays_of(input_bits=7)))["row_drive"] == 14


def test_charge_joins_bits_before_one_conversion():
    counts = counted.one_layer(nn.Linear(2, 1, bias=False), [[[0.25, 1.0]]], parts=4)
    got = totals(actions(counts, arrays_of(joins_bits="analog")))
    assert (got["array_read"], got["sample"], got["integrate"], got["adc_conversion"]) == (3, 42, 42, 6)
    assert (got["subtract"], got["shift_add"]) == (3, 2)


def test_an_offset_is_converted_summed_and_taken_off_once():
    # 4 bits on 2-bit cells: 2 slices; 3 outputs and the offset on 7 of 8 columns; inputs of 3 bits.
    counts = counted.one_layer(nn.Linear(2, 3, bias=False), [[[0.25, 1.0]]], parts=4)
    got = totals(actions(counts, arrays_of(signs="offset", bits_per_cell=2)))
    assert (got["adc_conversion"], got["subtract"], got["shift_add"]) == (21, 3, 3 * 5 + 2)


def test_actions_that_the_card_leaves_out_are_not_counted():
    counts = counted.one_layer(conv(1, 2, 3), spike_at(1, 1))
    every = by_bits(actions(counts, arrays_of()))
    left_out = {"route": "a reason", "mux": "another"}
    assert by_bits(actions(counts, arrays_of(left_out=left_out))) == {
        k: v for k, v in every.items() if k[0] not in left_out
    }
    with pytest.raises(ValueError, match="rout"):
        arrays_of(left_out={"rout": "a reason"})


def test_windows_of_another_height_are_refused_unless_one_tile_holds_the_layer():
    counts = counted.one_layer(conv(1, 2, 3), spike_at(1, 1), rows=(3, 16))
    with pytest.raises(RunError) as e:
        actions(counts, arrays_of(rows=5))
    assert str(e.value) == (
        "layer layer: windows without an active input were counted for arrays of 3, 16 rows, the card's have 5; "
        "account again with --set stages.account.window_rows=[3,16,5], or do not skip zero windows"
    )
    assert actions(counts, arrays_of(rows=5), READ_ALL)
    of_the_same = counted.one_layer(conv(1, 2, 3), spike_at(1, 1), rows=(12,))
    assert by_bits(actions(counts, arrays_of(rows=9))) == by_bits(actions(of_the_same, arrays_of(rows=12)))


# ----------------------------------------------------------------------------------------------------- by loops


def placed(crossbar: Crossbar, outputs: int, slices: int) -> list[list[tuple[int, int]]]:
    """Arrays side by side, each the (output, slice) that it holds, filled one weight after the other."""
    pair = 2 if crossbar.signs == "differential" else 1
    room = crossbar.columns - (crossbar.signs == "offset")
    arrays: list[list[tuple[int, int]]] = []
    for o in range(outputs):
        here = [(o, s) for s in range(slices)]
        if arrays and (len(arrays[-1]) + slices) * pair <= room:
            arrays[-1] += here
            continue
        arrays.append([])
        for each in here:
            if (len(arrays[-1]) + 1) * pair > room:
                arrays.append([])
            arrays[-1].append(each)
    return arrays


def windows_of(layer: nn.Module, x: torch.Tensor) -> list[list[float]]:
    """The inputs of every window, [window][row], padding as 0."""
    out = []
    for image in x.flatten(0, 1):
        if not isinstance(layer, nn.Conv2d):
            out.append(image.tolist())
            continue
        (kh, kw), (ph, pw), (sh, sw) = layer.kernel_size, layer.padding, layer.stride
        C, H, W = image.shape
        padded = np.zeros((C, H + 2 * ph, W + 2 * pw))
        padded[:, ph : ph + H, pw : pw + W] = image.numpy()
        for r, c in itertools.product(range(0, H + 2 * ph - kh + 1, sh), range(0, W + 2 * pw - kw + 1, sw)):
            places = itertools.product(range(C), range(kh), range(kw))
            out.append([padded[ch, r + dy, c + dx] for ch, dy, dx in places])
    return out


def largest_sum(crossbar: Crossbar, slices: int, bits: int) -> int:
    top = 2**crossbar.adc_bits - 1
    return sum(top << (s * crossbar.bits_per_cell + b) for s in range(slices) for b in range(bits))


def by_loops(layer: nn.Module, x: torch.Tensor, weight_bits: int, bits: int, crossbar: Crossbar, skip: bool) -> dict:
    """Every action of `crossbar_actions`, one by one, summed over images; and the mapping's numbers."""
    signs, charge = crossbar.signs, crossbar.joins_bits == "analog"
    outputs = len(layer.weight)
    slices, covered = 0, 0
    while covered < (weight_bits if signs == "offset" else max(1, weight_bits - 1)):
        slices, covered = slices + 1, covered + crossbar.bits_per_cell
    side = placed(crossbar, outputs, slices)
    each = [len(a) * (2 if signs == "differential" else 1) + (signs == "offset") for a in side]
    assert all(n <= crossbar.columns for n in each)
    windows = windows_of(layer, x)
    tiles = [range(i, min(i + crossbar.rows, len(windows[0]))) for i in range(0, len(windows[0]), crossbar.rows)]
    convert = 1 if charge else bits
    word = 1 + len(bin(largest_sum(crossbar, slices, convert))) - 2
    got: Counter[tuple[str, int]] = Counter()
    for window, tile in itertools.product(windows, tiles):
        driven = sum(window[row] != 0 for row in tile)
        if skip and not driven:
            continue
        got["buffer_read", len(tile) * bits] += 1
        pieces: Counter[int] = Counter()  # values that join the sum of an output
        for array, columns in zip(side, each, strict=True):
            here = {o for o, _ in array}
            for bit in range(bits):
                got["row_drive", 1] += driven
                got["array_read", 1] += 1
                if charge:
                    got["sample", 1] += columns * 2**bit
                    got["integrate", 1] += columns * 2**bit
                if charge and bit < bits - 1:
                    continue
                got["adc_conversion", crossbar.adc_bits] += columns
                got["mux", 1] += columns if crossbar.columns_per_adc > 1 else 0
                for o, _ in array:
                    pieces[o] += 1
                    got["subtract", crossbar.adc_bits] += signs == "differential"
            if signs == "offset":
                got["shift_add", word] += convert - 1
                got["subtract", word] += len(here)
            got["register_read", len(tile) * bits] += 1
            got["register_write", len(here) * word] += 1
            got["interconnect", len(tile) * bits + len(here) * word] += 1
        for o in range(outputs):
            got["shift_add", word] += pieces[o] - 1
            got["tile_add", word] += len(tiles) > 1
        got["buffer_write", outputs * word] += 1
        got["route", outputs * word] += 1
    mapping = (len(tiles), len(side), sum(each), len(tiles) * len(side), sum(len(t) for t in tiles) * sum(each))
    return {"actions": {k: v for k, v in got.items() if v}, "mapping": mapping}


@st.composite
def cases(draw):
    def whole(low, high):
        return draw(st.integers(low, high))

    signs = draw(st.sampled_from(["differential", "offset", "paired_rows"]))
    crossbar = arrays_of(
        rows=whole(1, 9), columns=whole(2, 9), bits_per_cell=whole(1, 3), signs=signs, adc_bits=whole(1, 5),
        columns_per_adc=whole(1, 4), input_bits=whole(1, 3), joins_bits=draw(st.sampled_from(["digital", "analog"])),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(whole(0, 10**6))
    T, B, C, outputs = whole(1, 2), whole(1, 2), whole(1, 3), whole(1, 5)
    parts = draw(st.sampled_from([0, 1, 4]))
    if draw(st.booleans()):
        layer = conv(C, outputs, (whole(1, 3), whole(1, 3)), (whole(0, 2), whole(0, 2)), (whole(1, 3), whole(1, 3)))
        shape = (T, B, C, whole(3, 5), whole(3, 5))
    else:
        layer, shape = nn.Linear(7 * C, outputs, bias=False), (T, B, 7 * C)
    x = torch.randint(-(parts or 5), (parts or 5) + 1, shape, generator=generator) / (parts or 5)
    x = x * (torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.05, 0.3, 1.0])))
    return layer, x, parts, whole(1, 6), crossbar, draw(st.booleans())


@settings(max_examples=150)
@given(cases())
def test_every_count_is_that_of_a_loop_over_windows_arrays_and_bits(case):
    layer, x, parts, weight_bits, crossbar, skip = case
    held = counted.array(tuple(layer.weight.shape), bits=weight_bits)
    counts = counted.one_layer(layer, x, parts=parts, held=[held], rows=(crossbar.rows,))
    definitions = Definitions(skip_zero_windows=skip)
    bits = {0: crossbar.input_bits, 1: 1, 4: 3}[parts]
    slow = by_loops(layer, x, weight_bits, bits, crossbar, skip)
    fast = by_bits(actions(counts, crossbar, definitions))
    assert {k: v * counts.images for k, v in fast.items()} == pytest.approx(slow["actions"], rel=1e-12)
    mapping = map_layer(crossbar, tuple(layer.weight.shape), weight_bits)
    cells = 2 if crossbar.signs == "paired_rows" else 1
    found = (mapping.row_tiles, mapping.column_tiles, mapping.columns, mapping.arrays, mapping.used_cells // cells)
    assert found == slow["mapping"]
    assert 0 < mapping.utilization <= 1
    given_by_arrays = sum(n * tiles for n, tiles in outputs_by_array(crossbar, mapping).items())
    assert given_by_arrays == mapping.outputs * mapping.arrays_of_output


@settings(max_examples=60)
@given(cases())
def test_active_windows_of_every_row_tile_are_those_of_a_loop(case):
    layer, x, *_ = case
    windows = windows_of(layer, x)
    fan_in = len(windows[0])
    heights = (1, 2, 5, fan_in, 64)
    for height, found in active_windows(layer, x != 0, heights).items():
        tiles = [slice(i, i + height) for i in range(0, fan_in, height)]
        assert found.tolist() == [sum(any(w[tile]) for w in windows) for tile in tiles]


@settings(max_examples=30)
@given(cases())
def test_the_ordinary_network_reads_every_window_of_a_full_image_once(case):
    layer, x, _, weight_bits, crossbar, _ = case
    held = counted.array(tuple(layer.weight.shape), bits=weight_bits)
    counts = counted.one_layer(layer, x, held=[held], rows=(crossbar.rows,))
    found = list(ann_actions("layer", counts.layers["layer"], held, crossbar))
    full = torch.ones_like(x[:1, :1])
    assert by_bits(found) == by_loops(layer, full, weight_bits, crossbar.input_bits, crossbar, False)["actions"]
    assert {(a.phase, a.timesteps, a.input_density, a.input_bits) for a in found} == {
        ("ann_inference", 1, 1.0, crossbar.input_bits)
    }


# ------------------------------------------------------------------------------------------------------- the laws


def energy(counts, prices: Prices, definitions: Definitions) -> float:
    """Count times price, layer by layer, the ordinary network and neurons included."""
    total = 0.0
    for name, layer in counts.layers.items():
        work = [*crossbar_actions(name, layer, layer.held[0], prices.crossbar, definitions, counts.images)]
        work += [*ann_actions(name, layer, layer.held[0], prices.crossbar)]
        work += [*update_actions(name, layer, "inference")] if "neuron" in prices.covers else []
        total += sum(prices.of(e, a.bits, a.kib).pJ * a.count for a in work for e in a.elements)
    return total


@functools.cache
def network_counts(coding: str = "direct", bits: int = 6):
    net = counted.network(coding)
    counts = counted.counted(net, counted.picture(3))
    for layer in counts.layers.values():
        layer.held = [counted.array(layer.weight_shape, bits=bits, cells=True)]
    return counts


def test_nothing_arrives_and_nothing_is_done_when_zero_windows_are_skipped():
    counts = counted.silenced(network_counts("poisson"))
    for name, layer in counts.layers.items():
        assert not list(crossbar_actions(name, layer, layer.held[0], arrays_of(), SKIP, counts.images))
        read = totals(list(crossbar_actions(name, layer, layer.held[0], arrays_of(), READ_ALL, counts.images)))
        assert read["array_read"] > 0 and "row_drive" not in read


@pytest.mark.parametrize("definitions", [SKIP, READ_ALL])
def test_more_spikes_never_take_fewer_actions(definitions, generator):
    layer, shape = conv(3, 4, 3, padding=1), (2, 2, 3, 5, 5)
    order = torch.rand(shape, generator=generator)
    before: dict = {}
    for rate in (0.0, 0.02, 0.1, 0.5, 1.0):
        counts = counted.one_layer(layer, (order < rate).float())
        got = by_bits(actions(counts, arrays_of(), definitions))
        assert all(got[k] >= v for k, v in before.items())
        assert rate == 0 or got["row_drive", 1] > before.get(("row_drive", 1), 0)
        before = got


@pytest.mark.parametrize("definitions", [SKIP, READ_ALL])
def test_twice_the_steps_of_a_constant_input_are_twice_the_actions(definitions):
    counts = network_counts("poisson")
    twice = counted.repeated(counts)
    for name, layer in counts.layers.items():
        once, double = (
            by_bits(list(crossbar_actions(name, c.layers[name], layer.held[0], arrays_of(), definitions, c.images)))
            for c in (counts, twice)
        )
        assert double == pytest.approx({k: 2 * v for k, v in once.items()})


def test_skipping_never_takes_more_and_drives_the_same_rows():
    counts = network_counts("poisson")
    for name, layer in counts.layers.items():
        skip, every = (
            by_bits(list(crossbar_actions(name, layer, layer.held[0], arrays_of(), d, counts.images)))
            for d in (SKIP, READ_ALL)
        )
        assert skip["row_drive", 1] == every["row_drive", 1]
        assert all(skip.get(k, 0) <= v for k, v in every.items())


# ------------------------------------------------------------------------------------------------------- the cards


@pytest.mark.parametrize("name", CARDS)
def test_a_card_prices_every_action_that_occurs_and_no_other(name):
    prices = Prices.load(name)
    occurring = set()
    for coding, bits in itertools.product(("poisson", "direct"), (1, 4, 16)):
        counts = network_counts(coding, bits)
        for layer_name, layer in counts.layers.items():
            found = list(crossbar_actions(layer_name, layer, layer.held[0], prices.crossbar, READ_ALL, counts.images))
            found += ann_actions(layer_name, layer, layer.held[0], prices.crossbar)
            occurring |= {e for a in found for e in a.elements}
    wide = counted.array((2, 3000), bits=4)
    layer = counted.one_layer(nn.Linear(3000, 2, bias=False), torch.ones(1, 1, 3000), held=[wide]).layers["layer"]
    occurring |= {a.action for a in crossbar_actions("layer", layer, wide, prices.crossbar, READ_ALL, 1)}
    card = load_card(name)
    assert occurring == set(card.prices) - {"neuron_update"}
    assert not occurring & set(card.crossbar.left_out)
    assert all(price.source and price.note for price in card.prices.values())


def places_of(name: str):
    return list(numbers(read_yaml(DEVICES / f"{name}.yaml").data))


@pytest.mark.parametrize(("name", "place"), [(n, p) for n in CARDS for p in places_of(n) if p[0] == "prices"])
def test_a_price_that_grows_by_a_tenth_makes_the_energy_grow(name, place):
    data = read_yaml(DEVICES / f"{name}.yaml").data
    counts = network_counts()
    held = counted.array((40, 300), bits=6)
    wide = counted.one_layer(nn.Linear(300, 40, bias=False), torch.ones(1, 1, 300), held=[held])
    factor = 2 if place[-1] == "word_bits" else 1.1
    cards = [check(Card, Document(d, name)) for d in (data, changed(data, place, factor))]
    before, after = (sum(energy(c, Prices([card]), READ_ALL) for c in (counts, wide)) for card in cards)
    assert after < before if place[-1] == "word_bits" else after > before


@pytest.mark.parametrize(("name", "place"), [(n, p) for n in CARDS for p in places_of(n) if p[0] == "crossbar"])
def test_every_size_on_a_card_moves_the_mapping_or_the_work(name, place):
    data = read_yaml(DEVICES / f"{name}.yaml").data
    held = counted.array((40, 300), bits=6)
    x = torch.rand(1, 1, 300)
    if place[-1] == "columns_per_adc" and name.endswith("isaac"):  # one converter an array: more columns change nothing
        data["crossbar"]["columns_per_adc"] = 64
    got = []
    for d in (data, changed(data, place, 2)):
        card = check(Card, Document(d, name))
        counts = counted.one_layer(nn.Linear(300, 40, bias=False), x, parts=0, held=[held], rows=(card.crossbar.rows,))
        got.append((map_layer(card.crossbar, (40, 300), 6), by_bits(actions(counts, card.crossbar))))
    assert got[0] != got[1]


def test_the_sram_constant_that_is_an_area_is_on_no_card():
    prices = load_card("rram_crossbar_spikesim").prices
    assert 671.089 not in {p.pJ for p in prices.values()} | {p.pJ_per_bit for p in prices.values()}
    assert "671.089" in (DEVICES / "rram_crossbar_spikesim.yaml").read_text(encoding="utf-8")
    assert "Suspicious" in prices["subtract"].note


def test_prices_a_bit_are_the_sources_constants_over_the_bits_of_their_reading():
    spikesim, isaac, neurram = (load_card(name).prices for name in CARDS)
    assert spikesim["buffer_read"].at(64) == pytest.approx(397, rel=1e-6)
    assert spikesim["register_read"].at(64) == pytest.approx(4.64, rel=1e-6)
    assert spikesim["interconnect"].at(64 + 32 * 5) == pytest.approx(157.12, rel=1e-5)
    assert spikesim["shift_add"].pJ == pytest.approx(0.1 * (65 / 45) ** 3, rel=1e-3)
    assert isaac["route"].at(256) == pytest.approx(20.74, rel=1e-5)
    assert (isaac["buffer_read"].at(257), isaac["buffer_write"].at(256)) == (40.9, 20.45)
    assert isaac["row_drive"].pJ == pytest.approx(4e9 / 1024 * 128 / 1.2e9, rel=1e-4)  # pW s: 4 mW of 1024 drivers
    assert isaac["array_read"].pJ == pytest.approx(0.3e9 * 128 / 1.2e9, rel=1e-4)
    assert isaac["register_read"].at(8) == pytest.approx(0.00604 * 2048**0.586, rel=2e-3)
    assert isaac["register_write"].at(9) == pytest.approx(2 * 0.00604 * 256**0.586, rel=2e-3)
    assert neurram["row_drive"].pJ == pytest.approx(256 * 0.5**2 * 2e-9 * (2.5e-6 + 1e-6) * 1e12, rel=1e-9)


# --------------------------------------------------------------------------------------- the survey of converters


@pytest.mark.parametrize(
    ("samples_per_s", "bits", "pJ"),
    [
        (1e8, 5, "0.0007"), (1e8, 6, "0.0030"), (1e8, 7, "0.0119"), (1e8, 8, "0.0475"), (1e8, 10, "0.760"),
        (1e9, 4, "0.0025"), (1e9, 5, "0.0100"), (1e9, 6, "0.0400"), (1e9, 7, "0.160"), (1e9, 8, "0.640"),
        (1e9, 10, "10.23"), (1e6, 8, "0.0475"),
    ],
)  # fmt: skip
def test_the_survey_of_converters_gives_the_published_energies(samples_per_s, bits, pJ):
    law = load_card("adc_survey").prices["adc_conversion"].adc_survey
    at_rate = AdcSurvey(**{**law.model_dump(), "samples_per_s": samples_per_s})
    decimals = len(pJ.partition(".")[2])
    assert f"{at_rate.at(bits):.{decimals}f}" == pJ


def test_the_survey_stands_in_for_another_cards_converters_at_any_node():
    isaac, both = Prices.load("rram_crossbar_isaac"), Prices.load("rram_crossbar_isaac+adc_survey")
    assert both.crossbar == isaac.crossbar
    assert both.of("adc_conversion", 8).pJ == pytest.approx(0.6397, rel=1e-3)
    assert both.of("adc_conversion", 8).card == "adc_survey"
    assert both.of("shift_add") == isaac.of("shift_add")
    scaled = Prices.load("rram_crossbar_isaac+adc_survey", 16.0)
    assert scaled.of("adc_conversion", 8) == both.of("adc_conversion", 8)
    assert scaled.of("shift_add").pJ == pytest.approx(0.021 / 8)
    with pytest.raises(CardError, match=re.escape("take it as CARD+adc_survey")):
        Prices.load("adc_survey")


@pytest.mark.parametrize("place", places_of("adc_survey"))
def test_every_number_of_the_survey_moves_a_conversion(place):
    data = read_yaml(DEVICES / "adc_survey.yaml").data
    cards = [check(Card, Document(d, "c")) for d in (data, changed(data, place, 0.9))]
    before, after = (card.prices["adc_conversion"].at(8) for card in cards)
    assert after != before


def test_a_card_of_other_prices_must_say_what_it_covers():
    data = read_yaml(DEVICES / "adc_survey.yaml").data
    data["prices"]["mux"] = {"pJ": 1.0, "source": "s", "evidence": "assumed"}
    with pytest.raises(ConfigError, match="prices and covers"):
        check(Card, Document(data, "c"))
