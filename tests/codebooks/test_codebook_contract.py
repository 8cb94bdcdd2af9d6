"""What every codebook that conf/codebook names guarantees."""

from __future__ import annotations

import copy
import functools
import inspect

import pytest
import torch
import yaml
from codebook_kit import CONFIGS, FILES, TRUST, cell_by_cell, exists, in_time, inputs, make, positions, rng, same, state, trained

from gentok.build import resolve
from gentok.codebooks.library import LibraryCodebook
from gentok.interfaces import Codebook
from gentok.types import ABSENT, UNKNOWN, Pyramid


@functools.cache
def _trained(name: str):
    return trained(name)


@pytest.fixture(params=CONFIGS)
def name(request) -> str:
    return request.param


@pytest.fixture
def book(name):
    return copy.deepcopy(_trained(name))


RECIPES = {"vq_ema", "var", "pyramid_dual", "separate", "split_rvq"}
"""Configurations of a class that another one stands for, or that are made of codebooks alone."""
NOT_COMPARED = {"width", "level_dropout"}
"""A width is the networks' matter. Stored configurations of Mimi and SplitRVQ leave out level_dropout, whose default stays 0."""


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in RECIPES and "gentok.codebooks" in FILES[name].read_text()])
def test_defaults_of_the_class_are_the_configured_values(name):
    config = yaml.safe_load(FILES[name].read_text())
    parameters = inspect.signature(resolve(config["_target_"], TRUST)).parameters
    defaults = {key: parameter.default for key, parameter in parameters.items() if parameter.default is not parameter.empty}
    compared = (defaults.keys() & config.keys()) - NOT_COMPARED
    assert {key: defaults[key] for key in compared} == {key: config[key] for key in compared}
    assert defaults.keys() - config.keys() <= {"in_bias"}, "a setting that the configuration does not show"


def test_shapes_dtypes_and_attributes(book):
    assert isinstance(book, Codebook)
    z = inputs(book)
    q = book(z)
    n = positions(book)
    assert q.vectors.shape == (16, book.width, 16) and q.vectors.dtype == torch.float32
    assert q.codes.shape == (16, book.levels, n) and q.codes.dtype == torch.int64
    assert len(book.vocab_sizes) == book.levels and q.usage.shape == (book.levels,)
    assert torch.equal(q.codes >= 0, exists(book).expand_as(q.codes)) and (q.codes < torch.tensor(book.vocab_sizes)[:, None]).all()
    assert (q.codes >= ABSENT).all()
    assert isinstance(book.invertible, bool) and isinstance(book.nested_levels, bool)
    assert sum(part.stop - part.start for part in book.parts.values()) == (book.width if book.parts else 0)
    share = torch.tensor([len(q.codes[:, k, exists(book)[k]].unique()) / v for k, v in enumerate(book.vocab_sizes)])
    assert torch.allclose(q.usage, share)


def test_eval_changes_nothing_before_and_after_training(name, book):
    for b in (make(name).eval(), book):
        before, drawn = state(b), torch.get_rng_state()
        q = b(inputs(b), rng=rng())
        vectors = b.lookup(q.codes)
        if b.has_nearest:
            b.nearest(vectors)
        assert same(before, state(b)) and torch.equal(drawn, torch.get_rng_state())


def test_lookup_of_the_codes_is_the_vectors_to_the_bit(name, book):
    for b in (make(name).eval(), book):
        q = b(inputs(b))
        assert torch.equal(b.lookup(q.codes), q.vectors)


def test_nearest_undoes_lookup_or_errs_less_with_every_level(book):
    if book.invertible:
        codes = torch.stack([torch.randint(v, (8, 32), generator=torch.Generator().manual_seed(1)) for v in book.vocab_sizes], 1)
        vectors = book.lookup(codes)
        found = book.nearest(vectors)
        differ = (book.lookup(found) - vectors).norm(dim=1, keepdim=True) > 1e-5 * vectors.norm(dim=1, keepdim=True)
        assert not differ.expand_as(codes)[found != codes].any()
        rows = book.table()
        assert len(rows.unique(dim=0)) > 0.9 * len(rows)  # the check above is not about one row
        return
    if not book.has_nearest:
        with pytest.raises(TypeError, match="no nearest") as error:
            book.nearest(book.lookup(book(inputs(book)).codes))
        assert "\n" not in str(error.value)
        return
    v = inputs(book, seed=50)
    codes = book.nearest(v)
    errors = []
    for k in range(book.levels + 1):
        cut = codes.clone()
        cut[:, k:] = ABSENT
        errors.append((book.lookup(cut) - v).square().sum(1).mean().item())
    assert all(b < a for a, b in zip(errors, errors[1:])), errors


def test_what_is_unquantized_is_nearest_to_its_own_codes_and_has_a_gradient(name, book):
    z = inputs(book).requires_grad_()
    if not book.has_nearest or isinstance(book, LibraryCodebook):
        with pytest.raises(TypeError, match="no vectors that its rows approximate"):
            book.unquantized(z)
        return
    before, x = state(book), book.unquantized(z)
    assert x.shape == (len(z), book.width, z.shape[2]) and x.dtype == torch.float32 and same(before, state(book))
    (gradient,) = torch.autograd.grad(x.square().sum(), z)
    assert gradient.abs().sum() > 0
    if book.invertible and not book.projected and name not in ("ibq", "dual"):  # whose codes are chosen by another measure
        same_rows = (book.lookup(book.nearest(x.detach())) - book.lookup(book(z).codes)).abs().amax(1) < 1e-4
        assert same_rows.double().mean() > 0.99, "beside ties of float32 and float64; rows may be there twice"
    distance = (x - book.lookup(book(z).codes)).square().mean()
    assert distance < (x - book.lookup(book(z).codes).roll(1, 0)).square().mean()


def test_nearest_fills_only_the_unknown_cells(book):
    if not book.has_nearest:
        pytest.skip("this codebook has no nearest code")
    v = book.lookup(book(inputs(book)).codes)
    generator = torch.Generator().manual_seed(2)
    cells = (16, positions(book))
    given = torch.stack([torch.randint(n, cells, generator=generator) for n in book.vocab_sizes], 1)
    kind = torch.randint(3, given.shape, generator=generator)
    given = torch.where((kind == 0) | ~exists(book), ABSENT, torch.where(kind == 1, UNKNOWN, given))
    out = book.nearest(v, given)
    assert torch.equal(out[given != UNKNOWN], given[given != UNKNOWN]) and (out[given == UNKNOWN] >= 0).all()
    if book.levels > 1:  # what is given is subtracted before the rest is found
        known = book.lookup(given.masked_fill(given == UNKNOWN, ABSENT))
        rest = torch.where(given == UNKNOWN, UNKNOWN, ABSENT)
        unknown = given == UNKNOWN
        assert torch.equal(out[unknown], book.nearest(v - known, rest)[unknown])


def test_table_holds_the_rows_that_lookup_adds(book):
    codes = book(inputs(book)).codes
    if not cell_by_cell(book):
        pytest.skip("its rows are resized before they are added")
    total = sum(book.table(k)[codes[:, k]] for k in range(book.levels))
    assert torch.allclose(total.transpose(1, 2), book.lookup(codes), atol=1e-5)


def test_absent_cells_add_nothing(book):
    codes = book(inputs(book)).codes
    assert not book.lookup(torch.full_like(codes, ABSENT)).any()
    if not cell_by_cell(book):
        return  # one code says something of many cells
    half = codes.clone()
    half[:, :, ::2] = ABSENT
    assert torch.allclose(book.lookup(half)[:, :, 1::2], book.lookup(codes)[:, :, 1::2]) and not book.lookup(half)[:, :, ::2].any()


def test_n_levels_leaves_levels_out_row_by_row(book):
    z = inputs(book)
    n_levels = torch.arange(16) % (book.levels + 1)
    q, full = book(z, n_levels=n_levels), book(z)
    present = torch.arange(book.levels)[:, None] < n_levels[:, None, None]
    assert torch.equal(q.codes, torch.where(present, full.codes, ABSENT))
    assert torch.equal(q.vectors, book.lookup(q.codes)) and not q.vectors[n_levels == 0].any()


def test_bf16_autocast_uses_as_many_codes_as_float32(name, book):
    z = inputs(book)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = book(z)
        assert q.vectors.dtype == torch.float32 and torch.equal(book.lookup(q.codes), q.vectors)
        rounded = book(z.bfloat16())
        nearest, table = book.nearest(q.vectors) if book.has_nearest else None, book.table()
    assert torch.equal(q.codes, book(z).codes)
    assert (rounded.usage >= 0.97 * q.usage).all()
    assert nearest is None or torch.equal(nearest, book.nearest(q.vectors))
    assert table.dtype == torch.float32 and torch.equal(table, book.table())


def test_the_encoder_and_every_parameter_learn(name):
    book = make(name).train()
    z = inputs(book).requires_grad_()
    target = inputs(book, seed=9)[:, :1].expand(-1, book.width, -1)
    book(inputs(book, seed=1), rng=rng())  # rows are made of these: what they are made of would teach them nothing
    q = book(z)  # without rng, so that no row becomes one of these
    ((q.vectors - target).square().mean() + sum(q.losses.values())).backward()
    assert z.grad.isfinite().all() and z.grad.abs().sum() > 0
    for parameter_name, parameter in book.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name


def test_training_draws_from_rng_alone(name):
    book = make(name).train()
    if isinstance(book, LibraryCodebook):
        pytest.skip("the library draws from the global generator")
    twin = copy.deepcopy(book)
    drawn = torch.get_rng_state()
    for step in range(3):
        a = book(inputs(book, seed=step), rng=rng(step=step))
        b = twin(inputs(book, seed=step), rng=rng(step=step))
        assert torch.equal(a.codes, b.codes)
    book(inputs(book)), twin(inputs(book))
    assert same(state(book), state(twin)) and torch.equal(drawn, torch.get_rng_state())


def test_encode_gives_the_codes_of_eval_mode_changes_no_buffer_and_restores_the_mode(name, book):
    for training in (True, False):
        book.train(training)
        before, drawn = state(book), torch.get_rng_state()
        codes = book.encode(inputs(book).requires_grad_(), rng())
        assert all(part.training == training for part in book.modules()) and same(before, state(book))
        assert torch.equal(drawn, torch.get_rng_state())
        assert torch.equal(codes, book.eval()(inputs(book), rng=rng()).codes)


def test_a_row_alone_gets_the_codes_that_it_gets_in_a_batch(book):
    z = inputs(book)
    assert (torch.cat([book(z[b : b + 1]).codes for b in range(16)]) == book(z).codes).float().mean() > 0.99


def test_the_state_is_all_there_is_to_know(name, book):
    fresh = make(name)
    fresh.load_state_dict(book.state_dict())
    z = inputs(book)
    assert torch.equal(fresh.eval()(z).codes, book(z).codes)


def test_wrong_inputs_and_missing_scales_are_refused_in_one_line(book):
    with pytest.raises(ValueError, match="takes float"):
        book(torch.zeros(2, book.in_width + 1, 16))
    with pytest.raises(ValueError, match="takes codes"):
        book.lookup(torch.zeros(2, book.levels + 1, 4, dtype=torch.int64))
    if in_time(book):
        with pytest.raises(ValueError, match="use it in a codec"):
            book.grid(4, 4)
    elif isinstance(book.grid(4, 4), Pyramid):
        return
    with pytest.raises(TypeError, match="pyramid"):
        book.accumulate(torch.zeros(2, book.levels, 4, dtype=torch.int64), (1, 2))


def test_codes_beyond_the_vocabulary_are_refused_in_one_line(book):
    for level, vocab in enumerate(book.vocab_sizes):
        codes = book(inputs(book)).codes
        k, n = torch.where(codes[3] >= 0)
        at = n[k == level][-1]
        for code in (vocab, 10**12):
            codes[3, level, at] = code
            with pytest.raises(ValueError, match=f"code {code} at row 3.*ids 0..{vocab - 1}$") as error:
                book.lookup(codes)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch_is_an_empty_batch(name, book, training):
    book.train(training)
    z = inputs(book)[:0].requires_grad_()
    q = book(z, rng=rng(0))
    assert q.codes.shape == (0, book.levels, positions(book)) and q.codes.dtype == torch.int64 and q.vectors.shape == (0, book.width, 16)
    book.eval()
    assert book.lookup(q.codes).shape == q.vectors.shape and book.encode(z).shape == q.codes.shape
    if book.has_nearest:
        assert book.nearest(q.vectors).shape == q.codes.shape
    if not isinstance(book.grid(4, 4) if not in_time(book) else None, Pyramid):  # items of no positions
        q = book(inputs(book)[:, :, :0])
        assert q.codes.shape == (16, book.levels, 0) and book.lookup(q.codes).shape == (16, book.width, 0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_not_finite_give_codes_of_the_vocabulary_or_one_line(book, value):
    z = inputs(book)
    z[1, :, 3] = value
    book.train()
    codes, vocab = book(z, rng=rng()).codes, torch.tensor(book.vocab_sizes)[:, None]
    assert ((codes >= ABSENT) & (codes < vocab)).all()
    with pytest.raises(ValueError, match="vectors of row 1 of the batch.*not finite") as error:
        book.eval().encode(z)
    assert "\n" not in str(error.value)


def test_it_is_built_and_run_without_data_on_the_meta_device(name, book):
    if isinstance(book, LibraryCodebook):
        pytest.skip("the library fills its tables with numbers that depend on data")
    with torch.device("meta"):
        book = make(name).eval()
        q = book(torch.empty(2, book.in_width, 16))
        assert book.lookup(q.codes).shape == (2, book.width, 16)
