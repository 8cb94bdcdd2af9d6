"""Tokens, specs and conditions: what goes round comes back, and what cannot be meant is refused with a one-line error."""

import dataclasses

import pytest
import torch

from gentok.errors import FormatError
from gentok.types import (
    ABSENT,
    NULL_CLASS,
    UNKNOWN,
    Class,
    ClassSpec,
    Condition,
    ConditionSpec,
    Frames,
    Ids,
    IdsSpec,
    Line,
    Pyramid,
    Raster,
    Tokens,
    TokenSpec,
    Vectors,
    VectorsSpec,
    fingerprint,
)

SPECS = [
    TokenSpec((512,), Raster(8, 8), media_shape=(1, 32, 32), encode_fingerprint="ab", decode_fingerprint="cd"),
    TokenSpec((64, 32), Line(16, nested=True), nested_levels=True),
    TokenSpec((16, 16, 8), Frames(12.5, 8), strides=(4, 2, 1), modality="audio", media_shape=(1,), sample_rate=24000),
    TokenSpec((16,), Pyramid((1, 2, 4)), latent_positions=16, parts=(("text", 0, 4), ("speech", 4, 16))),
    TokenSpec((), Raster(4, 4), width=16),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: type(s.grid).__name__)
def test_a_spec_survives_json(spec):
    import json

    assert TokenSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_unknown_keys_of_a_newer_format_stop_with_a_line():
    with pytest.raises(FormatError, match="newer"):
        TokenSpec.from_dict({**SPECS[0].to_dict(), "colour": 1})
    with pytest.raises(FormatError, match="newer"):
        TokenSpec.from_dict({**SPECS[0].to_dict(), "grid": {"kind": "raster", "h": 1, "w": 1, "depth": 2}})
    with pytest.raises(FormatError, match="cube"):
        TokenSpec.from_dict({**SPECS[0].to_dict(), "grid": {"kind": "cube"}})


def test_cells_and_bits_follow_the_strides():
    spec = SPECS[2]
    assert spec.exists().sum(1).tolist() == [2, 4, 8]
    assert spec.bits == 2 * 4 + 4 * 4 + 8 * 3
    masked_cells = Tokens.unknown(spec, 2, lengths=torch.tensor([8, 4]))
    assert masked_cells.masked.sum((1, 2)).tolist() == [14, 7]
    assert (masked_cells.codes[:, ~spec.exists()] == ABSENT).all()


def test_codes_outside_the_vocabulary_are_refused_by_place():
    spec = SPECS[1]
    codes = torch.zeros(2, 2, 16, dtype=torch.int64)
    codes[1, 1, 3] = 32
    with pytest.raises(ValueError, match="row 1, level 1, position 3"):
        Tokens(codes, spec).validate()
    with pytest.raises(ValueError, match="int64"):
        Tokens(codes.int(), spec)


def test_same_codes_ignores_the_decoder_alone():
    spec = SPECS[0]
    assert spec.same_codes(dataclasses.replace(spec, decode_fingerprint="other"))
    assert not spec.same_codes(dataclasses.replace(spec, encode_fingerprint="other"))


CONDITIONS = ConditionSpec(
    (("class", ClassSpec(("cat", "dog", "7"))), ("text", IdsSpec(tuple("abc "), 6)), ("voice", VectorsSpec(4, 2, "toy")))
)


def test_conditions_are_understood_by_name_id_list_and_null():
    assert CONDITIONS.parse("dog", 2).parts["class"].ids.tolist() == [1, 1]
    assert CONDITIONS.parse("7", 1).parts["class"].ids.tolist() == [2]  # a name before an id
    assert CONDITIONS.parse([0, "dog"], 5).parts["class"].ids.tolist() == [0, 1, 0, 1, 0]
    both = CONDITIONS.parse({"class": "null", "text": "a b"}, 1)
    assert both.parts["class"].ids.tolist() == [NULL_CLASS]
    assert both.parts["text"].ids.tolist() == [[0, 3, 1, ABSENT, ABSENT, ABSENT]]
    assert not both.parts["voice"].mask.any()


@pytest.mark.parametrize(
    "value, message",
    [("horse", "cat, dog"), (3, "no class"), (-1, "no class"), ({"text": "xyz"}, "alphabet"), ({"text": "a" * 7}, "at most 6"),
     ({"colour": 1}, "conditioned on"), ({"voice": [torch.zeros(1, 5)]}, "float tensor")],
)  # fmt: skip
def test_conditions_that_cannot_be_meant_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        CONDITIONS.parse(value, 1)


def test_an_unconditional_model_takes_no_condition():
    with pytest.raises(ValueError, match="unconditional"):
        ConditionSpec().parse(3, 1)
    assert ConditionSpec().parse(None, 3).parts == {}


def test_dropping_rows_equals_null_in_those_rows():
    condition = Condition(
        {
            "class": Class(torch.tensor([0, 1])),
            "text": Ids(torch.tensor([[0, 1], [2, -1]])),
            "v": Vectors(torch.ones(2, 1, 3), torch.ones(2, 1, dtype=torch.bool)),
        }
    )
    dropped = condition.drop(torch.tensor([True, False]))
    null = condition.null()
    for name in condition.parts:
        for f in dataclasses.fields(condition.parts[name]):
            value, whole, none = (getattr(c.parts[name], f.name) for c in (dropped, condition, null))
            assert torch.equal(value[0], none[0]) and torch.equal(value[1], whole[1])
    joined = Condition.concat([condition, null])
    assert torch.equal(joined.rows(slice(0, 2)).parts["text"].ids, condition.parts["text"].ids)


def test_condition_specs_survive_json():
    assert ConditionSpec.from_dict(CONDITIONS.to_dict()) == CONDITIONS


def test_fingerprints_see_every_byte_and_nothing_else():
    a = torch.arange(6.0)
    b = a.clone()
    assert fingerprint(a) == fingerprint(b)
    b[3] += 1e-7 * 3
    assert fingerprint(a) != fingerprint(b)
    assert fingerprint(a) != fingerprint(a.reshape(2, 3)) != fingerprint(a.double())
    assert fingerprint({"x": a, "y": b}) == fingerprint({"y": b, "x": a})
    assert fingerprint({"k": 1}) != fingerprint({"k": 2})


def test_unknown_is_not_absent():
    assert UNKNOWN != ABSENT and UNKNOWN < 0 and ABSENT < 0


@pytest.mark.parametrize(
    ("spec", "left"),
    [
        (TokenSpec((4, 4, 4), Raster(2, 2), nested_levels=True), [4, 8, 12]),
        (TokenSpec((4,), Line(3, nested=True)), [1, 2, 3]),
        (TokenSpec((4,), Pyramid((1, 2, 3))), [1, 5, 14]),
    ],
)
def test_prefixes_of_a_code(spec, left):
    tokens = Tokens(torch.zeros(2, spec.levels, spec.positions, dtype=torch.int64), spec)
    assert spec.prefixes == len(left)
    assert [int(tokens.prefix(k + 1).present[0].sum()) for k in range(len(left))] == left
    for k in (0, len(left) + 1):
        with pytest.raises(ValueError, match=f"a prefix of {k}: this code has prefixes of 1 to {len(left)}"):
            tokens.prefix(k)


def test_a_code_that_is_all_or_nothing_has_no_prefixes():
    spec = TokenSpec((4,), Line(3))
    assert spec.prefixes == 1
    with pytest.raises(ValueError, match="whole or not at all"):
        Tokens(torch.zeros(1, 1, 3, dtype=torch.int64), spec).prefix(2)
