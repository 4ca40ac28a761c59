"""Patterns: the drawn input, the smiley, pictures, arrays, files with both rasters, and what is refused."""

import math

import numpy as np
import pytest
import torch
from matplotlib.image import imsave
from PIL import Image

from hwsim.config import DataError
from hwsim.data.pattern import load_pattern, poisson_like, smiley, thin


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def load(target="smiley", *, steps=20, inputs=15, outputs=10, keep=1.0, seed=0):
    return load_pattern(
        target, steps=steps, inputs=inputs, outputs=outputs, keep=keep, input_generator=seeded(seed),
        target_generator=seeded(seed + 1),
    )  # fmt: skip


# --- generators ----------------------------------------------------------------------------------------------------


def test_the_input_has_the_published_densities():
    rasters = torch.stack([poisson_like(250, 700, seeded(s)) for s in range(12)]).double()
    assert rasters.mean().item() == pytest.approx(0.0922, abs=0.002)
    assert rasters[..., :5].mean().item() == pytest.approx(0.571, abs=0.02)
    assert rasters[..., -5:].mean().item() == pytest.approx(0.0278, abs=0.005)


def test_intervals_of_the_input_are_poisson_distributed_whole_numbers():
    train = poisson_like(200_000, 10, seeded(0))
    for neuron, mean in ((0, 1.25), (9, 1.5)):
        intervals = train[:, neuron].nonzero().flatten().diff().double()
        # Intervals of 0 fall together, so what is left is a Poisson number that is not 0.
        share = 1 / (1 - math.exp(-mean))
        for k in (1, 2, 3):
            expected = math.exp(-mean) * mean**k / math.factorial(k) * share
            assert (intervals == k).double().mean().item() == pytest.approx(expected, abs=0.01)


def test_the_first_spike_can_fall_into_the_first_step():
    first = torch.stack([poisson_like(3, 5, seeded(s))[0] for s in range(400)]).double()
    # The first interval is 0: probability e^-1.25.
    assert first.mean().item() == pytest.approx(math.exp(-1.25), abs=0.03)


def test_trains_go_on_to_the_last_step():
    rasters = torch.stack([poisson_like(2, 5, seeded(s)) for s in range(3000)]).double()
    # Step 1 is hit by any number of intervals 0 and then one of 1.
    p0, p1 = math.exp(-1.25), 1.25 * math.exp(-1.25)
    assert rasters[:, 1].mean().item() == pytest.approx(p1 / (1 - p0), abs=0.01)


def test_the_smiley_has_the_published_density():
    face = smiley(250, 250)
    assert face.double().mean().item() * 0.95 == pytest.approx(0.19, abs=0.005)
    assert set(face.unique().tolist()) == {0, 1}
    assert face[125 + 100, 125] == face[125 + 60, 125] == 1  # chin and mouth
    assert face[90, 125 - 38] == face[90, 125 + 38] == 1  # eyes
    assert face[125, 125] == face[0, 0] == 0
    assert torch.equal(face, face.flip(1))
    assert not torch.equal(face, face.flip(0))


def test_the_smiley_is_stretched_to_other_sizes():
    assert smiley(100, 40).double().mean().item() == pytest.approx(smiley(250, 250).double().mean().item(), abs=0.02)


def test_thinning_removes_spikes_and_adds_none():
    face = smiley(250, 250)
    left = thin(face, 0.3, seeded(0))
    assert bool((left <= face).all())
    assert left.sum().item() / face.sum().item() == pytest.approx(0.3, abs=0.02)
    assert torch.equal(thin(face, 1.0, seeded(0)), face)


@pytest.mark.parametrize("keep", [0.0, -1.0, 1.5])
def test_a_share_outside_its_range_is_refused(keep):
    with pytest.raises(DataError, match="keep: found"):
        thin(smiley(20, 20), keep, seeded(0))


def test_seeds_decide_and_the_checksum_tells():
    a, b, c = (load(keep=0.9, seed=s) for s in (0, 0, 5))
    assert torch.equal(a.input_TI, b.input_TI) and torch.equal(a.target_TO, b.target_TO)
    assert a.checksum == b.checksum != c.checksum
    assert a.input_TI.shape == (20, 15) and a.target_TO.shape == (20, 10)
    assert a.input_TI.dtype == a.target_TO.dtype == torch.uint8


# --- pictures and arrays -------------------------------------------------------------------------------------------


def pixels(steps=20, outputs=10) -> tuple[np.ndarray, np.ndarray]:
    """An RGB picture around the darkness at which a pixel is a spike, and its spikes."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (steps, outputs, 3), dtype=np.uint8)
    rgb[0, 0] = (255, 244, 0)  # 499: a spike
    rgb[0, 1] = (255, 245, 0)  # 500: none
    return rgb, rgb.astype(int).sum(2) < 500


def test_dark_pixels_of_a_png_are_spikes(tmp_path):
    rgb, expected = pixels()
    assert expected[0, 0] and not expected[0, 1] and 0.2 < expected.mean() < 0.9
    imsave(tmp_path / "p.png", rgb)
    data = load(tmp_path / "p.png")
    assert (data.target_TO.numpy() == expected).all()
    assert torch.equal(data.input_TI, poisson_like(20, 15, seeded(0)))
    thinned = load(tmp_path / "p.png", keep=0.5).target_TO
    assert 0 < thinned.sum() < expected.sum()


def test_what_is_transparent_lies_on_white(tmp_path):
    rgba = np.zeros((20, 10, 4), np.uint8)
    rgba[:5, :, 3] = 255
    rgba[5:10, :, 3] = 100  # black at 39 %: 3 · 155 = 465, dark enough
    rgba[10:15, :, 3] = 80  # 3 · 175 = 525, too light
    imsave(tmp_path / "p.png", rgba)
    target = load(tmp_path / "p.png").target_TO
    assert target[:10].all() and not target[10:].any()


def test_arrays_of_pixels_are_pictures_and_gray_counts_three_times(tmp_path):
    rgb, expected = pixels()
    np.save(tmp_path / "p.npy", rgb)
    assert (load(tmp_path / "p.npy").target_TO.numpy() == expected).all()
    gray = np.full((20, 10, 1), 166, np.uint8)  # 498
    gray[3] = 167  # 501
    np.save(tmp_path / "g.npy", gray)
    Image.fromarray(gray[..., 0]).save(tmp_path / "g.png")
    for name in ("g.npy", "g.png"):
        target = load(tmp_path / name).target_TO
        assert not target[3].any() and target.sum() == 190


@pytest.mark.parametrize("kind", [bool, np.int64, np.float32])
def test_an_array_of_zeros_and_ones_is_taken_as_it_is(tmp_path, kind):
    raster = np.random.default_rng(0).random((20, 10)) < 0.3
    np.save(tmp_path / "r.npy", raster.astype(kind))
    assert (load(tmp_path / "r.npy", keep=0.5).target_TO.numpy() == raster).all()


# --- files with both rasters ---------------------------------------------------------------------------------------


def test_a_file_may_hold_input_and_target(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.random((20, 15)) < 0.3, rng.random((20, 10)) < 0.3
    np.savez(tmp_path / "b.npz", input=x, target=y)
    data = load(tmp_path / "b.npz", keep=0.5)
    assert (data.input_TI.numpy() == x).all() and (data.target_TO.numpy() == y).all()


def lists(path, **changes):
    spikes = {
        "input_neuron": np.array([0, 14, 3], np.uint16), "input_t_us": np.array([0, 999, 450], np.uint32),
        "output_neuron": np.array([9, 2], np.uint16), "output_t_us": np.array([50, 949], np.uint32),
    }  # fmt: skip
    np.savez(path, **(spikes | changes))
    return path


def test_lists_of_spikes_are_binned_into_equal_steps(tmp_path):
    data = load(lists(tmp_path / "s.npz"))  # 1000 us in 20 steps: 50 us each
    assert data.input_TI.nonzero().tolist() == [[0, 0], [9, 3], [19, 14]]
    assert data.target_TO.nonzero().tolist() == [[1, 9], [18, 2]]


def test_neurons_without_spikes_may_be_missing_from_a_list(tmp_path):
    data = load(lists(tmp_path / "s.npz"), inputs=100, outputs=80)
    assert data.input_TI.shape == (20, 100) and data.target_TO.shape == (20, 80)


def test_a_list_of_the_size_of_the_oxford_pattern_is_read(tmp_path):
    rng = np.random.default_rng(0)
    path = lists(
        tmp_path / "o.npz",
        input_neuron=rng.integers(0, 200, 1889), input_t_us=rng.integers(0, 1_888_801, 1889),
        output_neuron=rng.integers(0, 200, 10361), output_t_us=rng.integers(0, 1_888_801, 10361),
    )  # fmt: skip
    data = load(path, steps=250, inputs=200, outputs=200)
    assert 1600 < data.input_TI.sum() < 1889 and 8000 < data.target_TO.sum() < 10361


# --- what is refused -----------------------------------------------------------------------------------------------


def refused(target, *parts: str, **sizes) -> None:
    with pytest.raises(DataError) as e:
        load(target, **sizes)
    assert "\n" not in str(e.value)
    for part in parts:
        assert part in str(e.value)


def test_a_target_of_another_size_names_the_options_to_change(tmp_path):
    rgb, _ = pixels()
    imsave(tmp_path / "p.png", rgb)
    refused(
        tmp_path / "p.png", "p.png: the target has 20 rows (steps) and 10 columns (neurons), the network 25 and 12",
        "--steps 20 --outputs 10", steps=25, outputs=12,
    )  # fmt: skip
    np.savez(tmp_path / "b.npz", input=np.zeros((20, 3)), target=np.zeros((20, 10)))
    refused(tmp_path / "b.npz", "the input has 20 rows (steps) and 3 columns", "--inputs 3")
    refused(lists(tmp_path / "s.npz"), "15 columns (neurons), the network 20 and 8", "--inputs 15", inputs=8)


def test_a_missing_file_is_named(tmp_path):
    refused(tmp_path / "no.png", f"there is no file {tmp_path / 'no.png'}", "smiley")
    refused("smily", "there is no file smily")


@pytest.mark.parametrize("name", ["bad.png", "bad.npy", "bad.npz", "bad.txt"])
def test_a_damaged_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"not a picture\nat all")
    refused(tmp_path / name, f"{name}: cannot be read")


def test_an_array_that_is_no_raster_is_explained(tmp_path):
    for name, array, message in (
        ("a", np.full((20, 10), 2), "found the value 2; a raster holds only 0 and 1"),
        ("b", np.full((20, 10), np.nan), "found the value nan"),
        ("c", np.zeros(20), "found an array of shape (20,)"),
        ("d", np.zeros((20, 10, 7), np.uint8), "found an array of shape (20, 10, 7)"),
        ("e", np.zeros((20, 10, 3), np.int32), "found pixels of type int32; expected uint8"),
        ("f", np.array([["x"] * 10] * 20), "expected a raster"),
    ):
        np.save(tmp_path / f"{name}.npy", array)
        refused(tmp_path / f"{name}.npy", message)


def test_an_object_array_is_not_unpickled(tmp_path):
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    refused(tmp_path / "o.npy", "cannot be read")


def test_a_file_with_neither_rasters_nor_lists_says_what_it_has(tmp_path):
    np.savez(tmp_path / "x.npz", spikes=np.zeros(3), label=np.zeros(1))
    refused(tmp_path / "x.npz", "found spikes, label; expected the arrays input and target, or input_neuron")


def test_lists_that_do_not_fit_together_are_explained(tmp_path):
    refused(lists(tmp_path / "a.npz", input_t_us=np.array([1, 2])), "input_neuron and input_t_us are uint16 (3,)")
    refused(lists(tmp_path / "b.npz", output_t_us=np.array([0.5, 1.5])), "expected two lists of whole numbers")
    refused(lists(tmp_path / "c.npz", output_neuron=np.array([-1, 2])), "must not be negative")
    refused(lists(tmp_path / "d.npz", output_neuron=np.array([2**40, 2])), "at most 65535 is taken")


def test_an_input_without_spikes_is_refused(tmp_path):
    np.savez(tmp_path / "b.npz", input=np.zeros((20, 15)), target=np.ones((20, 10)))
    refused(tmp_path / "b.npz", "no input spike lies in the 20 steps")
