"""Hybrid weights: against the reference's numbers, and RRAM part, SRAM part, shift and mask against their laws."""

import copy
import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hwsim.config import ConfigError, RunError
from hwsim.device.hybrid import MOST_BITS, MOST_SHIFT, Hybrid, Masked, Sram
from hwsim.device.quantize import levels, twos_complement, xnor
from hwsim.device.store import Ideal, Rram, Ternary, clear, draw, load, place
from hwsim.network.layer import Conv2d, Linear
from hwsim.network.vgg_bntt import build

GOLDEN = json.loads((Path(__file__).parent / "golden" / "hybrid.json").read_text(encoding="utf-8"))
CONVOLUTION, PRUNED = GOLDEN["hybrid_conv"], GOLDEN["prune_mask"]
BY_LEVEL = ((None, 0.4, 0.276), (0.9, None, 0.1035))
OVERLAPPING = ((None, None, 0.1), (0.9, None, 0.2))
RRAMS = [
    Ideal(),
    Rram(bits=1, sigma=0.08),
    Rram(bits=4, sigma=0.3, clamp="magnitude"),
    Rram(bits=2, quantizer="xnor", sigma=0.1, clamp="signed"),
    Rram(bits=2, rows=BY_LEVEL),
    Rram(bits=2, rows=OVERLAPPING),
    Rram(bits=8),
    Ternary(sigma=0.08),
    Ternary(),
]
SHIFTS = range(-MOST_SHIFT, MOST_SHIFT + 1)
HYBRIDS = [
    *(Hybrid(rram, Sram(4), shift_bit=-1) for rram in RRAMS),
    Hybrid(Rram(4, "xnor", sigma=0.3), Sram(2, "xnor"), shift_bit=2, halved=True),
    Hybrid(Rram(4, sigma=0.3), Sram(4, "none"), shift_bit=1),
    Hybrid(Rram(4, sigma=0.3), Masked(Sram(4))),
    Hybrid(Rram(4, "xnor", sigma=0.3), Masked(Sram(4, "xnor"), revivable=True), shift_bit=-3, halved=True),
]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer_on(store, *shape: int, seed: int = 0, chip: int | None = 0) -> torch.nn.Module:
    """A layer with both parts and a mask, and a chip drawn with the seed `chip` (None: no chip)."""
    shape = shape or (6, 4, 3, 3)
    layer = Conv2d(shape[1], shape[0]) if len(shape) == 4 else Linear(shape[1], shape[0])
    g = seeded(seed)
    layer.weight.data.copy_(torch.randn(shape, generator=g) * 0.1)
    layer.rram = torch.randn(shape, generator=g) * 0.15
    layer.mask = torch.rand(shape, generator=g) > 0.3
    layer.store = store
    if chip is not None:
        draw(layer, seeded(chip))
    return layer


def parts_of(layer) -> tuple[torch.Tensor, torch.Tensor]:
    """(what the RRAM part holds, what the SRAM part adds), each computed on its own."""
    store = layer.store
    words = store.sram.inner if isinstance(store.sram, Masked) else store.sram
    rram = store.rram.held(layer.rram, layer.z)
    w = layer.weight.detach()
    if words.quantizer == "twos-complement":
        unit = store.rram.full_scale(layer.rram) * 2.0**store.shift_bit
        sram = unit * twos_complement(w, words.bits, unit)
    else:
        sram = 2.0**store.shift_bit * (xnor(w, words.bits)[0] if words.quantizer == "xnor" else w)
    if isinstance(store.sram, Masked):
        sram = torch.where(layer.mask, sram, 0)
    size = 0.5 if store.halved else 1
    return size * rram, size * sram


# ---------------------------------------------------------------------------------------------- the reference's numbers


def golden_name(case: dict) -> str:
    return f"{case['sram_bit']}b-" + (f"shift{case['shift_bit']}" if case["shift"] else "no-shift")


def golden_hybrid(case: dict) -> Hybrid:
    shift_bit = case["shift_bit"] if case["shift"] else 0
    words = Sram(case["sram_bit"], "xnor")
    return Hybrid(Rram(4, "xnor"), words, shift_bit=shift_bit, halved=not case["sram_init0"])


@pytest.mark.parametrize("case", CONVOLUTION["cases"], ids=golden_name)
def test_summed_weight_and_convolution_are_the_references(case):
    W, WR, x = (torch.tensor(v) for v in (case["W"], CONVOLUTION["WR"], CONVOLUTION["x"]))
    store = golden_hybrid(case)
    assert torch.equal(store.held(W, rram=WR), torch.tensor(case["total_weight"]))
    conv = Conv2d(W.shape[1], W.shape[0])
    conv.weight.data.copy_(W)
    conv.rram, conv.store = WR, store
    assert torch.equal(store.read(conv), torch.tensor(case["total_weight"]))
    for trained in (True, False):
        with torch.set_grad_enabled(trained):
            out = conv(x[None], 1)[0]
        torch.testing.assert_close(out, torch.tensor(case["out"]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CONVOLUTION["cases"], ids=golden_name)
def test_one_convolution_of_the_sum_is_the_sum_of_two(case):
    W, WR, x = (torch.tensor(v).double() for v in (case["W"], CONVOLUTION["WR"], CONVOLUTION["x"]))
    store = golden_hybrid(case)
    c = 2.0**store.shift_bit
    two = (F.conv2d(x, WR, padding=1) + c * F.conv2d(x, W, padding=1)) / (2 if store.halved else 1)
    conv = Conv2d(W.shape[1], W.shape[0]).double()
    conv.weight.data.copy_(W)
    conv.rram, conv.store = WR, store
    one = conv(x[None])[0]
    torch.testing.assert_close(one, two, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(two, torch.tensor(case["out"]).double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("store", HYBRIDS, ids=repr)
def test_a_hybrid_layer_is_two_arrays_and_an_adder_forward_and_backward(store):
    conv = layer_on(store).double()
    x = torch.randint(-1, 2, (2, 3, 4, 5, 5), generator=seeded(5)).double().requires_grad_()
    upstream = torch.randn(2, 3, 6, 5, 5, generator=seeded(6)).double()
    rram, sram = parts_of(conv)
    conv(x, 1).backward(upstream)
    again = x.detach().clone().requires_grad_()
    two = sum(F.conv2d(again.flatten(0, 1), w, padding=1) for w in (rram, sram)).unflatten(0, (2, 3))
    two.backward(upstream)
    torch.testing.assert_close(conv(x), two, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(x.grad, again.grad, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("case", PRUNED["cases"], ids=lambda c: f"th{c['th']}")
def test_masked_words_are_the_references(case):
    W, mask = torch.tensor(PRUNED["W_fp"]), torch.tensor(case["mask"]).bool()
    assert not mask.all() or case["th"] == 0.005
    store = Masked(Sram(case["bits"], "xnor"))
    assert torch.equal(store.held(W, mask=mask), torch.tensor(case["out"]))
    layer = layer_on(store, *W.shape)
    layer.weight.data.copy_(W)
    layer.mask = mask
    assert torch.equal(store.read(layer), torch.tensor(case["out"]))


# ----------------------------------------------------------------------------------------------------------- SRAM words


@pytest.mark.parametrize("shift_bit", SHIFTS)
@pytest.mark.parametrize("bits", range(1, MOST_BITS + 1))
def test_the_shift_moves_range_and_step_of_the_words(bits, shift_bit):
    m, unit = 2 ** (bits - 1), 0.25 * 2.0**shift_bit
    w = torch.linspace(-1.5, 1.5, 6001) * unit
    held = Sram(bits).held(w, full_scale=0.25, shift_bit=shift_bit)
    assert held.unique().tolist() == [k / m * unit for k in range(-m, m)]
    assert (held - w.clamp(-unit, unit * (m - 1) / m)).abs().max() <= unit / m / 2 * (1 + 1e-5)


@pytest.mark.parametrize("shift_bit", SHIFTS)
def test_the_shift_multiplies_words_of_the_other_grids(shift_bit):
    w = torch.randn(200, generator=seeded(1))
    assert torch.equal(Sram(3, "xnor").held(w, shift_bit=shift_bit), xnor(w, 3)[0] * 2.0**shift_bit)
    assert torch.equal(Sram(3, "none").held(w, shift_bit=shift_bit), w * 2.0**shift_bit)


def test_full_scale_does_not_move_the_grids_that_have_their_own():
    w = torch.randn(200, generator=seeded(1))
    for grid in ("xnor", "none"):
        assert torch.equal(Sram(3, grid).held(w, full_scale=0.1), Sram(3, grid).held(w))


def test_lone_words_take_the_layers_own_largest_weight_as_full_scale():
    w = torch.randn(5000, generator=seeded(1)) * 0.3
    top = w.abs().max()
    held = Sram(3).held(w)
    assert torch.equal(held, twos_complement(w, 3, top) * top)
    assert held.min() == -top or held.max() == top * 0.75
    layer = layer_on(Sram(3))
    assert torch.equal(layer.store.read(layer), Sram(3).held(layer.weight.detach()))


def test_zero_words_are_zero_on_the_default_grid_and_never_on_the_references():
    # Trap B5.
    zeros = torch.zeros(3, 2)
    for bits in range(1, MOST_BITS + 1):
        assert torch.equal(Sram(bits).held(zeros, full_scale=0.3, shift_bit=2), zeros)
        assert torch.equal(Sram(bits).held(zeros), zeros)
        assert torch.equal(Sram(bits, "none").held(zeros), zeros)
        assert (Sram(bits, "xnor").held(zeros) == (-1 if bits == 1 else 0.5 ** (bits - 1))).all()


@given(
    st.lists(st.integers(-(2**12), 2**12), min_size=1, max_size=30), st.integers(1, MOST_BITS), st.sampled_from(SHIFTS)
)
def test_words_hold_what_they_held_and_follow_weight_and_full_scale(ks, bits, shift_bit):
    w, words = torch.tensor(ks) / 2**11, Sram(bits)
    held = words.held(w, full_scale=0.75, shift_bit=shift_bit)
    assert torch.equal(words.held(held, full_scale=0.75, shift_bit=shift_bit), held)
    assert torch.equal(words.held(w * 4, full_scale=3.0, shift_bit=shift_bit), held * 4)
    assert torch.equal(words.held(w * 4, full_scale=0.75, shift_bit=shift_bit + 2), held * 4)


def test_sram_neither_varies_nor_asks_for_a_chip():
    w, z = torch.randn(6, 4, generator=seeded(1)), torch.randn(6, 4, generator=seeded(2))
    for grid in ("twos-complement", "xnor", "none"):
        assert torch.equal(Sram(3, grid).held(w, z), Sram(3, grid).held(w))
        assert Sram(3, grid).noise_shape((6, 4)) is None
    layer = layer_on(Sram(3))
    assert layer.z is None


# ------------------------------------------------------------------------------------------------------------ the sum


@pytest.mark.parametrize("halved", [False, True])
@pytest.mark.parametrize("store", RRAMS, ids=repr)
def test_with_zero_words_a_hybrid_is_its_rram_part_bit_for_bit(store, halved):
    for shift_bit, words in itertools.product(SHIFTS, (Sram(1), Sram(4), Sram(8), Masked(Sram(4)), Sram(4, "none"))):
        layer = layer_on(Hybrid(store, words, shift_bit, halved))
        layer.weight.data.zero_()
        bare = store.held(layer.rram, layer.z)
        assert torch.equal(layer.store.read(layer), bare / 2 if halved else bare)


@pytest.mark.parametrize("store", HYBRIDS, ids=repr)
def test_held_is_the_sum_of_the_parts_and_read_is_held(store):
    layer = layer_on(store)
    rram, sram = parts_of(layer)
    mask = layer.mask if isinstance(store.sram, Masked) else None
    held = store.held(layer.weight.detach(), layer.z, rram=layer.rram, mask=mask)
    torch.testing.assert_close(held, rram + sram, atol=1e-7, rtol=1e-6)
    assert sram.abs().sum() > 0
    assert torch.equal(store.read(layer), held)
    assert torch.equal(store.read(layer), store.read(layer))


@pytest.mark.parametrize("shift_bit", SHIFTS)
def test_the_sum_of_reference_levels_and_words_is_exact(shift_bit):
    pairs = itertools.product(levels("xnor", MOST_BITS), levels("xnor", MOST_BITS))
    rram, sram = torch.tensor(list(pairs)).t()
    store = Hybrid(Rram(MOST_BITS, "xnor"), Sram(MOST_BITS, "xnor"), shift_bit)
    assert torch.equal(store.held(sram, rram=rram).double(), rram.double() + sram.double() * 2.0**shift_bit)


@pytest.mark.parametrize("store", HYBRIDS, ids=repr)
def test_nothing_is_changed_by_using_a_hybrid_layer(store):
    conv, x = layer_on(store), torch.randint(-1, 2, (2, 2, 4, 5, 5)).float()
    kept, z, state = {k: v.clone() for k, v in conv.state_dict().items()}, conv.z, torch.get_rng_state()
    first = conv(x, 1)
    first.sum().backward()
    assert torch.equal(conv(x, 1), first)
    assert all(torch.equal(v, kept[k]) for k, v in conv.state_dict().items())
    assert conv.z is z and torch.equal(torch.get_rng_state(), state)


def test_full_scale_of_the_words_is_that_of_the_rram_part_and_not_of_the_sram():
    for store in RRAMS:
        layer = layer_on(Hybrid(store, Sram(4)), chip=None)
        layer.weight.data.fill_(1e6)
        scale = store.full_scale(layer.rram)
        added = layer.store.read(layer).detach() - store.held(layer.rram)
        torch.testing.assert_close(added, torch.full_like(added, float(scale) * 7 / 8), atol=1e-6, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("halved", [False, True])
@pytest.mark.parametrize("shift_bit", [-8, -1, 0, 3])
@pytest.mark.parametrize("grid", ["twos-complement", "xnor", "none"])
def test_gradient_of_the_words_is_one_or_the_shift_and_half_when_halved(grid, shift_bit, halved):
    rram = Rram(4, "xnor" if grid == "xnor" else "dorefa", sigma=0.3)
    layer = layer_on(Hybrid(rram, Sram(4, grid), shift_bit, halved))
    layer.weight.data[0, 0] = 5  # beyond the range too
    layer.rram.requires_grad_()
    upstream = torch.randn(layer.weight.shape, generator=seeded(7))
    layer.store.read(layer).backward(upstream)
    factor = (1.0 if grid == "twos-complement" else 2.0**shift_bit) * (0.5 if halved else 1)
    assert torch.equal(layer.weight.grad, upstream * factor)


@pytest.mark.parametrize("store", HYBRIDS, ids=repr)
def test_the_rram_part_gets_no_gradient_and_is_no_parameter(store):
    layer = layer_on(store)
    layer(torch.randn(1, 1, 4, 5, 5)).square().sum().backward()
    assert not layer.rram.requires_grad and layer.rram.grad is None
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    assert layer.weight.grad.abs().sum() > 0


def test_the_gradient_passes_the_adder_whatever_holds_the_frozen_part():
    for store in RRAMS:
        layer = layer_on(Hybrid(store, Sram(4)))
        layer.rram[0, 0] = 2.0  # where a lone Ternary stops it
        layer.weight.data[0, 0] = 2.0
        layer.store.read(layer).sum().backward()
        assert torch.equal(layer.weight.grad, torch.ones_like(layer.weight))


@pytest.mark.parametrize("revivable", [False, True])
@pytest.mark.parametrize("inner", [Sram(4), Sram(2, "xnor"), Sram(4, "none"), Ideal(), Rram(2, sigma=0.1)], ids=repr)
def test_masked_weights_are_zero_and_learn_only_where_they_may_come_back(inner, revivable):
    layer = layer_on(Masked(inner, revivable=revivable))
    held = layer.store.read(layer)
    assert (held[~layer.mask] == 0).all()
    assert torch.equal(held[layer.mask], inner.read(layer)[layer.mask])
    assert torch.equal(held, layer.store.held(layer.weight.detach(), layer.z, mask=layer.mask))
    upstream = torch.randn(held.shape, generator=seeded(7))
    held.backward(upstream)
    assert torch.equal(layer.weight.grad, upstream if revivable else upstream * layer.mask)


@pytest.mark.parametrize("revivable", [False, True])
def test_a_mask_in_a_hybrid_takes_the_words_and_leaves_the_cells(revivable):
    layer = layer_on(Hybrid(Rram(4, "xnor", sigma=0.3), Masked(Sram(4, "xnor"), revivable=revivable), 2, halved=True))
    bare = layer.store.rram.held(layer.rram, layer.z) / 2
    held = layer.store.read(layer)
    assert torch.equal(held[~layer.mask], bare[~layer.mask])
    assert (held[layer.mask] != bare[layer.mask]).all()
    held.backward(torch.ones_like(held))
    factor = torch.full_like(held, 2.0) if revivable else layer.mask * 2.0
    assert torch.equal(layer.weight.grad, factor)


def test_ternary_masked_keeps_its_own_limit_of_the_gradient():
    layer = layer_on(Masked(Ternary(sigma=0.1), revivable=True))
    layer.weight.data[0, 0] = 2.0
    layer.store.read(layer).sum().backward()
    assert torch.equal(layer.weight.grad, (layer.weight.detach().abs() < 1).float())


# ------------------------------------------------------------------------------------------------------------ chips


@pytest.mark.parametrize("store", RRAMS, ids=repr)
def test_a_hybrid_draws_the_chip_of_its_bare_rram_part(store):
    for part in (Sram(4), Masked(Sram(4))):
        hybrid = Hybrid(store, part)
        assert hybrid.noise_shape((6, 4)) == store.noise_shape((6, 4))
        nets = [build("vgg5", width=0.1, channels=3, size=(8, 8), classes=4, steps=2) for _ in range(2)]
        for net, held in zip(nets, (store, hybrid), strict=True):
            place(net, {"conv*": held})
            draw(net, seeded(11))
        for bare, both in zip(nets[0].modules(), nets[1].modules(), strict=True):
            if hasattr(bare, "store"):
                assert (bare.z is None) == (both.z is None)
                assert bare.z is None or torch.equal(bare.z, both.z)
    assert Masked(store).noise_shape((6, 4)) == store.noise_shape((6, 4))


@pytest.mark.parametrize("sigma", [0.08164, 0.34597])
def test_the_spread_of_a_hybrid_weight_is_that_of_its_rram_part_alone(sigma):
    layer = layer_on(Hybrid(Rram(4, sigma=sigma), Sram(4), shift_bit=-1), 400, 500, chip=3)
    total = layer.store.read(layer).detach().double()
    clear(layer)
    programmed = layer.store.read(layer).detach().double()
    cells = Rram(4).held(layer.rram).double()
    words = programmed - cells
    assert words.unique().numel() > 8
    ln_factor = ((total - words) / cells).log().flatten() / sigma
    n = ln_factor.numel()
    # What float32 rounds off the sum is a share of up to 1e-6 of the smallest cell.
    assert abs(ln_factor.mean()) < 5 / n**0.5
    assert abs(ln_factor.std() - 1) < 5 / (2 * n) ** 0.5
    for other in (words.flatten(), cells.flatten(), words.flatten().abs()):
        correlation = torch.corrcoef(torch.stack([ln_factor, other]))[0, 1]
        assert abs(correlation) < 5 / n**0.5


def test_other_words_meet_the_same_chip():
    one, two = (layer_on(Hybrid(Rram(4, sigma=0.3), Sram(4)), chip=5) for _ in range(2))
    two.weight.data.zero_()
    words = Sram(4).held(one.weight.detach(), full_scale=Rram(4).full_scale(one.rram))
    assert words.abs().sum() > 0
    torch.testing.assert_close(one.store.read(one) - two.store.read(two), words, atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("bits", [0, 9, 2.0, True, None])
def test_words_of_no_or_too_many_bits_are_refused(bits):
    with pytest.raises(ConfigError) as e:
        Sram(bits)
    assert e.value.messages == [f"Sram.bits: {bits!r} is not a whole number from 1 to 8"]


def test_an_unknown_grid_is_refused_together_with_all_else():
    with pytest.raises(ConfigError) as e:
        Sram(0, "dorefa")
    assert e.value.messages == [
        "Sram.bits: 0 is not a whole number from 1 to 8",
        "Sram.quantizer: 'dorefa' is not one of twos-complement, xnor, none",
    ]


@pytest.mark.parametrize("shift_bit", [-9, 9, 1.0, True])
def test_a_shift_beyond_the_adder_is_refused(shift_bit):
    with pytest.raises(ConfigError) as e:
        Hybrid(Rram(2), Sram(2), shift_bit)
    assert e.value.messages == [f"Hybrid.shift_bit: {shift_bit!r} is not a whole number from -8 to 8"]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rram", [Rram(4), Ternary(), Ideal()], ids=repr)
def test_the_references_words_on_cells_of_another_full_scale_are_refused(rram, masked):
    words = Sram(4, "xnor")
    with pytest.raises(ConfigError) as e:
        Hybrid(rram, Masked(words) if masked else words, shift_bit=9)
    assert e.value.messages == [
        "Hybrid.shift_bit: 9 is not a whole number from -8 to 8",
        "Hybrid.sram: its grid xnor has full scale 1, the RRAM has the layer's own; take twos-complement, or quantizer "
        "xnor for both",
    ]
    Hybrid(Rram(4, "xnor"), Masked(words) if masked else words)


def test_parts_that_are_neither_cells_nor_words_are_refused():
    with pytest.raises(ConfigError) as e:
        Hybrid(Sram(2), Masked(Ternary()))
    assert e.value.messages == [
        "Hybrid.rram: Sram(bits=2, quantizer='twos-complement') is not an Rram, Ternary or Ideal",
        f"Hybrid.sram: {Masked(Ternary())!r} is neither an Sram nor a Masked one",
    ]


def test_a_layer_without_frozen_part_is_refused():
    # Trap B6.
    layer = layer_on(HYBRIDS[0])
    layer.rram = None
    with pytest.raises(RunError, match="Hybrid needs a trained RRAM parent: this layer has no RRAM part"):
        layer(torch.zeros(1, 1, 4, 5, 5))


def test_a_layer_without_mask_is_refused():
    for store in (Masked(Sram(2)), Hybrid(Rram(4), Masked(Sram(2), revivable=True))):
        layer = layer_on(store)
        layer.mask = None
        with pytest.raises(RunError, match="a masked store needs a mask: load a pruned network, or set layer.mask"):
            layer(torch.zeros(1, 1, 4, 5, 5))


def test_stores_are_frozen_and_equal_by_value():
    for store in (Sram(4), Masked(Sram(4)), *HYBRIDS):
        field = dataclasses.fields(store)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(store, field, None)
        assert copy.deepcopy(store) == store and hash(copy.deepcopy(store)) == hash(store)
    assert len(set(HYBRIDS)) == len(HYBRIDS)


# ------------------------------------------------------------------------------------------------------- whole networks


def small(store=None, seed: int = 0) -> torch.nn.Module:
    settings = {"channels": 3, "size": (8, 8), "classes": 4, "steps": 3, "coding": "direct"}
    net = build("vgg5", width=0.25, **settings, generator=seeded(seed))
    if store is not None:
        place(net, {"conv*": store})
    return net


def recovering(store, seed: int = 0) -> torch.nn.Module:
    """A net that holds its first weights in RRAM and starts with SRAM words of zero."""
    net = small(store, seed)
    for _, layer in hybrid_layers(net):
        layer.rram = layer.weight.detach().clone()
        layer.mask = torch.rand(layer.weight.shape, generator=seeded(9)) > 0.5
        layer.weight.data.zero_()
    return net


def hybrid_layers(net):
    return [(name, m) for name, m in net.named_modules() if name.startswith("conv")]


def test_a_hybrid_state_goes_through_load_and_computes_the_same():
    one = recovering(Hybrid(Rram(4, sigma=0.2), Masked(Sram(4))))
    for _, layer in hybrid_layers(one):
        layer.weight.data.normal_(generator=seeded(3), std=0.1)
    two = small(Hybrid(Rram(4, sigma=0.2), Masked(Sram(4))), seed=5)
    load(two, copy.deepcopy(one.state_dict()))
    x = torch.randn(4, 3, 8, 8, generator=seeded(4))
    for net in (one, two):
        draw(net, seeded(6))
        net.eval()
    assert torch.equal(one(x)[0], two(x)[0])


def test_saved_names_are_a_plain_nets_and_those_of_the_parts():
    plain = list(small().state_dict())
    assert not any(key.endswith((".z", ".rram", ".mask")) for key in plain)
    state = recovering(HYBRIDS[0]).state_dict()
    assert [key for key in state if key not in plain] == [
        f"conv{i}.{part}" for i in range(1, 4) for part in ("rram", "mask")
    ]
    assert [key for key in state if key in plain] == plain


@pytest.mark.parametrize("rram", [Rram(4, sigma=0.35), Ternary(sigma=0.3)], ids=repr)
@pytest.mark.parametrize("masked", [False, True])
def test_a_hybrid_network_starts_as_its_parent_and_learns_in_its_words_alone(rram, masked):
    store = Hybrid(rram, Masked(Sram(4)) if masked else Sram(4))
    parent, net = small(rram), recovering(store)
    x, y = torch.randn(16, 3, 8, 8, generator=seeded(4)), torch.arange(16) % 4
    for each in (parent, net):
        draw(each, seeded(8))
    assert torch.equal(net(x)[0], parent(x)[0])

    frozen = {name: layer.rram.clone() for name, layer in hybrid_layers(net)}
    words = [layer.weight for _, layer in hybrid_layers(net)]
    optimizer = torch.optim.SGD(words, 0.1, 0.9)
    losses, chips = [], seeded(12)
    for _ in range(30):
        draw(net, chips)
        loss = F.cross_entropy(net(x)[0], y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    for name, layer in hybrid_layers(net):
        assert torch.equal(layer.rram, frozen[name])
        assert layer.weight.abs().sum() > 0
        if masked:
            assert (layer.weight[~layer.mask] == 0).all()


# ----------------------------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize("store", [*HYBRIDS, Masked(Rram(2, sigma=0.1)), Sram(3)], ids=repr)
def test_no_hybrid_store_looks_at_a_tensors_values(store):
    layer = layer_on(store)
    z = layer.z
    layer = layer.to("meta")
    layer.z = None if z is None else z.to("meta")
    layer.store.read(layer).sum().backward()
    assert layer.weight.grad.shape == layer.weight.shape


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("store", [*HYBRIDS, Masked(Rram(2, sigma=0.1)), Sram(3)], ids=repr)
def test_a_hybrid_on_cuda_holds_what_it_holds_on_the_cpu_without_waiting(store):
    cpu, gpu = layer_on(store), layer_on(store, chip=None).cuda()
    draw(gpu, seeded(0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        held = gpu.store.read(gpu)
        held.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(held.cpu(), store.read(cpu), atol=1e-6, rtol=1e-5)
