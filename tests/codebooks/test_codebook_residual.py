"""Levels of residuals: every commitment reaches the encoder, dropout of levels, greedy nearest, parity with vector-quantize-pytorch."""

from __future__ import annotations

import pytest
import torch
from codebook_kit import inputs, make, mutant, rng

from gentok.codebooks.fsq import FSQ
from gentok.codebooks.lfq import LFQ
from gentok.codebooks.residual import ResidualCodebook
from gentok.codebooks.vq import VQ
from gentok.types import ABSENT


def book(cls: type = ResidualCodebook, levels: int = 4, inner: dict | None = None, **options) -> ResidualCodebook:
    options = {"level_dropout": 0.0, **options}
    return cls(VQ(vocab_size=32, dim=6, **{"normalize": False, "update": "ema", "kmeans_start": 5, **(inner or {})}), levels, **options)


def every_commitment_reaches_the_encoder(cls: type, **inner) -> None:
    """The law: with the weight of all other levels at zero, each level's loss has a gradient at the input."""
    for level in range(4):
        b = book(cls, inner=inner).train()
        for k, part in enumerate(b.books):
            part.commitment = float(k == level)
        z = inputs(b).requires_grad_()
        q = b(z, rng=rng())
        q.losses["commitment"].backward()
        assert z.grad.abs().max() > 1e-8, f"the commitment of level {level} does not reach the encoder"


@pytest.mark.parametrize("inner", [{}, {"update": "gradient"}, {"normalize": True}], ids=str)
def test_every_levels_commitment_reaches_the_encoder(inner):
    every_commitment_reaches_the_encoder(ResidualCodebook, **inner)


def test_the_law_of_commitments_catches_a_straight_through_inside_the_residual():
    wrong = mutant(ResidualCodebook, ("value = q.vectors.detach()", "value = q.vectors"))
    with pytest.raises(AssertionError, match="level 1"):
        every_commitment_reaches_the_encoder(wrong)


def test_the_decoders_gradient_arrives_once():
    """One straight-through over the sum; the sum of the levels' own would arrive K times."""
    b = book().train()
    z = inputs(b).requires_grad_()
    b(z).vectors.backward(weight := torch.randn(16, 6, 16))
    assert torch.equal(z.grad, weight)


def dropout_cuts_rows_to_a_uniform_number_of_levels(cls: type) -> None:
    b = book(cls, level_dropout=0.5).train()
    z = inputs(b, batch=2000, positions=1)
    q = b(z, rng=rng(2000))
    kept = (q.codes[:, :, 0] >= 0).sum(1)
    share = torch.bincount(kept, minlength=5) / 2000
    expected = torch.tensor([0, 1 / 8, 1 / 8, 1 / 8, 5 / 8])
    assert (share - expected).abs().max() < 0.03 and share[0] == 0
    assert (b(z).codes >= 0).all() and (b.eval()(z, rng=rng(2000)).codes >= 0).all()


def test_dropout_cuts_rows_to_a_uniform_number_of_levels():
    dropout_cuts_rows_to_a_uniform_number_of_levels(ResidualCodebook)


@pytest.mark.parametrize(
    "edit",
    [
        ("here = None if n_levels is None else (n_levels > k).long()", "here = None"),  # drawn, and then not used
        ("1 + (u[:, 1] * levels).long(), levels)\n        if", "(u[:, 1] * levels).long(), levels)\n        if"),  # rows without any level
        ("u[:, 0] < self.level_dropout", "u[:, 1] < self.level_dropout"),  # one number decides both: only few levels are ever kept
    ],
    ids=["unused", "from_zero", "one_draw"],
)
def test_the_law_of_dropout_catches(edit):
    with pytest.raises(AssertionError):
        dropout_cuts_rows_to_a_uniform_number_of_levels(mutant(ResidualCodebook, edit))


def rows_that_died_come_back_at_every_level(cls: type, shared: bool) -> None:
    """The law: rows that have moved out of all data's reach are in use again after two steps, at whichever level they are."""
    b = book(cls, shared=shared, inner={"revive_below": 0.1, "decay": 0.9}).train()
    b(inputs(b), rng=rng())
    for part in b.books:
        part._set(slice(16, None), 1e3 * torch.ones(16, 6), 1e-3)
    for step in range(2):
        b(inputs(b, seed=step), rng=rng(step=step))
    for k, part in enumerate(b.books):
        assert part.weight.abs().max() < 100, f"level {k} has dead rows"
    codes = b.eval()(inputs(b)).codes
    used = [len(codes.unique())] if shared else [len(level.unique()) for level in codes.unbind(1)]  # one table serves all levels together
    assert all(n > 16 for n in used), used


@pytest.mark.parametrize("shared", [False, True])
def test_dead_rows_revive_at_every_level(shared):
    rows_that_died_come_back_at_every_level(ResidualCodebook, shared)


@pytest.mark.parametrize("shared", [False, True])
def test_the_law_of_revival_catches_levels_without_noise(shared):
    wrong = mutant(ResidualCodebook, ("rng=None if rng is None else rng.fork(k))", "rng=None)"))
    with pytest.raises(AssertionError, match="dead rows"):
        rows_that_died_come_back_at_every_level(wrong, shared)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("levels", [4, 8, 16])
def test_every_prefix_of_the_levels_is_a_code_of_its_own(levels, shared):
    """Encoding with k levels gives the first k codes of the whole, at RQ-VAE's sizes of K. With a table for each level the first four lower
    the error each; one table for all, three steps young, still fits the first level alone."""
    b = book(levels=levels, shared=shared).train()
    for step in range(3):
        b(inputs(b, seed=step), rng=rng(step=step))
    b.eval()
    z = inputs(b)
    full, errors = b(z), [z.square().mean()]
    for k in range(1, levels + 1):
        q = b(z, n_levels=torch.full((16,), k))
        assert torch.equal(q.codes[:, :k], full.codes[:, :k]) and (q.codes[:, k:] == ABSENT).all()
        assert torch.equal(b.lookup(q.codes), q.vectors)
        errors.append((q.vectors - z).square().mean())
    assert shared or all(after < before for before, after in zip(errors[:4], errors[1:5]))


def test_dropout_of_a_batch_cuts_all_rows_alike_whatever_their_order():
    b = book(batch_dropout=0.5).train()
    z = inputs(b)
    seen = []
    for step in range(200):
        row_noise = rng(step=step)
        n_levels = b._draw_n_levels(16, row_noise)
        assert len(n_levels.unique()) == 1
        assert torch.equal(n_levels, b._draw_n_levels(16, row_noise.rows(torch.arange(15, -1, -1))))
        seen.append(n_levels[0])
    share = torch.bincount(torch.stack(seen), minlength=5) / 200
    assert (share - torch.tensor([0, 1 / 8, 1 / 8, 1 / 8, 5 / 8])).abs().max() < 0.1
    q = b(z, rng=rng())
    assert torch.equal((q.codes >= 0).all(2), (q.codes >= 0).any(2))


def test_losses_and_statistics_are_those_of_the_kept_cells():
    whole, part = book().train(), book().train()
    part.load_state_dict(whole.state_dict())
    z = inputs(whole)
    n_levels = torch.where(torch.arange(16) < 8, 4, 0)
    a, b = whole(z[:8], rng=rng(8)), part(z, n_levels=n_levels, rng=rng(16))
    assert torch.equal(a.codes, b.codes[:8]) and (b.codes[8:] == ABSENT).all()
    assert torch.allclose(a.losses["commitment"], b.losses["commitment"], rtol=1e-5)
    for x, y in zip(whole.books, part.books):
        assert torch.allclose(x.usage, y.usage) and torch.allclose(x.sums, y.sums, atol=1e-5)
    assert whole(z, n_levels=torch.zeros(16, dtype=torch.int64)).losses["commitment"] == 0


def test_levels_start_apart_and_a_shared_table_is_one():
    b = make("residual")
    assert not torch.equal(b.books[0].weight, b.books[1].weight)
    shared = make("residual", shared=True).train()
    assert len(shared.books) == 1 and len([n for n in shared.state_dict() if n.endswith("weight")]) == 1
    for update in ("gradient", "ema"):
        one = book(shared=True, inner={"update": update, "normalize": True, "revive_below": 0.1}).train()
        for step in range(3):
            q = one(inputs(one, seed=step), rng=rng(step=step))
        if update == "gradient":
            q.losses["codebook"].backward()
            assert one.books[0].weight.grad.abs().sum() > 0
        one.eval()
        q = one(inputs(one))
        assert torch.equal(one.lookup(q.codes), q.vectors) and torch.equal(one.table(0), one.table(3))


def test_projections_stand_around_all_levels():
    b = book(width=10).train()
    assert b.in_width == b.width == 10 and not b.lookup(torch.full((2, 4, 3), ABSENT)).any()
    with pytest.raises(ValueError, match="give width to Residual"):
        ResidualCodebook(VQ(vocab_size=8, dim=4, width=6), 2)
    with pytest.raises(ValueError, match="one level"):
        ResidualCodebook(book(), 2)


@pytest.mark.parametrize("inner", [FSQ([5, 5, 5]), LFQ(bits=6)], ids=["fsq", "lookup_free"])
def test_any_codebook_of_one_level_can_be_inside(inner):
    b = ResidualCodebook(inner, 3, level_dropout=0.5).train()
    z = inputs(b).requires_grad_()
    q = b(z, rng=rng())
    (q.vectors.sum() + sum(q.losses.values())).backward()
    assert torch.equal(b.lookup(q.codes), q.vectors) and z.grad.abs().sum() > 0 and b.state_dict() == {}


def test_codes_and_vectors_are_those_of_the_library():
    vqp = pytest.importorskip("vector_quantize_pytorch")
    theirs = vqp.ResidualVQ(dim=6, num_quantizers=4, codebook_size=32, sync_codebook=False).eval()
    ours = book().eval()
    for mine, layer in zip(ours.books, theirs.layers):
        mine.weight.copy_(layer._codebook.embed[0])
    z = 0.02 * inputs(ours)
    vectors, codes, _ = theirs(z.transpose(1, 2))
    q = ours(z)
    assert torch.equal(q.codes, codes.transpose(1, 2))
    assert torch.allclose(q.vectors, vectors.transpose(1, 2), atol=1e-6)
    cut = codes.clone()
    cut[:, :, 2:] = -1
    assert torch.allclose(ours.lookup(cut.transpose(1, 2)), theirs.get_output_from_indices(cut).transpose(1, 2), atol=1e-6)
