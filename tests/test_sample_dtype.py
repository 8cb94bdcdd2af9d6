"""sample.py dtype=...: the weights that a generator samples with."""

import pytest
import torch

import gentok
from gentok.nn.linear import Int8Linear
from gentok.sampling import lower_precision, sample


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_stored_model_samples_with_weights_of_fewer_bits(dtype):
    bundle = gentok.load("mnist5k_ar")
    assert lower_precision(bundle.generator, dtype) is bundle.generator
    types = {p.dtype for p in bundle.generator.parameters()}
    assert types == {torch.bfloat16 if dtype == "bfloat16" else torch.float32}
    assert any(isinstance(part, Int8Linear) for part in bundle.generator.modules()) == (dtype == "int8")
    out = sample(bundle, n=2, condition=7, guidance=2.0)
    assert out.media.shape[0] == 2 and out.media.isfinite().all()


def test_another_type_is_refused_in_one_line():
    with pytest.raises(ValueError, match="int8"):
        lower_precision(torch.nn.Linear(2, 2), "int4")
