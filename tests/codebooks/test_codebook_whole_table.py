"""Tables that learn as a whole: index backpropagation and one linear map; gradients against the formulas, all rows of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from codebook_kit import inputs, rng, state

from gentok.codebooks import ibq
from gentok.codebooks.ibq import IBQ
from gentok.codebooks.search import row_mean
from gentok.codebooks.simvq import SimVQ


def written_out(z: torch.Tensor, table: torch.Tensor, temperature: float, diversity: float) -> tuple[torch.Tensor, ...]:
    """z [n, d], table [V, d] -> (vectors, commitment, codebook, entropy), with the one-hot as a matrix, as the paper has it."""
    scores = z @ table.T
    p = scores.softmax(1)
    hard = F.one_hot(scores.argmax(1), len(table)).to(p)
    vectors = (hard - p.detach() + p) @ table
    row = hard @ table
    q = (scores / temperature).softmax(1)
    commitment = (vectors - z).square().mean() + (row.detach() - z).square().mean()
    entropy = torch.special.entr(q).sum(1).mean() - diversity * torch.special.entr(q.mean(0)).sum()
    return vectors, commitment, (row - z.detach()).square().mean(), entropy


def gradients_are_the_papers(cls: type) -> None:
    torch.manual_seed(2)
    book = cls(vocab_size=12, dim=4, commitment=0.7, codebook=0.3, entropy=0.2, diversity=0.6, temperature=0.5).double().train()
    z = torch.randn(2, 4, 5, requires_grad=True)
    q = book(z)
    weight = torch.randn_like(q.vectors)
    own = torch.autograd.grad((q.vectors * weight).sum() + sum(q.losses.values()), [z, book.weight])
    x = z.transpose(1, 2).reshape(-1, 4).double()
    vectors, commitment, codebook, entropy = written_out(x, book.weight, 0.5, 0.6)
    total = (vectors * weight.transpose(1, 2).reshape(-1, 4)).sum() + 0.7 * commitment + 0.3 * codebook + 0.2 * entropy
    expected = torch.autograd.grad(total, [z, book.weight])
    for a, b in zip(own, expected):
        assert torch.allclose(a, b.to(a), atol=1e-5), (a - b).abs().max()


@pytest.mark.parametrize("block", [16, 1e-5])
def test_gradients_are_those_of_the_one_hot_written_out(monkeypatch, block):
    """Also where vectors go in blocks of one."""
    monkeypatch.setattr(ibq, "BLOCK", block)
    gradients_are_the_papers(IBQ)


class OneRowFeelsTheChoice(IBQ):
    def quantize(self, x, present, rng):
        codes, _, losses = super().quantize(x, present, rng)
        row = F.embedding(codes, self._table())
        values = row + (x - x.detach())  # and so in the loss that is made of them
        losses["commitment"] = self.commitment * row_mean((values - x).square() + (row.detach() - x).square(), present)
        return codes, values, losses


def test_a_choice_that_only_one_row_feels_is_caught():
    with pytest.raises(AssertionError):
        gradients_are_the_papers(OneRowFeelsTheChoice)


def test_every_row_learns_from_the_decoder():
    book = IBQ(vocab_size=64, dim=4, entropy=0.0).train()
    q = book(inputs(book, 2, 4))
    q.vectors.square().sum().backward()
    assert len(q.codes.unique()) <= 8 and (book.weight.grad.abs().sum(1) > 0).all()


def test_rows_of_a_row_that_is_left_out_count_for_nothing():
    book = IBQ(vocab_size=16, dim=4, entropy=1.0).train()
    z, n_levels = inputs(book), (torch.arange(16) < 8).long()
    a, b = book(z[:8]).losses, book(z, n_levels=n_levels).losses
    assert all(torch.allclose(a[key], b[key], rtol=1e-5) for key in a)
    assert all(v.isfinite() for v in book(z, n_levels=torch.zeros(16, dtype=torch.int64)).losses.values())


def all_rows_follow(cls: type) -> None:
    """The property: data far from where the rows started, of which each step sees a little: most rows end in use."""
    torch.manual_seed(0)
    book = cls(vocab_size=256, dim=4).train()
    optimizer = torch.optim.Adam(book.parameters(), 2e-2)
    generator = torch.Generator().manual_seed(0)

    def data(batch: int = 4) -> torch.Tensor:
        return torch.randn(batch, 4, 16, generator=generator) * torch.tensor([8.0, 4.0, 2.0, 1.0])[:, None]

    for step in range(150):
        q = book(data(), rng=rng(4, step))
        optimizer.zero_grad()
        sum(q.losses.values()).backward()
        optimizer.step()
    usage = book.eval()(data(128)).usage
    assert usage > 0.7, f"{usage.item():.2f} of the rows are used"


def test_the_map_takes_all_rows_along():
    all_rows_follow(SimVQ)


class RowsThatLearnAlone(SimVQ):
    """A learnt table without the map: only the rows that some vector chose move."""

    def __init__(self, **options):
        super().__init__(**options)
        rows = self.frozen
        del self.frozen
        self.frozen = torch.nn.Parameter(rows)

    def _table(self):
        return self.frozen.float()


def test_rows_that_learn_alone_are_caught():
    with pytest.raises(AssertionError, match="rows are used"):
        all_rows_follow(RowsThatLearnAlone)


def test_gradients_of_the_map_are_those_of_the_paper():
    book = SimVQ(vocab_size=16, dim=4, commitment=0.25).train()
    z = inputs(book, 2, 5).requires_grad_()
    q = book(z)
    x, rows = z.detach().transpose(1, 2), book.frozen[q.codes[:, 0]] @ book.map.weight.detach().T
    assert torch.allclose(q.vectors.transpose(1, 2), rows, atol=1e-6)
    own = torch.autograd.grad(sum(q.losses.values()), [z, book.map.weight])
    assert torch.allclose(own[0], (0.25 * 2 * (x - rows) / x.numel()).transpose(1, 2), atol=1e-6)
    expected = torch.einsum("bmi,bmj->ij", 2 * (rows - x) / x.numel(), book.frozen[q.codes[:, 0]])
    assert torch.allclose(own[1], expected, atol=1e-6)
    assert [name for name, _ in book.named_parameters()] == ["map.weight"]  # the table is frozen


def test_codes_and_losses_are_those_of_the_library():
    vqp = pytest.importorskip("vector_quantize_pytorch")
    ours, theirs = SimVQ(vocab_size=32, dim=4).train(), vqp.SimVQ(dim=4, codebook_size=32, rotation_trick=False)
    ours.load_state_dict({"frozen": theirs.frozen_codebook, "map.weight": theirs.code_transform.weight})
    z = inputs(ours)
    vectors, codes, loss = theirs(z.transpose(1, 2))
    q = ours(z)
    assert torch.equal(q.codes[:, 0], codes) and torch.allclose(q.vectors, vectors.transpose(1, 2), atol=1e-6)
    assert torch.allclose(sum(q.losses.values()), loss, rtol=1e-5)
    assert state(ours).keys() == {"frozen", "map.weight"}
