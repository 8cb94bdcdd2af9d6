"""Distilled decoding: one pass from noise to all codes of an item (Liu et al., arXiv 2412.17153; DD1).

A causal teacher draws code after code. Drawing code i by the map of gentok/flow/codewords.py, from its own normal noise eps_i and the
teacher's p(code_i | codes before), makes the whole item a deterministic function of (eps_1, ..., eps_N), whose distribution is the
teacher's. The student learns that function. It reads the state

    X_t = (codes before position t, noise from t on)

and predicts all codes behind t at once, for t = 0 (one pass) and t = split (a second pass, which begins with the codes that the first one
gave before it). The data are not needed: the teacher's trajectories are, which training keeps in the cache of tokens.

    loss = cross-entropy of the codes from t on + weight * mean squared error of their code vectors

The student begins as the teacher: blocks, condition, names of the cells and head. New are a linear map from code vectors, an embedding that
tells noise from codes, and the regression of code vectors. Position i of it holds X_t[i] and predicts code i, where the teacher's fed step
i holds code i - 1.

Deviations: trajectories may be made with guidance, which the student then has of itself; the regression head is a linear map and serves
training alone, the codes of all positions are the head's; the mean squared error stands in the place of LPIPS, as the tokenizer is not at
hand; coordinates of code vectors are scaled to unit variance (generators/vector_coordinates.py).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gentok.errors import counted
from gentok.flow.codewords import CodewordFlow
from gentok.flow.guidance import combine
from gentok.generators.autoregressive import Autoregressive
from gentok.generators.base import Jumps
from gentok.generators.vector_coordinates import VectorCoordinates
from gentok.interfaces import Codebook, Generator
from gentok.nn.cell_positions import rotation_tables
from gentok.nn.constants import Constants
from gentok.nn.linear import Linear, activations, product
from gentok.nn.token_transformer import attend, full_precision, initialise_parts, token_nll
from gentok.rng import RowRNG
from gentok.settings import Count, NonNegativeFloat, PositiveInt
from gentok.types import ABSENT, UNKNOWN, Condition, ConditionSpec, LossOutput, Tokens, TokenSpec, Trajectories

__all__ = ["DistilledTransformer"]


class DistilledTransformer(Generator, Jumps, id="generator/distilled"):
    """A student of an autoregressive teacher, which is a part of it.

    Args:
        spec: the tokens, of one level.
        condition_spec: what they are conditioned on; None: nothing.
        codebook: whose vectors noise turns into.
        teacher: the frozen generator whose trajectories are learned.
        split: the position from which a second pass goes on; None: 5/16 of the positions, as the paper's 80 of 256.
        guidance: scale of the teacher's classifier-free guidance, >= 0; 1: none.
        solver: of the flow from noise to codewords: euler, midpoint or heun.
        solver_steps: of it, at least 2.
        regression: weight of the squared error of code vectors.

    Raises:
        ValueError: there is no such teacher or codebook, or a setting is out of its range.
    """

    inner: ClassVar[tuple[str, ...]] = ("teacher",)
    has_nll = False

    def __init__(
        self,
        spec: TokenSpec,
        condition_spec: ConditionSpec | None = None,
        codebook: Codebook | None = None,
        *,
        teacher: Generator | Mapping[str, Any] | None = None,
        split: PositiveInt | None = None,
        guidance: NonNegativeFloat = 1.0,
        solver: str = "heun",
        solver_steps: Count = 8,
        regression: NonNegativeFloat = 1.0,
    ):
        super().__init__()
        self.spec, self.condition_spec = spec, condition_spec or ConditionSpec()
        teacher = _checked(teacher, spec, self.condition_spec)
        if codebook is None:
            raise ValueError("distilled goes from noise to code vectors, and this tokenizer has no codebook")
        if guidance != 1 and not self.condition_spec.parts:
            raise ValueError(f"guidance={guidance:g} of a teacher without a condition: leave it at 1")
        positions = spec.positions
        self.split = max(1, positions * 5 // 16) if split is None else split
        if not 0 < self.split < positions:
            raise ValueError(f"split={self.split}: a position from 1 to {positions - 1}, from which the second pass goes on")
        self.guidance, self.regression, self.solver, self.solver_steps = guidance, regression, solver, solver_steps
        coordinates = VectorCoordinates(codebook, spec)
        self.channels = coordinates.channels
        with torch.device("cpu"), torch.no_grad():
            table = coordinates.of(codebook.table(0).T[None])[0].T
            position = torch.arange(positions)
            cos, sin = rotation_tables(spec, teacher.rope, teacher.conditioner.places, teacher.trunk.head_width, position)
            self._tables = Constants(codewords=table, cos=cos, sin=sin)
        CodewordFlow(torch.zeros(1, self.channels), solver_steps, solver)  # checks them
        self.teacher = teacher.requires_grad_(False).eval()
        width = teacher.trunk.width
        self.conditioner, self.trunk = copy.deepcopy(teacher.conditioner), copy.deepcopy(teacher.trunk)
        self.names = copy.deepcopy(teacher.target_table)
        self.read, self.kinds = nn.Linear(self.channels, width, bias=False), nn.Embedding(2, width)
        self.head, self.regress = Linear(width, spec.vocab), nn.Linear(width, self.channels)
        initialise_parts(self.read, self.kinds, self.head, self.regress)
        for part in (self.conditioner, self.trunk, self.names):
            if part is not None:
                part.requires_grad_(True)
        self.train()

    def train(self, mode: bool = True) -> DistilledTransformer:
        super().train(mode)
        self.teacher.eval()
        return self

    def take_inner(self, inner: Generator) -> None:
        """Takes the teacher's weights, and begins as the teacher. inner: the trained one."""
        self.teacher.load_state_dict(inner.state_dict())
        teacher = self.teacher
        for own, its in ((self.conditioner, teacher.conditioner), (self.trunk, teacher.trunk), (self.names, teacher.target_table)):
            if own is not None:
                own.load_state_dict(its.state_dict())
        with torch.no_grad():
            self.head.weight.copy_(teacher.level_weights(0))

    # ------------------------------------------------------------------------------------------------ teacher

    @property
    def way(self) -> dict[str, Any]:
        """The settings on which it depends what noise the teacher turns into which codes."""
        return {"guidance": self.guidance, "solver": self.solver, "solver_steps": self.solver_steps}

    def _flow(self, device: torch.device, dtype: torch.dtype = torch.float64) -> CodewordFlow:
        return CodewordFlow(self._tables.on(device, dtype).codewords, self.solver_steps, self.solver)

    @torch.no_grad()
    def follow(self, codes: Tensor, noise: Tensor, condition: Condition, span: range) -> Tensor:
        """As Jumps.follow."""
        if not span:
            return codes
        codes, batch = codes.clone(), len(codes)
        guided, flow = self.guidance != 1, self._flow(codes.device)
        both: Any = (lambda x: torch.cat((x, x))) if guided else (lambda x: x)
        condition = Condition.concat([condition, condition.null()]) if guided else condition
        cache = self.teacher.init_cache(condition, batch * (1 + guided), span.stop)
        fed, at = self.teacher.feed(codes)[:, : span.start + 1].clamp(min=ABSENT), 0
        for step in span:
            where = torch.full((batch * (1 + guided),), at)
            logits = self.teacher.logits(both(fed), cache, where)[:, -1, 0].double()
            self.teacher.commit(cache, where)
            logits = combine(*logits.chunk(2), self.guidance) if guided else logits
            wrong = ~logits.amax(1).isfinite()
            if bool(wrong.any()):
                raise ValueError(
                    f"the teacher's distribution for row {int(wrong.nonzero()[0])} of the batch is not finite (NaN, infinite, or no id "
                    "possible): its weights are damaged or its precision is too low"
                )
            drawn = flow(noise[:, step], logits)
            now = codes[:, 0, step]
            codes[:, 0, step] = now = torch.where(now == UNKNOWN, drawn, now)
            fed, at = now[:, None, None], step + 1
        return codes

    def noise(self, rng: RowRNG) -> Tensor:
        """The noise of whole items, float64 [B, N, C]: of each row's own stream."""
        return rng.normal(self.spec.positions, self.channels)

    def trajectories(self, tokens: Tokens, condition: Condition, rng: RowRNG) -> Trajectories:
        """The teacher's way from fresh noise, of items as long as these.

        Args:
            tokens: B items, of which no code is read.
            condition: B rows.
            rng: of the noise.
        """
        unknown = Tokens.unknown(self.spec, tokens.batch, tokens.lengths, tokens.codes.device)
        noise = self.noise(rng)
        return Trajectories(self.follow(unknown.codes, noise, condition, range(self.spec.positions)), self.spec, tokens.lengths, noise)

    # ------------------------------------------------------------------------------------------------ student

    def _hidden(self, codes: Tensor, noise: Tensor, condition: Condition, rng: RowRNG | None = None) -> Tensor:
        """codes int64 [B, 1, N], noise float [B, N, C] -> float [B, N, D]."""
        self.check_shape(codes)
        tables, flat = self._tables.on(codes.device), codes[:, 0]
        vectors = F.embedding(flat.clamp(min=0), tables.codewords) * (flat >= 0)[..., None]
        unknown = flat == UNKNOWN
        x = torch.where(unknown[..., None], noise.to(vectors), vectors).to(self.read.weight.dtype)
        x = self.read(x) + self.kinds(unknown.long())
        if self.names is not None:
            x = x + self.names(self.teacher.named(codes.device)).sum(-2)
        given, rotation = self.conditioner(condition, len(x)), (tables.cos, tables.sin)
        return attend(self.trunk, x, given, rotation, slice(self.conditioner.places, None), rate=self.teacher.dropout, rng=rng)

    def jump(self, codes: Tensor, noise: Tensor, condition: Condition) -> Tensor:
        """As Jumps.jump."""
        return product(activations(self._hidden(codes, noise, condition)), self.head.weight)[:, None]

    def forward(self, tokens: Tokens, condition: Condition | None = None) -> Tensor:
        """As `jump`, of Trajectories from their noise, of other tokens from zeros."""
        codes = tokens.codes
        silent = torch.zeros(1, self.spec.positions, self.channels, device=codes.device)
        return self.jump(codes, tokens.noise if isinstance(tokens, Trajectories) else silent, condition or Condition())

    def loss(self, tokens: Tokens, condition: Condition, rng: RowRNG) -> LossOutput:
        """Mean nats of a code behind the start, plus the weighted mean squared error of a number of its vector.

        Args:
            tokens: Trajectories of the teacher; of other tokens the codes are not looked at, and trajectories are made, which takes the
                teacher as many calls as there are positions.
            condition: B rows, of the trajectories too.
            rng: for each row's start, the noise of trajectories that are made here, and dropout in training mode.

        Returns:
            LossOutput without nats of rows; terms: nll, regression, agreement (the share of codes that are the teacher's).
        """
        starts = rng.uniform() < 0.5
        if not isinstance(tokens, Trajectories):
            tokens = self.trajectories(tokens, condition, rng.fork("noise"))
        codes = tokens.codes[:, 0]
        behind = torch.arange(codes.shape[1], device=codes.device) >= (starts * self.split)[:, None]
        there = behind & (codes >= 0)
        hidden = self._hidden(tokens.codes.masked_fill(there[:, None], UNKNOWN), tokens.noise, condition, rng if self.training else None)
        logits, count = full_precision(product(activations(hidden), self.head.weight)), there.sum()
        vectors = F.embedding(codes.clamp(min=0), self._tables.on(codes.device, logits.dtype).codewords)
        nll = token_nll(logits, codes, there).sum() / count.clamp(min=1)
        error = (full_precision(self.regress(hidden)) - vectors).square().mean(-1)
        error = error.masked_fill(~there, 0.0).sum() / count.clamp(min=1)
        same = ((logits.detach().argmax(-1) == codes) & there).sum() / count.clamp(min=1)
        terms = {"nll": nll.detach(), "regression": error.detach(), "agreement": same}
        return LossOutput(nll + self.regression * error, count, None, terms)


def _checked(teacher: Any, spec: TokenSpec, condition_spec: ConditionSpec) -> Autoregressive:
    """The teacher, where it is one. Raises ValueError else."""
    if teacher is None or isinstance(teacher, Mapping):
        raise ValueError("distilled learns from a trained autoregressive generator: give its bundle, generator.teacher.ckpt=BUNDLE")
    if not isinstance(teacher, Autoregressive):
        raise ValueError(f"distilled learns from generator=autoregressive; its teacher is a {type(teacher).__name__}")
    if spec.levels != 1 or teacher.ends or teacher.layout.step[0].tolist() != list(range(spec.positions)):
        raise ValueError(
            "distilled models one level of codes, as of a vq or fsq codebook, in the order of their positions, of items that do not end by "
            f"themselves; its teacher has {counted(spec.levels, 'level')} in the {teacher.layout.name} order"
            + (", and ends" if teacher.ends else "")
        )
    if not teacher.spec.same_codes(spec):
        raise ValueError(f"the teacher models {teacher.spec.describe()}; these tokens are {spec.describe()}")
    if teacher.condition_spec != condition_spec:
        theirs, ours = ([name for name, _ in given.parts] or "nothing" for given in (teacher.condition_spec, condition_spec))
        raise ValueError(f"the teacher is conditioned on {theirs}, the data give {ours}: the same names of classes or symbols are needed")
    return teacher
