"""Learnt tables: starting, averaging, reviving, gradients; the same codes and rows as vector-quantize-pytorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from codebook_kit import rng, state, with_state
from codebook_mutants import PublishedRevival, StaleSums

from gentok.codebooks.vq import VQ
from gentok.rng import RowRNG


def clusters(book: VQ, seed: int = 0) -> torch.Tensor:
    """float [16, D, 32] around 8 points in one corner of the space."""
    generator = torch.Generator().manual_seed(seed)
    points = 2 + torch.randn(8, book.in_width, generator=torch.Generator().manual_seed(7))
    which = torch.randint(8, (16, 32), generator=generator)
    return (points[which] + 0.3 * torch.randn(16, 32, book.in_width, generator=generator)).transpose(1, 2)


def with_dead_rows(cls: type = VQ, **options) -> VQ:
    """A codebook that has run long enough for half of its rows, which point away from all data, to be dead."""
    book = VQ(vocab_size=32, dim=4, revive_below=0.1, decay=0.9, kmeans_start=0, **options).train()
    book(clusters(book))
    book._set(slice(16, None), -torch.ones(16, 4), 1e-3)
    book._set(slice(16), book.weight[:16], 30.0)
    return with_state(cls, book)


def revived_rows_are_used(book: VQ) -> None:
    """The property: after one training step every row that was dead is used by the next."""
    z = clusters(book)
    book(z)
    assert book.eval()(z).codes.max() < 16, "without rng nothing may be revived"
    book.train()(z, rng=rng())
    used = book.eval()(z).codes.unique()
    assert (used >= 16).sum() == 16, f"of 16 revived rows the next step uses {(used >= 16).sum()}"


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_reviving_changes_the_row_that_the_next_step_uses(update, normalize):
    book = with_dead_rows(update=update, normalize=normalize)
    revived_rows_are_used(book)
    assert (book.usage[16:] > 0.5 * book.usage.mean()).all()  # with the usage of a living row
    if update == "ema":
        assert torch.allclose(book.sums / book.usage[:, None], book.weight, atol=1e-5) or normalize


def test_sums_that_are_not_reset_are_caught():
    with pytest.raises(AssertionError, match="revived rows"):
        revived_rows_are_used(with_dead_rows(StaleSums, update="ema", normalize=False))


@pytest.mark.parametrize("normalize", [True, False])
def test_rows_that_the_average_overwrites_are_caught(normalize):
    with pytest.raises(AssertionError, match="revived rows"):
        revived_rows_are_used(with_dead_rows(PublishedRevival, update="ema", normalize=normalize))


def test_kmeans_start_is_data_dependent_and_moves_nothing_by_itself():
    """S = N * centre: the averages of the same batch leave centres where they are (means alone would shrink them by N)."""
    book = VQ(vocab_size=8, dim=4, normalize=False, update="ema", kmeans_start=20, decay=0.5, revive_below=0.0).train()
    z = clusters(book)
    book(z, rng=rng())
    first = state(book)["weight"]
    error = (book.eval()(z).vectors - z).square().mean()
    assert error < 0.25 and book.started  # noise of 0.3 around 8 points, one of which k-means may have missed
    assert int(book.usage.sum()) == 16 * 32
    for _ in range(5):
        book.train()(z)
    assert (book.weight.norm(dim=1) / first.norm(dim=1)).sub(1).abs().max() < 0.1


def test_kmeans_start_with_fewer_vectors_than_rows_leaves_the_others_to_revival():
    book = VQ(vocab_size=64, dim=4, kmeans_start=5, revive_below=0.1, update="ema", decay=0.99).train()
    z = clusters(book)
    for step in range(3):
        book(z[step : step + 1], rng=rng(1, step))  # 32 vectors at a time
    assert book(z).usage > 0.7
    assert all(t.isfinite().all() for t in state(book).values() if t.is_floating_point())


def test_an_unused_row_stays_exactly_where_it_is():
    book = VQ(vocab_size=32, dim=4, normalize=False, update="ema", decay=0.5, kmeans_start=0, revive_below=0.0).train()
    book(clusters(book))
    book._set(slice(31, None), -torch.ones(1, 4), 1.0)
    for step in range(300):  # its usage decays to 0.5 ** 300
        book(clusters(book, step))
    assert torch.equal(book.weight[31], -torch.ones(4))


def test_gradients_are_those_of_the_paper():
    torch.manual_seed(3)
    book = VQ(vocab_size=16, dim=4, normalize=False, commitment=0.25, kmeans_start=0, revive_below=0.0).train()
    z = torch.randn(2, 4, 5, requires_grad=True)
    q = book(z)
    rows = F.embedding(q.codes[:, 0], book.weight).transpose(1, 2)
    (q.losses["codebook"] + q.losses["commitment"]).backward()
    assert torch.allclose(z.grad, 0.25 * 2 * (z - rows).detach() / z.numel(), atol=1e-7)
    expected = torch.zeros(16, 4).index_add_(0, q.codes.flatten(), (2 * (rows - z) / z.numel()).detach().transpose(1, 2).reshape(-1, 4))
    assert torch.allclose(book.weight.grad, expected, atol=1e-7)
    book.zero_grad()
    book(z.detach().requires_grad_()).vectors.sum().backward()
    assert book.weight.grad is None or not book.weight.grad.any()  # the decoder's gradient passes by the table


def test_two_forward_passes_with_revival_between_have_a_backward_pass():
    book = with_dead_rows(update="gradient")
    z = clusters(book).requires_grad_()
    sum(book(z, rng=rng(step=s)).losses["codebook"] for s in range(2)).backward()
    assert book.weight.grad.isfinite().all()


def test_training_lowers_the_error_and_revival_keeps_the_rows_in_use():
    """The projection in moves the data away from where the rows started; without revival most rows are left behind."""
    usage = {}
    for revive_below in (0.0, 0.1):
        torch.manual_seed(0)
        book = VQ(vocab_size=64, dim=4, width=6, update="gradient", kmeans_start=5, revive_below=revive_below, decay=0.9).train()
        optimizer = torch.optim.Adam(book.parameters(), 1e-2)
        errors = []
        for step in range(150):
            z = clusters(book, step)
            q = book(z, rng=rng(step=step))
            error = (q.vectors - z).square().mean()
            optimizer.zero_grad()
            (error + sum(q.losses.values())).backward()
            optimizer.step()
            errors.append(error.item())
        assert errors[-1] < 0.25 * errors[0]
        usage[revive_below] = book.eval()(clusters(book, 200)).usage.item()
    assert usage[0.1] > 0.7 and usage[0.0] < 0.3


def test_wrong_settings_are_refused_in_one_line():
    with pytest.raises(ValueError, match="expected 'gradient' or 'ema'"):
        VQ(vocab_size=8, dim=4, update="both")
    with pytest.raises(ValueError, match="revive_below"):
        VQ(vocab_size=8, dim=4, revive_below=2)
    with pytest.raises(ValueError, match="above 0"):
        VQ(vocab_size=8, dim=0)


def test_ema_rows_and_codes_are_those_of_the_library():
    """On the same rows, counts and sums, with the library's Laplace smoothing made negligible."""
    vqp = pytest.importorskip("vector_quantize_pytorch")
    theirs = vqp.VectorQuantize(dim=4, codebook_size=32, decay=0.9, eps=1e-12, commitment_weight=0.25, sync_codebook=False).train()
    ours = VQ(vocab_size=32, dim=4, normalize=False, update="ema", decay=0.9, kmeans_start=0, revive_below=0.0).train()
    ours.weight.copy_(theirs._codebook.embed[0])
    ours._set(slice(None), ours.weight, 1.0)
    ours.started.fill_(True)
    for step in range(20):
        z = clusters(ours, step)
        vectors, codes, loss = theirs(z.transpose(1, 2))
        q = ours(z)
        assert torch.equal(q.codes[:, 0], codes), step
        assert torch.allclose(q.vectors, vectors.transpose(1, 2), atol=1e-5)
        assert torch.allclose(q.losses["commitment"], loss.squeeze(), rtol=1e-4)
        assert torch.allclose(ours.weight, theirs._codebook.embed[0], atol=1e-4), step


def test_rows_that_are_not_revived_without_random_numbers_are_said_once(caplog):
    torch.manual_seed(0)
    book = VQ(256, 4, revive_below=0.1).train()
    for _ in range(40):
        book(torch.randn(2, 4, 16))
    (line,) = [record.getMessage() for record in caplog.records if record.name == "gentok.codebooks"]
    assert "rows of this VQ are hardly used" in line and "rng=RowRNG.of" in line and "\n" not in line
    caplog.clear()
    for quiet in (VQ(256, 4, revive_below=0.0), VQ(256, 4, revive_below=0.1)):
        quiet.train()
        for step in range(10):
            quiet(torch.randn(2, 4, 16), rng=RowRNG.of(0, range(2), step) if quiet.revive_below else None)
    quiet.eval()(torch.randn(2, 4, 16))
    assert not caplog.records
