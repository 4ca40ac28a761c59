"""Convolutions and products of the CUDA path: its arithmetic on the CPU, whole networks by Triton's interpreter, CUDA.

Triton decides on import whether it interprets, so that runs in a process of its own, whose script this file is too.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hwsim.network import conv_cuda, convolution, lif, lif_cuda, recompute
from hwsim.network.spikes_cuda import Kept, recall, remember
from hwsim.network.vgg_bntt import build

T, B, C, H, W, OUT = 3, 2, 5, 6, 4, 7
BF16 = 2.0**-8
"""Largest relative error of a number rounded to bfloat16."""


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def spikes(parts, dtype=torch.float64):
    x = torch.randint(parts + 1, (T, B, C, H, W), generator=torch.Generator().manual_seed(3))
    return (x.to(torch.float64) / parts).to(dtype)


def tied(x_TBCHW, parts):
    """The spikes as the kernel leaves them: channels-last, with a byte each beside them."""
    x = x_TBCHW.permute(0, 1, 3, 4, 2).contiguous()
    return remember(x.permute(0, 1, 4, 2, 3), Kept((x * parts).to(torch.uint8), parts, False))


# ------------------------------------------------------------------------------------------------ arithmetic


@pytest.mark.parametrize("parts", [0, 1, 4])
@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_and_its_gradients_are_those_of_autograd(parts, is_tied, bias):
    if is_tied and not parts:
        pytest.skip("real inputs have no short copy")
    x, weight = (spikes(parts) if parts else drawn(T, B, C, H, W)), drawn(OUT, C, 3, 3, seed=1).requires_grad_()
    b = drawn(OUT, seed=2).requires_grad_() if bias else None
    given = x.clone().requires_grad_()
    out = conv_cuda.convolve(tied(given, parts) if is_tied else given, weight, b, (1, 1), parts, "float32")
    wanted_x = x.clone().requires_grad_()
    wanted = F.conv2d(wanted_x.flatten(0, 1), weight, b, padding=1).unflatten(0, (T, B))
    torch.testing.assert_close(out, wanted, atol=1e-12, rtol=1e-12)
    grad = drawn(*wanted.shape, seed=4)
    leaves = [weight] + ([b] if bias else [])
    found = torch.autograd.grad(out, [given, *leaves], grad)
    for a, c in zip(found, torch.autograd.grad(wanted, [wanted_x, *leaves], grad), strict=True):
        torch.testing.assert_close(a, c, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("needs", ["input", "weight"])
def test_only_the_gradients_that_are_asked_for_are_made(needs):
    x, weight = spikes(1).requires_grad_(needs == "input"), drawn(OUT, C, 3, 3).requires_grad_(needs == "weight")
    out = conv_cuda.convolve(x, weight, None, (1, 1), 1, "float32")
    out.sum().backward()
    assert (x.grad is None) == (needs == "weight") and (weight.grad is None) == (needs == "input")


def test_the_short_copy_is_what_the_backward_pass_reads():
    """With a copy of other spikes the weight gradient is that of those: the floats are not kept."""
    weight = drawn(OUT, C, 3, 3).requires_grad_()
    x = tied(spikes(1), 1)
    remember(x, Kept(torch.zeros_like(recall(x, 1).values), 1, False))
    out = conv_cuda.convolve(x, weight, None, (1, 1), 1, "float32")
    (grad,) = torch.autograd.grad(out.sum(), weight)
    assert grad.count_nonzero() == 0


def test_without_gradients_nothing_is_kept():
    weight = drawn(OUT, C, 3, 3)
    with torch.no_grad():
        assert conv_cuda.convolve(spikes(1), weight, None, (1, 1), 1, "float32").grad_fn is None


def test_a_product_and_its_gradients_are_those_of_autograd():
    x, weight, b = (drawn(*s, seed=n).requires_grad_() for n, s in enumerate([(T, B, C), (OUT, C), (OUT,)]))
    out, wanted = conv_cuda.product(x, weight, b, "float32"), F.linear(x, weight, b)
    torch.testing.assert_close(out, wanted, atol=1e-12, rtol=1e-12)
    grad = drawn(*wanted.shape, seed=4)
    pairs = zip(*(torch.autograd.grad(y, [x, weight, b], grad) for y in (out, wanted)), strict=True)
    for a, c in pairs:
        torch.testing.assert_close(a, c, atol=1e-12, rtol=1e-12)


def relative(found, wanted) -> float:
    return ((found.double() - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("kind", ["convolution", "product"])
def test_bf16_rounds_the_weights_once_and_nothing_of_the_spikes(kind):
    """Forward: products of 8-bit weights and spikes, summed wide, then rounded. Gradients: of rounded factors."""
    shape = (OUT, C, 3, 3) if kind == "convolution" else (OUT, C)
    weight = drawn(*shape, dtype=torch.float32).requires_grad_()
    x = spikes(4, torch.bfloat16)
    if kind == "convolution":
        given = x.clone().requires_grad_()
        out = conv_cuda.convolve(given, weight, None, (1, 1), 4, "bf16")
        exact = lambda x, w: F.conv2d(x.flatten(0, 1), w, padding=1).unflatten(0, (T, B))  # noqa: E731
    else:
        x = x[..., 0, 0]
        given = x.clone().requires_grad_()
        out = conv_cuda.product(given, weight, None, "bf16")
        exact = lambda x, w: x @ w.T  # noqa: E731
    assert out.dtype == torch.bfloat16
    wide_x, wide_w = x.double().requires_grad_(), weight.detach().bfloat16().double().requires_grad_()
    wanted = exact(wide_x, wide_w)
    assert relative(out, wanted) <= BF16
    grad = drawn(*wanted.shape, seed=4, dtype=torch.bfloat16)
    grads = torch.autograd.grad(out, [given, weight], grad)
    assert [g.dtype for g in grads] == [torch.bfloat16, torch.float32]
    for found, want in zip(grads, torch.autograd.grad(wanted, [wide_x, wide_w], grad.double()), strict=True):
        assert relative(found, want) <= 2 * BF16


def test_float64_stays_float64_whatever_the_precision():
    out = conv_cuda.convolve(spikes(1), drawn(OUT, C, 3, 3), None, (1, 1), 1, "bf16")
    assert out.dtype == torch.float64


def test_spikes_of_a_bf16_layer_fit_a_float32_product():
    assert conv_cuda.product(spikes(1, torch.bfloat16)[..., 0, 0], drawn(OUT, C, dtype=torch.float32), None, "float32")\
        .dtype == torch.float32  # fmt: skip


@pytest.fixture(params=[False, True], ids=["products float32 before", "products tf32 before"])
def before(request):
    """What torch was told of tf32 in products."""
    torch.backends.cuda.matmul.allow_tf32 = request.param
    yield request.param
    torch.backends.cuda.matmul.allow_tf32 = False


def flags():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return (
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32,
        matmul.allow_bf16_reduced_precision_reduction,
    )  # fmt: skip


@pytest.mark.parametrize(("precision", "tf32"), [("float32", False), ("tf32", True), ("bf16", False)])
def test_flags_hold_within_the_call_and_come_back(precision, tf32, before):
    was = flags()
    with pytest.raises(ZeroDivisionError), conv_cuda.multiplying(precision):
        assert flags() == (was[0], False, True, tf32, tf32, False)
        _ = 1 / 0
    assert flags() == was


def test_flags_hold_in_both_passes(monkeypatch):
    seen, was = [], flags()
    convolution_backward = torch.ops.aten.convolution_backward
    monkeypatch.setattr(F, "conv2d", lambda *a, _=F.conv2d, **k: (seen.append(flags()[3:5]), _(*a, **k))[1])

    class Watched:
        def __getattr__(self, name):
            return lambda *a, **k: (seen.append(flags()[3:5]), convolution_backward(*a, **k))[1]

    monkeypatch.setattr(torch.ops, "aten", Watched())
    weight = drawn(OUT, C, 3, 3).requires_grad_()
    conv_cuda.convolve(spikes(1), weight, None, (1, 1), 1, "tf32").sum().backward()
    assert seen == [(True, True)] * 2 and flags() == was


# ------------------------------------------------------------------------------------------------ whole networks


def network(coding, precision, dtype, device="cpu", **settings):
    generator = torch.Generator().manual_seed(0)
    net = build(
        "vgg5", width=0.125, channels=2, size=(8, 8), classes=3, steps=3, coding=coding, precision=precision,
        generator=generator, **settings,
    )  # fmt: skip
    return net.to(device, dtype)


def step(net, device="cpu"):
    """(loss, gradients, statistics, types of currents and spikes) of a batch."""
    dtype, types = net.conv1.weight.dtype, {}
    for name, layer in net.named_modules():
        if name and not list(layer.children()):
            layer.register_forward_hook(
                lambda layer, given, out, name=name: types.update(
                    {name: str((out[0] if isinstance(out, tuple) else out).dtype).removeprefix("torch.")}
                )
            )
    net.fc2.register_forward_pre_hook(lambda layer, given: types.update({"rates": str(given[0].dtype)[6:]}))
    x = drawn(4, 2, 8, 8, seed=5, dtype=dtype).to(device)
    u = torch.Generator(device).manual_seed(6)
    (loss,) = net.losses(x, torch.tensor([0, 1, 2, 0], device=device), u)
    loss.backward()
    grads = {n: p.grad for n, p in net.named_parameters()}
    return loss, grads, dict(net.named_buffers()), types


def interpreted() -> dict:
    """How far networks on the CUDA path are from plain torch, and of what type things are, by the interpreter."""
    choose, report, again, unpacked = lif.choose, {}, Kept.again, []
    Kept.again = lambda kept, dtype: (unpacked.append(kept.is_bits), again(kept, dtype))[1]

    def go(backend, *args, **settings):
        for module in (lif, convolution, recompute):
            module.choose = (lambda device: lif.Backend("cuda", "", lif_cuda)) if backend == "cuda" else choose
        lif.forced = "reference" if backend == "reference" else "auto"
        return step(network(*args, **settings))

    for coding in ("poisson", "direct"):
        for checkpoint in (False, True):
            given = (coding, "float32", torch.float64)
            unpacked.clear()
            found, wanted = (go(b, *given, checkpoint_layers=checkpoint) for b in ("cuda", "reference"))
            apart = [relative(found[0], wanted[0])]
            for a, b in zip(found[1:3], wanted[1:3], strict=True):
                apart += [relative(a[name], b[name].double()) for name in b if b[name].any()]
            fired = sum(float(g.abs().max()) > 0 for g in wanted[1].values())
            report[f"{coding} {checkpoint}"] = {"apart": max(apart), "gradients": fired, "bits": list(unpacked)}
    loss, grads, statistics, types = go("cuda", "poisson", "bf16", torch.float32)
    report["bf16"] = {
        "types": types, "loss": loss.item(), "grads": sorted({str(g.dtype) for g in grads.values()}),
        "finite": all(bool(g.isfinite().all()) and bool(g.any()) for g in grads.values()),
        "statistics": sorted({str(s.dtype) for s in statistics.values()}),
    }  # fmt: skip
    loss, *_ = go("cuda", "poisson", "bf16", torch.float32, checkpoint_layers=True)
    report["bf16"]["checkpointed"] = loss.item()
    with torch.no_grad():
        net = network("poisson", "bf16", torch.float32)
        for name in ("bntt1", "bntt2", "bntt3", "bntt_fc"):
            net.get_submodule(name).momentum = 1.0
        net(drawn(2, 2, 8, 8, dtype=torch.float32), torch.Generator().manual_seed(1))
        net.eval()
        x, chip = drawn(2, 2, 8, 8, dtype=torch.float32), torch.Generator()
        logits = [net(x, chip.manual_seed(1), account)[0] for account in (None, ())]
    report["bf16"]["accounted"] = relative(logits[0], logits[1].double())
    return report


@pytest.fixture(scope="module")
def report():
    pytest.importorskip("triton")
    from test_lif_cuda import TRITON, version

    if TRITON < (3, 7) and version("numpy") >= (2, 4):
        pytest.skip("this triton's interpreter does not know this numpy")
    root = Path(__file__).parents[1]
    paths = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": paths, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("coding", ["poisson", "direct"])
def test_a_network_on_the_cuda_path_is_the_reference_in_float64(coding, checkpoint, report):
    found = report[f"{coding} {checkpoint}"]
    assert found["apart"] < 1e-12 and found["gradients"] >= 8
    if not checkpoint:  # conv3 has kept the spikes of conv2 as bits, conv2 the pooled ones of conv1 as bytes
        assert found["bits"] == [True, False]


def test_between_layers_of_a_bf16_network_everything_is_bf16_and_its_state_float32(report):
    found = report["bf16"]
    short = {name: "bfloat16" for name in ("conv1", "conv2", "conv3", "bntt1", "bntt2", "bntt3", "fc1", "bntt_fc")}
    assert found["types"] == short | {"rates": "float32", "fc2": "float32"}  # means over T would be rounded
    assert found["grads"] == ["torch.float32"] and found["finite"] and 0 < found["loss"] < 100
    assert found["statistics"] == ["torch.float32", "torch.int64"]
    assert 0 < found["checkpointed"] < 100
    assert found["accounted"] == 0  # the pool behind the neuron is the pool within it


# ------------------------------------------------------------------------------------------------ CUDA

needs_cuda = pytest.mark.skipif(not lif_cuda.available()[0], reason=lif_cuda.available()[1])


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("coding", ["poisson", "direct"])
def test_a_network_on_cuda_is_the_reference_in_float64(coding, monkeypatch):
    found = step(network(coding, "float32", torch.float64, "cuda"), "cuda")
    monkeypatch.setattr(lif, "forced", "reference")
    wanted = step(network(coding, "float32", torch.float64, "cuda"), "cuda")
    for a, b in zip(found[1:3], wanted[1:3], strict=True):
        assert all(relative(a[name], b[name].double()) < 1e-12 for name in b if b[name].any())


BOUNDS = {"float32": 2e-6, "tf32": 2e-3, "bf16": 1e-2}
"""Of sums of 1152 products: float32 sums; factors rounded to 11 bits; to 8 bits, and the result too."""


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("precision", BOUNDS)
def test_each_precision_multiplies_what_it_says(precision, before):
    x = (drawn(8, 4, 128, 16, 16, seed=1) > 0.5).float().cuda()
    weight = drawn(64, 128, 3, 3, seed=2, dtype=torch.float32).cuda().requires_grad_()
    out = conv_cuda.convolve(x, weight, None, (1, 1), 1, precision)
    exact = F.conv2d(x.double().flatten(0, 1), weight.detach().double(), padding=1).unflatten(0, (8, 4))
    error = relative(out, exact)
    assert error < BOUNDS[precision]
    if precision != "float32":
        assert error > 2e-5  # it is really multiplied in fewer bits
    grad = drawn(*out.shape, seed=3, dtype=torch.float32).cuda().to(out.dtype)
    (found,) = torch.autograd.grad(out, weight, grad)
    wide = weight.detach().double().requires_grad_()
    y = F.conv2d(x.double().flatten(0, 1), wide, padding=1).unflatten(0, (8, 4))
    (wanted,) = torch.autograd.grad(y, wide, grad.double())
    assert relative(found, wanted) < BOUNDS[precision]
    a, w = drawn(64, 8, 1024, seed=4, dtype=torch.float32).cuda(), drawn(256, 1024, seed=5, dtype=torch.float32).cuda()
    error = relative(conv_cuda.product(a, w, None, precision), a.double() @ w.double().T)
    assert error < BOUNDS[precision] and (precision == "float32" or error > 2e-5)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("precision", BOUNDS)
def test_two_steps_on_cuda_are_bitwise_equal(precision):
    first, again = (step(network("poisson", precision, torch.float32, "cuda"), "cuda") for _ in range(2))
    for a, b in zip(first[1:3], again[1:3], strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.gpu
@needs_cuda
def test_what_a_bf16_layer_keeps_is_its_currents_and_a_bit_a_spike():
    """Memory between the passes, by neuron and step: 2 bytes of currents, 1/8 of spikes (and the last layers')."""
    net = build("vgg9", channels=3, size=(32, 32), classes=10, steps=8, precision="bf16").cuda()
    x, coding = torch.randn(16, 3, 32, 32, device="cuda"), torch.Generator("cuda").manual_seed(0)
    y = torch.zeros(16, dtype=torch.int64, device="cuda")
    for loss in net.losses(x, y, coding):
        loss.backward()  # workspaces of the libraries
    before = torch.cuda.memory_allocated()
    (loss,) = net.losses(x, y, coding)
    kept = torch.cuda.memory_allocated() - before
    neurons = 8 * 16 * 246_784
    assert 2.0 * neurons < kept < 2.7 * neurons + 2.5 * sum(p.numel() * 2 for p in net.parameters())


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(interpreted()))
