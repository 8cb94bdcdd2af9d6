"""Is what a sampler draws the distribution of its model? The answer for any sampler and any model, of this library or not, that is small
enough for all its sequences to be listed.

    gentok.certify(draw, log_p, vocab=5, positions=4)

    draw(n, seed)   n samples, int64 [n, positions]
    log_p(ids)      the model's own log-probability of sequences int64 [m, positions], float [m]

The frequencies of n samples are compared with the probabilities of all vocab ** positions sequences, by Pearson's
chi-square and by total variation. n exact draws have a distance too, the floor: a difference much below it cannot be
seen with this n. Samples cannot prove exactness; they bound how far from exact a sampler can be and still look so.

`causal_log_p` gives log_p of a causal model, and `draws_of` the draw of one of gentok's samplers; of a model of another library, make a
CausalFunction or a MaskedFunction first (generators/functions.py).
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentok.errors import ConfigError
from gentok.generators.base import Causal
from gentok.rng import RowRNG
from gentok.sampling import sample_tokens
from gentok.types import Condition, Tokens

__all__ = ["Certificate", "causal_log_p", "certify", "draws_of", "main"]

MOST_SEQUENCES = 1_000_000
DOUBT = 1e-4
"""An exact sampler is called different once in ten thousand times."""


@dataclass(frozen=True)
class Certificate:
    """How samples compare with a distribution.

    Attributes:
        agrees: whether the p-value is at least 1e-4.
        p_value: of Pearson's chi-square; 0 where a sequence was drawn whose probability is 0.
        distance: total variation of the samples' frequencies from the probabilities, in [0, 1].
        floor: what `distance` is in the mean for as many exact draws.
        samples: how many.
        sequences: how many there are.
        total: what the probabilities of all sequences add up to, which is 1.
    """

    agrees: bool
    p_value: float
    distance: float
    floor: float
    samples: int
    sequences: int
    total: float

    def __str__(self) -> str:
        verdict = "exact to the floor" if self.agrees else "not the model's distribution"
        return (
            f"{verdict}: distance {self.distance:.4f}, of {self.samples:,} exact draws {self.floor:.4f} (p = {self.p_value:.2g}, "
            f"{self.sequences:,} sequences)"
        )


def certify(
    draw: Callable[[int, int], Tensor], log_p: Callable[[Tensor], Tensor], vocab: int, positions: int, n: int = 20_000, seed: int = 0
) -> Certificate:  # fmt: skip
    """Compares what is drawn with the distribution that it should have.

    Args:
        draw: (n, seed) -> int64 [n, positions], independent samples, each id in 0 .. vocab - 1.
        log_p: int64 [m, positions] -> float [m], of the distribution; computed for all sequences.
        vocab: V, ids of a position.
        positions: of a sequence.
        n: samples; the distance that can be seen falls as 1 / sqrt(n).
        seed: given to `draw`.

    Returns:
        Certificate.

    Raises:
        ValueError: there are more than a million sequences, the samples have another shape or ids, or the probabilities do not sum to 1.
    """
    count = vocab**positions
    if count > MOST_SEQUENCES:
        raise ValueError(
            f"{vocab} ** {positions} sequences are more than {MOST_SEQUENCES:,}: certify a smaller model of the same kind, "
            "such as one of 4 ids and 5 positions"
        )
    p = torch.cat([log_p(ids).detach().double().cpu().exp() for ids in _sequences(vocab, positions).split(4096)])
    total = float(p.sum())
    if not abs(total - 1) < 1e-3:
        raise ValueError(f"the probabilities of all {count:,} sequences sum to {total:.6g}, not to 1: log_p is no distribution of them")
    p = p / total
    drawn = torch.as_tensor(draw(n, seed)).cpu()
    if tuple(drawn.shape) != (n, positions) or drawn.is_floating_point():
        raise ValueError(f"draw({n}, {seed}) should give int64 [{n}, {positions}]; it gave {drawn.dtype} {list(drawn.shape)}")
    if int(drawn.min()) < 0 or int(drawn.max()) >= vocab:
        raise ValueError(f"samples should have ids in 0 .. {vocab - 1}; they have {int(drawn.min())} .. {int(drawn.max())}")
    place = vocab ** torch.arange(positions - 1, -1, -1)
    counts = torch.bincount((drawn * place).sum(1), minlength=count).double()
    distance = float(0.5 * (counts / n - p).abs().sum())
    floor = float(0.5 * (2 / math.pi * p * (1 - p) / n).sqrt().sum())
    p_value = _p_value(counts, p, n)
    return Certificate(p_value >= DOUBT, p_value, distance, floor, n, count, total)


def _sequences(vocab: int, positions: int) -> Tensor:
    """int64 [V ** positions, positions], in the order of the numbers that they are in base V."""
    return torch.tensor(list(itertools.product(range(vocab), repeat=positions)), dtype=torch.int64).view(-1, positions)


def _p_value(counts: Tensor, p: Tensor, n: int) -> float:
    """Of Pearson's chi-square; the rarest sequences share bins that expect at least five samples each."""
    if bool((counts[p == 0] > 0).any()):
        return 0.0
    order = p.argsort()
    expected, seen = n * p[order], counts[order]
    bins: list[list[float]] = [[0.0, 0.0]]
    for e, o in zip(expected.tolist(), seen.tolist()):
        if bins[-1][0] >= 5:
            bins.append([0.0, 0.0])
        bins[-1][0] += e
        bins[-1][1] += o
    if bins[-1][0] < 5 and len(bins) > 1:
        rest = bins.pop()
        bins[-1] = [bins[-1][0] + rest[0], bins[-1][1] + rest[1]]
    statistic = sum((o - e) ** 2 / e for e, o in bins if e > 0)
    freedom = len(bins) - 1
    if freedom == 0:
        return 1.0
    return float(torch.special.gammaincc(torch.tensor(freedom / 2, dtype=torch.float64), torch.tensor(statistic / 2, dtype=torch.float64)))


# ------------------------------------------------------------------------------------------------------------ gentok's own


def causal_log_p(model: Causal, condition: Condition | None = None) -> Callable[[Tensor], Tensor]:
    """log_p of a causal model of one level, from one uncached pass.

    Args:
        model: without ends of its own.
        condition: of one row; None: nothing.

    Raises:
        ValueError: its items end by themselves, or its tokens have several levels.
    """
    if model.ends or model.spec.levels != 1:
        raise ValueError("causal_log_p is for models of one level whose items have all positions; write log_p for this one")

    def log_p(ids: Tensor) -> Tensor:
        batch, layout = len(ids), model.layout
        cache = model.init_cache((condition or Condition()).rows([0] * batch) if condition else Condition(), batch, layout.steps)
        codes = ids[:, None]
        with torch.no_grad():
            logits = model.logits(model.feed(codes), cache, torch.zeros(batch, dtype=torch.int64))
        return logits.double().log_softmax(-1).gather(-1, layout.flatten(codes)[..., None]).flatten(1).sum(1)

    return log_p


def draws_of(sampler: Any, model: Any, condition: Condition | None = None, batch: int = 2000) -> Callable[[int, int], Tensor]:
    """The draw of one of gentok's samplers, for tokens of one level.

    Args:
        sampler: that fits the model.
        model: a generator, or a function with a capability.
        condition: of one row; None: nothing.
        batch: rows drawn together.
    """

    def draw(n: int, seed: int) -> Tensor:
        out = []
        for rows in torch.arange(n).split(batch):
            given = condition.rows([0] * len(rows)) if condition else Condition()
            known = Tokens.unknown(model.spec, len(rows))
            out.append(sample_tokens(model, given, sampler, rng=RowRNG.of(seed, rows), known=known).tokens.codes[:, 0])
        return torch.cat(out)

    return draw


# ------------------------------------------------------------------------------------------------------------------ command


def main(words: Sequence[str] | None = None) -> None:
    """`gentok certify FILE.py [n=20000] [seed=0]`; ends with status 1 where the samples differ from the distribution."""
    words = list(sys.argv[1:] if words is None else words)
    files = [word for word in words if "=" not in word]
    given = dict(word.split("=", 1) for word in words if "=" in word)
    try:
        if len(files) != 1:
            raise ConfigError("gentok certify takes one Python file, with functions draw and log_p and numbers VOCAB and POSITIONS")
        unknown = given.keys() - {"n", "seed"}
        numbers = {key: value for key, value in given.items() if not value.isdecimal() or (key == "n" and int(value) == 0)}
        if unknown or numbers:
            wrong = " ".join(f"{key}={given[key]}" for key in (unknown or numbers))
            raise ConfigError(f"gentok certify takes n=SAMPLES and seed=NUMBER; got {wrong}")
        user = _user_file(Path(files[0]))
        found = certify(user.draw, user.log_p, user.VOCAB, user.POSITIONS, **{key: int(value) for key, value in given.items()})
    except (ConfigError, ValueError) as error:
        sys.exit(f"gentok certify: {error}")
    print(found)
    if not found.agrees:
        sys.exit(1)


def _user_file(path: Path) -> Any:
    """The module of a file, run as the user's own program. Raises ConfigError where a name is missing."""
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    described = importlib.util.spec_from_file_location("user_sampler", path)
    assert described is not None and described.loader is not None
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    missing = [name for name in ("draw", "log_p", "VOCAB", "POSITIONS") if not hasattr(module, name)]
    if missing:
        raise ConfigError(f"{path} should define draw, log_p, VOCAB and POSITIONS; it has no {' and no '.join(missing)}")
    return module


if __name__ == "__main__":
    main()
