"""A model in other processes and threads."""

import copy
import multiprocessing
import pickle
import threading

import pytest
import torch

import gentok


def encoded(model):
    return model.encode(torch.linspace(-1, 1, 4000)[None, None]).codes


@pytest.mark.parametrize("name", ["spoken_digits_codec", "mnist5k_ar"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bundle_that_was_pickled_or_copied_is_the_same(name, dtype):
    model = gentok.load(name).to(dtype=dtype)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert again.spec == model.spec and again.meta == model.meta and again.path == model.path
        for part in ("tokenizer", "generator"):
            ours, theirs = getattr(model, part), getattr(again, part)
            assert (ours is None) == (theirs is None)
            if ours is not None:
                state = theirs.state_dict()
                assert all(v.dtype == state[k].dtype and torch.equal(v, state[k]) for k, v in ours.state_dict().items())
                assert not theirs.training and not any(p.requires_grad for p in theirs.parameters())


def test_a_spawned_pool_takes_a_bundle():
    model = gentok.load("spoken_digits_codec")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert torch.equal(pool.map(encoded, [model])[0], encoded(model))


def test_encoding_in_train_mode_changes_no_buffer_whatever_threads_overlap():
    """Two threads that surely overlap: each waits inside for the other."""
    codec = gentok.load("spoken_digits_codec").tokenizer.train()
    before = {key: value.clone() for key, value in codec.state_dict().items()}
    gate, forward, modes = threading.Barrier(2, timeout=1200), type(codec.codebook).forward, []

    def waiting(self, *args, **options):
        modes.append(self.training)
        gate.wait()  # both are inside
        out = forward(self, *args, **options)
        modes.append(self.training)
        return out

    type(codec.codebook).forward = waiting
    try:
        threads = [threading.Thread(target=codec.encode, args=(torch.rand(2, 1, 4000) * 2 - 1,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        type(codec.codebook).forward = forward
    assert modes == [False] * 4 and all(module.training for module in codec.codebook.modules())
    assert all(torch.equal(value, before[key]) for key, value in codec.state_dict().items())
