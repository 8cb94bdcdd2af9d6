"""`gentok check` names the operations that a device makes in another way than the CPU. Devices that are wrong on purpose stand in."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from gentok.bundle import load
from gentok.device_check import check_device

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def bundle():
    return load("mnist5k_ar")


class Device:
    """A device that makes one operation wrongly, or not at all."""

    def __init__(self, operation, wrong):
        self.operation, self.wrong = operation, wrong

    def __call__(self, func, args, kwargs):
        if str(func).rsplit(".", 1)[0] == self.operation:
            return self.wrong(func, args, kwargs)
        return func(*args, **kwargs)


def shifted(func, args, kwargs):
    return func(*args, **kwargs) * 1.01 + 0.001


def missing(func, args, kwargs):
    raise NotImplementedError(f"The operator '{func}' is not currently implemented for the device")


def without_float64(func, args, kwargs):
    if kwargs.get("dtype") == torch.float64:
        raise TypeError("Cannot convert a tensor to float64")
    return func(*args, **kwargs)


def fallen_back(func, args, kwargs):
    name = str(func).rsplit(".", 1)[0].replace("aten.", "aten::")
    warnings.warn(f"The operator '{name}' is not supported on the device and will fall back to run on the CPU.", stacklevel=2)
    return func(*args, **kwargs)


def found(bundle, *device):
    findings, counts = check_device(bundle, "cpu", *([Device(*device)] if device else []), samplers=False)
    assert list(counts) == ["random numbers", "draw", "exponential_race", "encoder", "decoder", "generator"] and min(counts.values()) > 0
    return {(one.family, one.operation): one for one in findings}


@pytest.mark.slow
def test_the_cpu_is_as_the_cpu(bundle):
    assert found(bundle) == {}


def test_an_operation_that_is_wrong_is_named_with_what_it_is_part_of(bundle):
    named = found(bundle, "aten.convolution", shifted)
    assert {("encoder", "aten.convolution"), ("decoder", "aten.convolution")} <= set(named) and ("draw", "aten.convolution") not in named
    assert {one.kind for one in named.values()} == {"differs"} and {operation for _, operation in named} <= {"aten.convolution", ""}
    assert ("decoder", "") in named, "the sound or image that comes out differs, too"


def test_what_a_device_does_not_have_is_named_and_the_rest_is_still_compared(bundle):
    named = found(bundle, "aten.searchsorted", missing)
    assert set(named) == {("draw", "aten.searchsorted")} and "is not there" in str(named["draw", "aten.searchsorted"])


@pytest.mark.slow
def test_a_device_without_64_bit_floats_and_one_of_wrong_sums_are_found_out(bundle):
    assert set(found(bundle, "aten.cumsum", lambda func, args, kwargs: args[0])) >= {("draw", "aten.cumsum")}
    named = found(bundle, "aten._to_copy", without_float64)
    assert "float64" in named["random numbers", "aten._to_copy"].about and named["random numbers", "aten._to_copy"].kind == "fails"


@pytest.mark.slow
def test_what_falls_back_to_the_cpu_is_named(bundle):
    named = found(bundle, "aten.searchsorted", fallen_back)
    assert set(named) == {("draw", "aten.searchsorted")} and str(named["draw", "aten.searchsorted"]) == "draw: aten.searchsorted falls back"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist5k_ar", "docs/zoo/spoken_digits_ar_delay", "docs/zoo/mnist5k_next_scale", "docs/zoo/cifar10_xar"])
def test_the_command_says_that_all_is_well(name):
    words = [sys.executable, "-m", "gentok.device_check", name, "device=cpu"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("cpu: ") and "sampler " in done.stdout, done.stdout + done.stderr
