"""The integer form of a converted network: packed bits, and the same spikes as the floats."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_spiking import random_net

from hwsim.config import RunError
from hwsim.device.store import Ideal, Rram, place
from hwsim.network.convert import percentiles, set_thresholds
from hwsim.network.integrate import integrate_and_fire
from hwsim.network.popcount import Packed, integer_outputs, pack, packed_layers, popcount, unpack
from hwsim.network.spiking import Spiking

SEEDS = st.integers(0, 2**31)


@given(SEEDS, st.integers(1, 40), st.integers(1, 3))
def test_packing_loses_nothing_and_eight_share_a_byte(seed, n, rows):
    bits = torch.rand(rows, n, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack(bits)
    assert packed.dtype == torch.uint8 and packed.shape == (rows, -(-n // 8))
    assert torch.equal(unpack(packed, n), bits)
    assert torch.equal(popcount(packed), bits.sum(1).int())


def test_every_byte_has_its_population():
    every = torch.arange(256, dtype=torch.uint8)[:, None]
    assert popcount(every).tolist() == [bin(b).count("1") for b in range(256)]


@given(SEEDS, st.booleans(), st.booleans(), st.sampled_from([0.0, 0.3]))
def test_currents_are_the_sums_of_signs_over_spikes(seed, conv, pools, zeros):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn((5, 3, 3, 3) if conv else (5, 11), generator=g)
    weight[torch.rand(weight.shape, generator=g) < zeros] = 0
    x = (torch.rand((2, 3, 6, 5) if conv else (2, 11), generator=g) < 0.4).double()
    packed = Packed.of(weight, torch.full((5,), 2.0), pools=conv and pools)
    sign = weight.sign().double()
    wanted = torch.nn.functional.conv2d(x, sign, padding=1) if conv else x @ sign.T
    wanted = 4 * torch.nn.functional.avg_pool2d(wanted, 2) if conv and pools else wanted
    assert torch.equal(packed.currents(x), wanted.long())
    assert (packed.mask is None) == bool((weight != 0).all())
    assert packed.bits == weight.numel() * (1 if packed.mask is None else 2)


def test_a_zero_weight_needs_its_mask_bit():
    packed = Packed.of(torch.tensor([[1.0, 0.0, -1.0]]), torch.ones(1), pools=False)
    assert packed.currents(torch.tensor([[1.0, 1.0, 0.0]])).tolist() == [[1]]
    without = Packed(packed.plus, None, packed.threshold, packed.shape, False)
    assert without.currents(torch.tensor([[1.0, 1.0, 0.0]])).tolist() == [[0]]  # 0 would count as -1


@given(SEEDS, st.booleans(), st.integers(0, 12))
def test_integer_neurons_are_the_float_ones_with_the_same_thresholds(seed, pools, fraction_bits):
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 3, 3, 3, generator=g)
    theta = torch.rand(4, generator=g, dtype=torch.float64) * 4 + 0.5
    packed = Packed.of(weight, theta, pools=pools, fraction_bits=fraction_bits)
    spikes = (torch.rand(12, 2, 3, 4, 4, generator=g) < 0.5).double()
    current = torch.nn.functional.conv2d(spikes.flatten(0, 1), weight.sign().double(), padding=1)
    current = (torch.nn.functional.avg_pool2d(current, 2) if pools else current).unflatten(0, (12, 2))
    held = packed.threshold.double() / 2**fraction_bits / (4 if pools else 1)  # exact: a dyadic number
    wanted, left = integrate_and_fire(current, None, held[:, None, None])
    v, found = None, []
    for x in spikes:
        s, v = packed.step(x, v)
        found.append(s)
    assert torch.equal(torch.stack(found).double(), wanted)
    assert torch.equal(v.double() / 2**fraction_bits / (4 if pools else 1), left)


@pytest.mark.parametrize("one_step", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_a_random_network_says_the_same_in_whole_numbers(seed, one_step):
    net, x = random_net(seed), torch.randn(5, 2, 6, 5, generator=torch.Generator().manual_seed(seed))
    place(net, {"conv1": Ideal(), "conv*": Rram(1, "binary"), "fc1": Rram(1, "binary")})
    if seed == 3:
        with torch.no_grad():
            net.conv2.weight[1, 0] = 0
    out = Spiking(net, steps=30, one_step=one_step)
    set_thresholds(out, percentiles(net, 99.0, lambda: [x]))
    packed = packed_layers(out)
    assert list(packed) == ["conv2", "conv3", "fc1"] and packed["conv2"].pools
    assert (packed["conv2"].mask is not None) == (seed == 3) and packed["conv3"].mask is None
    floats, whole = out.outputs(x)[-1], integer_outputs(out, packed, x)
    assert float(floats.abs().max()) > 0
    torch.testing.assert_close(whole, floats, rtol=1e-5, atol=1e-5)


def test_layers_in_no_binary_cells_have_no_integer_form():
    net = random_net(0)
    place(net, {"conv3": Rram(1, "dorefa"), "fc1": Rram(1, "binary")})
    out = Spiking(net, steps=5, one_step=True)
    assert list(packed_layers(out)) == ["fc1"]


@pytest.mark.parametrize("theta", [1e-9, 1e16])
def test_a_threshold_that_does_not_fit_is_explained(theta):
    with pytest.raises(RunError, match="do not fit 16 fractional bits"):
        Packed.of(torch.ones(2, 3), torch.tensor([1.0, theta]), pools=False)
