"""`gentok check ckpt=BUNDLE device=mps`: whether a device computes what the CPU computes, operation by operation.

A model's encoder, decoder, generator and samplers work on the device as they always do, and every tensor operation on the way is made again
on the CPU with the same inputs. So an operation that is wrong there is named, and what comes after it is compared on its own account. An
operation that the device does not have is made on the CPU, and is named as well. Devices without 64-bit floats, in which gentok's random
numbers and draws are computed, show as operations that fail.
"""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from gentok.bundle import Bundle, load
from gentok.command import run_command
from gentok.devices import chosen_device
from gentok.errors import ConfigError, counted
from gentok.rng import RowRNG
from gentok.samplers.base import Sampler, fitting, sampler_name
from gentok.samplers.draws import draw, exponential_race
from gentok.sampling import configured_sampler
from gentok.sampling_plan import sample_tokens
from gentok.types import Frames, Latents, Tokens

__all__ = ["Finding", "check_device", "main"]

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}
"""Largest difference that is no finding, as a share of the largest value; that of float32 lets products in TF32 pass."""
_SKIPPED = re.compile(r"aten\.(empty|new_empty|rand|randn|randint|bernoulli|normal|uniform|exponential|multinomial|detach|alias|lift)")

Call = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


@dataclass
class Finding:
    """An operation that is not as on the CPU.

    Attributes:
        family: what was being computed: "encoder", "decoder", "generator", "draws", or "sampler NAME".
        operation: its name in torch, such as aten.convolution; "": the family as a whole.
        kind: "differs", "falls back" (made on the CPU by torch), "is not there", or "fails".
        about: the largest difference, or the device's message.
        calls: how often.
    """

    family: str
    operation: str
    kind: str
    about: str = ""
    calls: int = 1

    def __str__(self) -> str:
        what = f"{self.operation} {self.kind}" if self.operation else self.kind
        return f"{self.family}: {what}" + (f" ({self.about})" if self.about else "") + (f", {self.calls} calls" if self.calls > 1 else "")


class _Compared(TorchDispatchMode):
    """Makes every operation on the device again on the CPU."""

    def __init__(self, device: torch.device, family: str, findings: dict[tuple[str, str, str], Finding], call: Call):
        super().__init__()
        self.device, self.family, self.findings, self.call, self.operations = device, family, findings, call, 0
        self.alone: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, str(func).rsplit(".", 1)[0]
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        if _SKIPPED.match(name):
            return func(*args, **kwargs)
        if self.device.type != "cpu" and any(t.device.type == "cpu" and t.is_floating_point() and t.dim() for t in tensors):
            return func(*tree_map(_cpu, args), **tree_map(_cpu, kwargs))  # goes on behind what the device could not do
        self.operations += 1
        host_args, host_kwargs = tree_map(_host, args), tree_map(_host, kwargs)
        if "device" in host_kwargs:
            host_kwargs["device"] = torch.device("cpu")
        try:
            expected = func(*host_args, **host_kwargs)
        except (NotImplementedError, RuntimeError):  # an operation of that backend alone: the result of the whole says whether it is right
            self.alone.add(name)
            return self.call(func, args, kwargs)
        try:
            out = self.call(func, args, kwargs)
        except (NotImplementedError, RuntimeError, TypeError) as error:
            self._note(name, "is not there" if isinstance(error, NotImplementedError) else "fails", str(error).splitlines()[0])
            return tree_map(self._back, expected)
        pairs = list(zip(tree_flatten(out)[0], tree_flatten(expected)[0]))
        if len(pairs) > 1 and isinstance(pairs[0][0], Tensor) and pairs[0][0].is_floating_point():
            # the order of equal values is free: places of sort and topk are not compared
            pairs = [pair for pair in pairs if isinstance(pair[0], Tensor) and pair[0].is_floating_point()]
        worst = max((_difference(*pair) for pair in pairs), default=0.0)
        if worst > 1:
            self._note(name, "differs", worst=worst)
        return out

    def _back(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            with contextlib.suppress(TypeError, RuntimeError, NotImplementedError):  # no 64-bit floats there: it stays on the CPU
                return value.to(self.device)
        return value

    def _note(self, operation: str, kind: str, about: str = "", worst: float = 0.0) -> None:
        found = self.findings.setdefault((self.family, operation, kind), Finding(self.family, operation, kind, about, 0))
        found.calls += 1
        if kind == "differs":
            before = float(found.about.split()[0]) if found.about else 0.0
            found.about = f"{max(worst, before):.3g} times the tolerance"


def _host(value: Any) -> Any:
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def _cpu(value: Any) -> Any:
    return value.cpu() if isinstance(value, Tensor) else torch.device("cpu") if isinstance(value, torch.device) else value


def _difference(out: Any, expected: Any) -> float:
    """The largest difference as a multiple of the tolerance; of what is no float 0 or infinity."""
    if not isinstance(out, Tensor) or not isinstance(expected, Tensor) or not out.numel():
        return 0.0
    out = out.detach().cpu()
    if out.shape != expected.shape or out.dtype != expected.dtype:
        return float("inf")
    if not out.is_floating_point():
        return 0.0 if out.equal(expected) else float("inf")
    finite = expected.isfinite()
    if not out.isfinite().equal(finite) or not out[~finite].nan_to_num().equal(expected[~finite].nan_to_num()):
        return float("inf")
    if not bool(finite.any()):
        return 0.0
    scale = float(expected[finite].abs().max())
    return float((out[finite] - expected[finite]).abs().max()) / (max(scale, 1e-6) * TOLERANCE.get(out.dtype, 1e-2))


# -------------------------------------------------------------------------------------------------------------- families


def check_device(
    bundle: Bundle, device: str | torch.device, call: Call = lambda func, args, kwargs: func(*args, **kwargs), samplers: bool = True
) -> tuple[list[Finding], dict[str, int]]:
    """Compares a model's operations on a device with the CPU's.

    Args:
        bundle: on the CPU; it is moved to the device, and back.
        device: the device.
        call: makes an operation there; another one stands in for a device that a machine does not have.
        samplers: whether all samplers that fit are run.

    Returns:
        (what is not as on the CPU, family -> operations that were compared).
    """
    device, findings, counts = torch.device(device), {}, {}  # type: ignore[var-annotated]
    families = list(_families(bundle, samplers))
    with torch.no_grad():
        expected = {name: (compared, _host_result(work(torch.device("cpu")))) for name, work, compared in families}
        bundle.to(device)
        torch.set_warn_always(True)  # torch says of an operation that falls back to the CPU once alone
        try:
            for name, work, _ in families:
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    mode = _Compared(device, name, findings, call)
                    try:
                        with mode:
                            made = work(device)
                        _compare_whole(mode, *expected[name], _host_result(made))
                    except Exception as error:  # said of the family, and the next is tried
                        findings[(name, "", "fails")] = Finding(name, "", "fails", f"{type(error).__name__}: {str(error).splitlines()[0]}")
                counts[name] = mode.operations
                for line in said:
                    if found := re.search(r"operator '(?:aten::)?([\w.]+)'.*fall back", str(line.message)):
                        key = name, f"aten.{found[1]}", "falls back"
                        findings.setdefault(key, Finding(*key, calls=0)).calls += 1
        finally:
            torch.set_warn_always(False)
            bundle.to("cpu")
    return list(findings.values()), counts


def _compare_whole(mode: _Compared, compared: bool, expected: Any, made: Any) -> None:
    """What a family made against what it makes on the CPU: floats, and codes of which a hundredth may be near ties."""
    if not compared:
        return
    if not expected.is_floating_point():
        share = float((expected != made).double().mean()) if expected.shape == made.shape else 1.0
        about = f"{share:.1%} of the codes" if share > 0.01 else ""
    else:
        worst = _difference(made, expected)
        about = f"{worst:.3g} times the tolerance" if worst > 10 else ""
    if about:
        alone = f"; operations of that device alone: {', '.join(sorted(mode.alone))}" if mode.alone else ""
        mode.findings[(mode.family, "", "differs")] = Finding(mode.family, "", "differs", about + alone)


def _host_result(made: Any) -> Any:
    made = made.codes if isinstance(made, Tokens) else made.values if isinstance(made, Latents) else made
    return made.detach().cpu() if isinstance(made, Tensor) else made


def _families(bundle: Bundle, samplers: bool) -> Iterator[tuple[str, Callable[[torch.device], Any], bool]]:
    """(name, what computes it on a device, whether its result is that of the CPU)."""
    spec, generator, rows = bundle.spec, bundle.generator, range(2)
    media = _media(bundle)
    with torch.no_grad():
        tokens = bundle.tokenizer.encode(media)
    numbers = ("uniform", "exponential", "gumbel", "normal")
    yield "random numbers", lambda d: torch.cat([getattr(RowRNG.of(0, rows).to(d), name)(64) for name in numbers]), True
    logits = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0))
    for name, draws in (("draw", draw), ("exponential_race", exponential_race)):
        yield name, lambda d, draws=draws: draws(logits.to(d), RowRNG.of(0, rows).to(d)), True
    yield "encoder", lambda d: bundle.tokenizer.encode(media.to(d)), True
    yield "decoder", lambda d: bundle.tokenizer.decode(tokens.to(d)), not bundle.tokenizer.generative
    if generator is None:
        return
    condition = bundle.condition_spec.parse(None, 2)
    whole = tokens if isinstance(tokens, Latents) else tokens.padded(generator.spec)
    if isinstance(spec.grid, Frames) and isinstance(whole, Tokens):
        whole.lengths = torch.full((2,), tokens.codes.shape[2])
    yield "generator", lambda d: generator.loss(whole.to(d), condition.to(d), RowRNG.of(0, rows).to(d)).loss, True
    for cls in fitting(generator) if samplers else ():
        try:
            sampler = configured_sampler(sampler_name(cls), type(generator), {})
        except ValueError:  # it needs another model beside this one
            continue
        yield f"sampler {sampler_name(cls)}", lambda d, sampler=sampler: _drawn(bundle, sampler, condition.to(d), d), False


def _drawn(bundle: Bundle, sampler: Sampler, condition: Any, device: torch.device) -> Any:
    rng, guidance = RowRNG.of(0, range(2)).to(device), bundle.meta.get("guidance", 1.0)
    return sample_tokens(bundle.generator, condition, sampler, rng=rng, guidance=guidance).tokens


def _media(bundle: Bundle) -> Tensor:
    """Two items of noise, smooth enough to be taken for media: float [2, C, ...], of sound 0.4 s."""
    spec, generator = bundle.spec, torch.Generator().manual_seed(0)
    channels, *size = spec.media_shape or (1,)
    if spec.modality == "audio":
        size = [round(0.4 * (spec.sample_rate or 16000))]
    return torch.randn(2, channels, *size, generator=generator).cumsum(-1).mul(0.1).sin()


def main(argv: Any = None) -> None:
    """The command. argv: the words behind its name; None: those of this process."""
    def check(ckpt: str, device: str = "auto", trust: str = "", samplers: str = "true") -> int:
        if samplers not in ("true", "false"):
            raise ConfigError(f"samplers={samplers}: expected true or false")
        chosen = chosen_device(device)
        bundle = load(ckpt, trust=[word for word in trust.strip("[]").split(",") if word])
        findings, counts = check_device(bundle, chosen, samplers=samplers == "true")
        for found in findings:
            print(found)
        wrong = {found.family for found in findings if found.kind != "falls back"}
        fine = [name for name in counts if name not in wrong]
        print(f"{chosen}: {counted(sum(counts.values()), 'operation')} compared with the CPU; as there: {', '.join(fine) or 'nothing'}")
        return int(bool(wrong))

    sys.exit(run_command(check, argv, "gentok check CKPT [device=mps|cuda|cpu] [trust=[PACKAGE]] [samplers=false]", positional="ckpt"))


if __name__ == "__main__":
    main()
