"""What the wrapper of vector-quantize-pytorch promises beyond the laws of every codebook."""

from __future__ import annotations

import pytest
import torch
from codebook_kit import inputs, make, state

from gentok.codebooks.library import LibraryCodebook
from gentok.codebooks.residual import ResidualCodebook
from gentok.types import ABSENT


def test_dropped_levels_are_absent_and_add_nothing():
    options = {"num_quantizers": 4, "codebook_size": 16, "quantize_dropout": True}
    book = LibraryCodebook("ResidualVQ", 6, options).train()
    z = inputs(book)
    for _ in range(20):
        q = book(z)
        if (q.codes[:, -1] == ABSENT).all():
            break
    assert (q.codes[:, 0] >= 0).all() and (q.codes[:, -1] == ABSENT).all() and q.usage[-1] == 0
    book.eval()
    v = book.lookup(q.codes)
    assert torch.allclose(v.transpose(1, 2), book.quantizer.get_output_from_indices(q.codes.transpose(1, 2)), atol=1e-6)


def test_the_start_waits_for_training():
    book = make("library").eval()
    assert book.quantizer._codebook.kmeans_iters and not book.quantizer._codebook.initted
    book(inputs(book))
    assert not book.quantizer._codebook.initted
    book.train()(inputs(book))
    assert book.quantizer._codebook.initted


def test_rebuilding_for_another_number_of_processes_keeps_the_tensors(monkeypatch):
    book = make("library").train()
    before, parameters = state(book), list(map(id, book.parameters()))
    monkeypatch.setattr("gentok.codebooks.library.world_size", lambda: 2)
    book._synchronise()
    after = state(book)
    assert book.quantizer._codebook.use_ddp and book.quantizer.training and parameters == list(map(id, book.parameters()))
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_an_implicit_neural_codebook_has_no_nearest():
    book = LibraryCodebook("ResidualVQ", 6, {"num_quantizers": 2, "codebook_size": 8, "implicit_neural_codebook": True}).eval()
    q = book(inputs(book))
    assert torch.equal(book.lookup(q.codes), q.vectors)
    with pytest.raises(ValueError, match="no fixed rows"):
        book.nearest(q.vectors)


def test_a_residual_can_hold_it():
    book = ResidualCodebook(LibraryCodebook("VectorQuantize", 6, {"codebook_size": 16, "decay": 0.9}), 3, level_dropout=0.5).train()
    assert not torch.equal(book.books[0].table(), book.books[1].table())
    for _ in range(3):
        book(inputs(book), n_levels=torch.arange(16) % 4)
    q = book.eval()(inputs(book))
    assert torch.equal(book.lookup(q.codes), q.vectors)


def test_what_it_cannot_do_is_refused_in_a_line():
    with pytest.raises(ValueError, match="Library wraps"):
        LibraryCodebook("Nothing", 4, {})
    with pytest.raises(ValueError, match="'heads' itself"):
        LibraryCodebook("VectorQuantize", 4, {"codebook_size": 8, "heads": 2})
    book = make("library_residual").train()
    with pytest.raises(ValueError, match="without n_levels"):
        book(inputs(book), n_levels=torch.ones(16, dtype=torch.int64))
