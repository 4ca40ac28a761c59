"""The Triton backend against plain torch: by Triton's interpreter where there is no GPU, by its compiler, and on CUDA.

Triton decides on import whether it interprets, so the interpreter and the compiler run in processes of their own: this
file is also the script that they run.
"""

import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from hwsim.config import UserError
from hwsim.network import lif_cuda, lif_cuda_kernels
from hwsim.network.spikes_cuda import recall

EPS = 1e-4
MARGIN = 2e-5  # no membrane of a case lies nearer to its threshold, so that rounding in float32 cannot flip a spike
BOUNDS = {"float32": 2e-5, "float64": 1e-12, "bfloat16": 2e-5}
"""Largest error as a fraction of the largest value of the reference."""
STORED = {"grad_x": 0.02, "grad_gain": 0.006}
"""The same where v, dm or the result lie in memory as bfloat16. The interpreter cuts off what hardware rounds, up to
2^-7 of a number: of v (at most 1 where it matters), of dm, of the result; sums of v's errors cancel in part."""


@dataclass(frozen=True)
class Case:
    T: int
    C: int
    H: int
    W: int
    pool: int = 1
    training: bool = True
    leak: float = 0.95
    threshold: float = 1.0
    dtype: str = "float32"
    tile: int = 2048
    B: int = 2

    def __str__(self):
        mode = "training" if self.training else "evaluation"
        return f"T{self.T}-C{self.C}-{self.H}x{self.W}-pool{self.pool}-{mode}-{self.dtype}-tile{self.tile}"


SMALL = [
    Case(3, 3, 4, 4),
    Case(4, 8, 1, 1, leak=0.5, B=9),  # an fc layer; two images would leave only rounding of the gradient
    Case(5, 17, 5, 5, pool=2, leak=0.99),
    Case(3, 17, 5, 5, training=False, threshold=0.7),
    Case(4, 8, 4, 5, pool=2, training=False, threshold=1.3),
    Case(3, 3, 1, 1, pool=2, dtype="float64"),
    Case(1, 1, 5, 1, dtype="float64"),
    Case(5, 17, 5, 4, pool=2, leak=0.9, threshold=0.7, dtype="float64"),
    Case(3, 40, 5, 5, pool=2, tile=256),  # several row and channel blocks
    Case(4, 40, 5, 4, leak=1.0, dtype="float64", tile=128),
    Case(3, 8, 5, 5, training=False, dtype="float64", tile=64),
    Case(4, 16, 5, 5, dtype="bfloat16"),
    Case(4, 17, 5, 4, pool=2, leak=0.9, threshold=0.7, dtype="bfloat16"),
    Case(4, 8, 1, 1, leak=0.5, B=9, dtype="bfloat16"),
    Case(3, 72, 4, 5, training=False, dtype="bfloat16", tile=256),  # two blocks of channels, the second not full
]


class Spike(torch.autograd.Function):
    """[v > 0] with the derivative 0.3 max(0, 1 - |v|)."""

    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx, g):
        return g * 0.3 * (1 - ctx.saved_tensors[0].abs()).clamp(min=0)


def neuron(y_TBCHW, leak, threshold):
    """Spikes and the smallest distance of a membrane from its threshold, step by step in plain torch."""
    u, spikes, margin = torch.zeros_like(y_TBCHW[0]), [], torch.inf
    divisor = y_TBCHW.new_tensor(threshold)  # by a Python number, CUDA would multiply with a rounded reciprocal
    for y in y_TBCHW:
        pre = leak * u + y
        v = pre / divisor - 1
        s = Spike.apply(v)
        u = pre - threshold * s.detach()
        spikes.append(s)
        margin = min(margin, v.detach().abs().min().item())
    return torch.stack(spikes), margin


def pooled(s_TBCHW, pool):
    """Averages over pool x pool without an odd last row or column; torch's own pooling refuses an image of one row."""
    h, w = (n // pool for n in s_TBCHW.shape[3:])
    return s_TBCHW[..., : h * pool, : w * pool].unflatten(4, (w, pool)).unflatten(3, (h, pool)).mean((4, 6))


def per_channel(p_TC):
    return p_TC[:, None, :, None, None]


def reference(case, x, gain, grad_out, running):
    """Everything that the backend gives, by autograd in float64."""
    x, gain = (p.double().requires_grad_() for p in (x, gain))
    var, mean = torch.var_mean(x, (1, 3, 4), correction=0)
    batch = {"mean": mean, "var": var}
    if not case.training:
        mean, var = (p.double() for p in running)
    y = per_channel(gain) * (x - per_channel(mean)) / torch.sqrt(per_channel(var) + EPS)
    s, margin = neuron(y, case.leak, case.threshold)
    out = pooled(s, case.pool)
    (out * grad_out.double()).sum().backward()
    counts = s.detach().sum((1, 2, 3, 4)).long()
    return batch | {"out": out, "counts": counts, "grad_x": x.grad, "grad_gain": gain.grad}, margin


def through_backend(case, x, gain, grad_out, running):
    mean, var = lif_cuda.statistics(x)
    batch = {"mean": mean, "var": var}
    if not case.training:
        mean, var = running
    invstd = 1 / torch.sqrt(var + EPS)
    scale = gain * invstd
    shift = -mean * scale
    out, counts = lif_cuda.fire(x, scale, shift, case.leak, case.threshold, case.pool)
    grad_x, grad_gain = lif_cuda.backward(
        grad_out, x, mean, invstd, scale, shift, case.leak, case.threshold, case.pool, case.training
    )
    s, _ = neuron(x.to(scale.dtype) * per_channel(scale) + per_channel(shift), case.leak, case.threshold)
    found = batch | {"out": out, "counts": counts, "grad_x": grad_x, "grad_gain": grad_gain}
    return found, pooled(s, case.pool).to(out.dtype)


def short_copies(case, x, scale, shift):
    """How many values of the short copy of the spikes, made whole again, are not theirs; and the copy's bytes."""
    spikes, counts = lif_cuda.fire_and_keep(x, scale, shift, case.leak, case.threshold, case.pool)
    plain, plain_counts = lif_cuda.fire(x, scale, shift, case.leak, case.threshold, case.pool)
    parts = case.pool**2
    kept = recall(spikes, parts)
    assert recall(plain, parts) is None and recall(spikes, parts + 1) is None
    again = kept.again(x.dtype)
    assert again.dtype == x.dtype and again.shape == spikes.flatten(0, 1).shape
    assert not again.numel() or again.is_contiguous(memory_format=torch.channels_last)
    wrong = (again != spikes.flatten(0, 1) * parts).sum() + (plain != spikes).sum() + (counts != plain_counts).sum()
    spikes += 1
    assert recall(spikes, parts) is None  # the copy is not theirs any more
    return {"wrong": int(wrong), "bytes": kept.values.numel() * kept.values.element_size()}


def inputs(case, seed, device):
    """Currents (channels-last; means of both signs, so that an absent position would fire), gains, output gradient,
    running statistics."""
    generator = torch.Generator().manual_seed(seed)
    dtype, T, B, C = getattr(torch, case.dtype), case.T, case.B, case.C

    state = torch.float32 if dtype == torch.bfloat16 else dtype

    def drawn(*shape):
        return torch.randn(shape, generator=generator).to(device, state)

    center = (10 + drawn(C)) * (-1) ** torch.arange(C, device=device)
    x = (drawn(T, B, case.H, case.W, C) * 3 + center).permute(0, 1, 4, 2, 3).to(dtype)
    grad_out = drawn(T, B, C, case.H // case.pool, case.W // case.pool).to(dtype)
    running = center + drawn(T, C), 9 + drawn(T, C).abs()
    return x, 1 + 0.3 * drawn(T, C), grad_out, running


def errors(case, device="cpu"):
    """Largest error of each result as a fraction of the reference's largest value, and how many spikes differ."""
    lif_cuda._TILE = case.tile
    for seed in range(100):
        given = inputs(case, seed, device)
        expected, margin = reference(case, *given)
        if margin > MARGIN:
            break
    else:
        raise AssertionError(f"{case}: no seed keeps every membrane {MARGIN} away from the threshold")
    found, same_rounding = through_backend(case, *given)
    report = {"spikes that plain torch rounds otherwise": int((found["out"] != same_rounding).sum())}
    report["fired"] = expected["counts"].double().mean().item() / (case.B * case.C * case.H * case.W)
    for name, value in expected.items():
        got = found[name]
        assert got.shape == value.shape, f"{case}: {name} has shape {tuple(got.shape)}, not {tuple(value.shape)}"
        wanted = {"counts": torch.int64, "out": given[0].dtype, "grad_x": given[0].dtype}.get(name, given[1].dtype)
        assert got.dtype == wanted, f"{case}: {name} is {got.dtype}"
        top = value.detach().abs().max().item() if value.numel() else 0
        apart = (got.double() - value.detach().double()).abs().max().item() if value.numel() else 0
        report[name] = apart / (top or 1)
    mean, var = expected["mean"], expected["var"]
    scale = (given[1].double() / torch.sqrt(var + EPS)).to(given[1].dtype)
    report["short"] = short_copies(case, given[0], scale, (-mean * scale.double()).to(scale.dtype).detach())
    return report


def hold(report, case):
    """The bounds: spikes and counts exactly, everything else to `BOUNDS`; and the case is not an empty one."""
    assert 0.02 < report.pop("fired") < 0.9
    elements = case.T * case.B * case.C * (case.H // case.pool) * (case.W // case.pool)
    each = 8 if case.pool == 1 and case.C % 8 == 0 else 1
    assert report.pop("short") == {"wrong": 0, "bytes": elements // each}
    exact = {name: report[name] for name in ("counts", "out", "spikes that plain torch rounds otherwise")}
    assert exact == dict.fromkeys(exact, 0)
    bounds = dict.fromkeys(report, BOUNDS[case.dtype]) | (STORED if case.dtype == "bfloat16" else {})
    assert {name: e for name, e in report.items() if e > bounds[name]} == {}


def at_threshold(device="cpu"):
    """Spike counts of currents exactly at the threshold, and one unit in the last place above it."""
    # Times a rounded 1 / 0.77 instead of over 0.77, the larger current would not fire.
    threshold = torch.full((1, 3, 2, 1, 1), 0.77, device=device)
    above = threshold.nextafter(torch.tensor(1.0, device=device))
    one = torch.ones(1, 2, device=device)
    return [lif_cuda.fire(x, one, 0 * one, 0.9, 0.77, 1)[1].tolist() for x in (threshold, above)]


def far_from_zero(device="cpu"):
    """Relative error of the variance of currents whose mean is ten thousand times their spread."""
    x = torch.randn(2, 40, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(device) + 1e4
    expected = x.double().var((1, 3, 4), correction=0)
    return (lif_cuda.statistics(x)[1].double() / expected - 1).abs().max().item()


POINTERS = {
    torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.uint8: "*u8",
}  # fmt: skip
KERNELS = ("moments", "merge", "membrane", "reverse", "normalize", "unpack")


def compiled(arch):
    """PTX of every kernel as `statistics`, `fire` and `backward` launch it, for a GPU that need not be there."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    found = {}

    class Recorder:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return self

        def __call__(self, *args, num_warps, enable_fp_fusion=True, **constants):
            given = dict(zip(self.kernel.arg_names, args, strict=False)) | constants
            signature, values, attributes = {}, {}, {}
            for i, (name, param) in enumerate(zip(self.kernel.arg_names, self.kernel.params, strict=True)):
                value = given[name]
                if param.is_constexpr or (type(value) is int and value == 1):  # 1 is a constant to Triton
                    signature[name], values[(i,)] = "constexpr", value
                    continue
                if isinstance(value, torch.Tensor):
                    signature[name] = POINTERS[value.dtype]
                else:
                    signature[name] = "i32" if value < 2**31 else "i64"
                if isinstance(value, torch.Tensor) or value % 16 == 0:
                    attributes[(i,)] = [["tt.divisibility", 16]]
            source = ASTSource(fn=self.kernel, signature=signature, constexprs=values, attrs=attributes)
            options = {"num_warps": num_warps, "enable_fp_fusion": enable_fp_fusion}
            out = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
            kinds = signature.values()
            kind = "fp64" if "*fp64" in kinds else "bf16" if "*bf16" in kinds else "fp32"
            key = f"{self.kernel.__name__} {kind} C{given.get('C', 0)}"
            found[f"{key} {len(found)}"] = {"ptx": out.asm["ptx"], "cubin": len(out.asm["cubin"])}

    for name in KERNELS:
        setattr(lif_cuda_kernels, name, Recorder(getattr(lif_cuda_kernels, name)))
    for case in (
        Case(4, 32, 32, 32, pool=2, threshold=0.7),
        Case(1, 1, 1, 1, B=1),
        Case(3, 17, 5, 5, pool=2, training=False, dtype="float64"),
        Case(4, 64, 32, 32, dtype="bfloat16"),
        Case(4, 64, 32, 32, pool=2, dtype="bfloat16"),
    ):
        x, gain, grad_out, running = inputs(case, 0, "cpu")
        lif_cuda.statistics(x)
        spikes, _ = lif_cuda.fire_and_keep(x, gain, gain, case.leak, case.threshold, case.pool)
        recall(spikes, case.pool**2).again(x.dtype)
        lif_cuda.backward(grad_out, x, *running, gain, gain, case.leak, case.threshold, case.pool, case.training)
    return found


@functools.cache
def process(job, cache):
    """The finished process that runs this file as a script, with Triton interpreting or compiling."""
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    environment |= {"TRITON_INTERPRET": str(int(job == "errors")), "TRITON_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, __file__, job], env=environment, capture_output=True, text=True, timeout=600)


def in_a_process(job, cache=""):
    """What this file prints as a script for a job, `errors` or `compile-80`."""
    done = process(job, cache)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def version(package):
    """(major, minor) of an installed package, or None."""
    try:
        return tuple(int(n) for n in importlib.metadata.version(package).split(".")[:2])
    except importlib.metadata.PackageNotFoundError:
        return None


TRITON = version("triton")
needs_triton = pytest.mark.skipif(TRITON is None, reason="triton is not installed")
needs_interpreter = pytest.mark.skipif(
    TRITON is None or (TRITON < (3, 7) and version("numpy") >= (2, 4)),
    reason="triton is not installed, or its interpreter (before 3.7) does not know numpy 2.4",
)
needs_cuda = pytest.mark.skipif(not lif_cuda.available()[0], reason=lif_cuda.available()[1])


@needs_interpreter
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_interpreted_kernels_agree_with_autograd(case):
    report = in_a_process("errors")[str(case)]
    hold(dict(report), case)


@needs_interpreter
def test_a_membrane_at_the_threshold_does_not_fire():
    assert in_a_process("errors")["at threshold"] == [[0], [6]]


@needs_interpreter
def test_variance_survives_a_mean_far_from_zero():
    assert in_a_process("errors")["far from zero"] < 1e-3  # E[x²] - E[x]² in float32 would lose every digit


@needs_triton
@pytest.mark.parametrize("arch", [80, 90])
def test_kernels_compile_for_a_gpu_without_atomics_or_fused_rounding(arch, tmp_path):
    kernels = in_a_process(f"compile-{arch}", str(tmp_path))
    assert {name.split()[0] for name in kernels} == set(KERNELS)
    for name, kernel in kernels.items():
        assert kernel["cubin"] > 0
        assert not re.search(r"\b(atom|red|fma)\.", kernel["ptx"]), name
        if "fp32 C32" in name or "bf16 C64" in name:
            assert "ld.global.v4.b32" in kernel["ptx"], f"{name}: channels are not read 16 bytes at a time"
        if "membrane fp32 C32" in name or "membrane bf16 C64" in name:
            assert "div.rn.f32" in kernel["ptx"] and "div.full.f32" not in kernel["ptx"], f"{name}: inexact division"


@pytest.fixture
def without_triton(monkeypatch):
    """The module as it is where triton is not installed."""
    monkeypatch.setitem(sys.modules, "triton", None)

    def again(module):
        spec = importlib.util.spec_from_file_location(f"{module.__name__}_without_triton", module.__file__)
        fresh = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(fresh)
        return fresh

    monkeypatch.setitem(sys.modules, "hwsim.network.lif_cuda_kernels", again(lif_cuda_kernels))
    monkeypatch.setattr(sys.modules["hwsim.network"], "lif_cuda_kernels", sys.modules["hwsim.network.lif_cuda_kernels"])
    return again(lif_cuda)


def test_without_triton_the_module_says_so(without_triton):
    assert without_triton.available() == (False, "triton cannot be imported")


def test_using_the_kernels_without_triton_names_the_way_out(without_triton):
    with pytest.raises(UserError, match="pip install triton"):
        without_triton.statistics(torch.zeros(1, 1, 1, 1, 1))


def test_half_precision_is_refused():
    with pytest.raises(UserError, match=r"torch\.float16; float32, float64 and bfloat16"):
        lif_cuda.statistics(torch.zeros(1, 1, 1, 1, 1, dtype=torch.float16))


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_kernels_on_cuda_agree_with_autograd(case, monkeypatch):
    monkeypatch.setattr(lif_cuda, "_TILE", case.tile)  # put back afterwards
    hold(errors(case, "cuda"), case)


LARGE = Case(20, 64, 33, 32, pool=2, B=16, dtype="float64")


@pytest.mark.gpu
@needs_cuda
def test_threshold_and_variance_on_cuda():
    assert at_threshold("cuda") == [[0], [6]]
    assert far_from_zero("cuda") < 1e-3


@pytest.mark.gpu
@needs_cuda
def test_large_layer_on_cuda_agrees_with_autograd(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "MARGIN", 1e-11)
    hold(errors(LARGE, "cuda"), LARGE)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("pool", [1, 2])
def test_two_runs_on_cuda_are_bitwise_equal_and_round_like_torch(pool):
    case = Case(20, 64, 33, 32, pool=pool, B=16)
    given = inputs(case, 0, "cuda")
    first, same_rounding = through_backend(case, *given)
    again, _ = through_backend(case, *given)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.equal(first["out"], same_rounding)


@pytest.mark.gpu
@needs_cuda
def test_offsets_beyond_32_bits_reach_the_last_step():
    if torch.cuda.get_device_properties(0).total_memory < 40e9:
        pytest.skip("needs 40 GB of GPU memory")
    x = torch.zeros(3, 256, 64, 64, 1024, device="cuda").permute(0, 1, 4, 2, 3)  # 3.2e9 values, 12.9 GB
    x[-1, -1, -1] = 2.0
    one = torch.ones(3, 1024, device="cuda")
    _, counts = lif_cuda.fire(x, one, torch.zeros_like(one), 0.5, 1.0, 2)
    mean, _ = lif_cuda.statistics(x)
    assert counts.tolist() == [0, 0, 64 * 64]
    assert mean[-1, -1].item() == pytest.approx(2 / 256) and mean.count_nonzero() == 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    job = sys.argv[1]
    if job == "errors":
        report = {"at threshold": at_threshold(), "far from zero": far_from_zero()}
        report |= {str(case): errors(case) for case in SMALL}
    else:
        report = compiled(int(job.removeprefix("compile-")))
    print(json.dumps(report))
