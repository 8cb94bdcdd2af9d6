"""Two gloo processes, each with half of every batch; run by test_codebook_processes.py as a script.

    python codebook_processes.py FOLDER

A throw-away library quantizer is built before the process group exists: what a part remembers from then must not matter later.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from codebook_kit import state
from torch import Tensor

from gentok.codebooks.bae import BAE
from gentok.codebooks.dual import DualCodebook
from gentok.codebooks.factorized_vq import FactorizedVQ
from gentok.codebooks.ibq import IBQ
from gentok.codebooks.lfq import LFQ
from gentok.codebooks.library import LibraryCodebook
from gentok.codebooks.projected_residual import ProjectedResidual
from gentok.codebooks.pyramid import PyramidCodebook
from gentok.codebooks.residual import ResidualCodebook
from gentok.codebooks.separate import SeparateCodebooks
from gentok.codebooks.simvq import SimVQ
from gentok.codebooks.split_rvq import SplitRVQ
from gentok.codebooks.strided import StridedResidual
from gentok.codebooks.vq import VQ
from gentok.metrics.codebook import CodebookHealth
from gentok.rng import RowRNG

STEPS, BATCH, POSITIONS = 8, 16, 9
LEARNT = {"vocab_size": 24, "dim": 4, "kmeans_start": 3, "revive_below": 0.3, "decay": 0.6}
HALVES = {key: value for key, value in LEARNT.items() if key != "dim"}
BOOKS = {
    "vq_ema": lambda: VQ(**LEARNT, update="ema", normalize=False),
    "vq_gradient": lambda: VQ(**LEARNT, width=6),
    "residual": lambda: ResidualCodebook(VQ(**LEARNT, update="ema", normalize=False), 3, level_dropout=0.4, batch_dropout=0.3),
    "residual_shared": lambda: ResidualCodebook(VQ(**LEARNT, update="ema"), 2, shared=True),
    "dual": lambda: DualCodebook(semantic=3, pixel=2, w=0.5, **HALVES),
    "dual_ema": lambda: DualCodebook(semantic=3, pixel=2, update="ema", **HALVES),
    "separate": lambda: SeparateCodebooks(VQ(**LEARNT), VQ(**LEARNT, update="ema")),
    "lfq": lambda: LFQ(bits=4, width=6, entropy=1.0),
    "bae": lambda: BAE(bits=6, width=4, levels=2, entropy=0.1),
    "ibq": lambda: IBQ(vocab_size=24, dim=4, width=6, entropy=1.0, temperature=0.5),
    "simvq": lambda: SimVQ(vocab_size=24, dim=4, width=6),
    "pyramid": lambda: PyramidCodebook(VQ(**LEARNT, update="ema", normalize=False), (1, 2, 3), scale_dropout=0.4),
    "pyramid_phi": lambda: PyramidCodebook(VQ(**LEARNT, update="ema", normalize=False), (1, 2, 3), phi=2, scale_dropout=0.4),
    "pyramid_dual": lambda: PyramidCodebook(DualCodebook(semantic=3, pixel=2, **HALVES), (1, 2, 3), scale_dropout=0.4, carry="progressive"),
    "residual_factorized": lambda: ProjectedResidual(FactorizedVQ(**LEARNT, width=6), 3, level_dropout=0.4, batch_dropout=0.3),
    "strided": lambda: StridedResidual(FactorizedVQ(**LEARNT, width=6), (3, 1), level_dropout=0.4),
    "split": lambda: SplitRVQ(
        ResidualCodebook(VQ(**LEARNT, update="ema", normalize=False), 1, width=6),
        ResidualCodebook(VQ(**LEARNT, update="ema", normalize=False), 3, width=6, level_dropout=0.5),
        no_quantization_rate=0.5,
    ),
    "library": lambda: LibraryCodebook(
        "VectorQuantize", 4, {"codebook_size": 24, "kmeans_init": True, "threshold_ema_dead_code": 1, "decay": 0.6}
    ),
}
RATES = {"pyramid_phi": 0.003, "residual_factorized": 0.003, "strided": 0.003, "split": 0.003}
"""Of learning, where 0.3 is too fast: nothing bounds the size of what its levels compare, and the data drift far."""


def batch(width: int, step: int) -> Tensor:
    """float [BATCH, width, POSITIONS]; the data drift, so that rows die."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, width, POSITIONS, generator=generator) + 1.5 * step


def train(name: str, half: slice, after_step=lambda book: None) -> dict:
    """STEPS training steps on `half` of every batch -> the last state, the codes of the last step, and what the rows' health says."""
    torch.manual_seed(0)
    book = early.pop(name, None) or BOOKS[name]()
    book.train()
    health = CodebookHealth(book.vocab_sizes)
    parameters = list(book.parameters())
    optimizer = torch.optim.SGD(parameters, RATES.get(name, 0.3)) if parameters else None
    for step in range(STEPS):
        z = batch(book.in_width, step)[half]
        q = book(z, rng=RowRNG.of(5, torch.arange(BATCH)[half], step))
        if optimizer:
            optimizer.zero_grad()
            ((q.vectors - z).square().mean() + sum(q.losses.values())).backward()
            for p in parameters:  # what DistributedDataParallel does
                if dist.is_initialized():
                    dist.all_reduce(p.grad)
                    p.grad /= dist.get_world_size()
            optimizer.step()
        health.update(q.codes)
        after_step(book)
    return {"state": state(book), "codes": q.codes, "health": health.compute().scalars()}


early: dict = {}
"""Books that were built before the process group."""


def agree(book: torch.nn.Module) -> None:
    """Stops unless both processes have the same numbers, to the bit."""
    for name, tensor in state(book).items():
        both = [torch.empty_like(tensor) for _ in range(2)]
        dist.all_gather(both, tensor.contiguous())
        assert torch.equal(*both), f"{name} differs between the processes"


def main(rank: int, folder: Path) -> None:
    BOOKS["library"]()
    torch.manual_seed(0)
    early["library"] = BOOKS["library"]()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    half = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    out = {}
    for name in BOOKS:
        torch.manual_seed(rank)  # the library's own draws may differ from process to process
        out[name] = train(name, half, agree)
    try:
        LibraryCodebook("LFQ", 4, {"codebook_size": 16}).train()(torch.zeros(1, 4, 1))
    except RuntimeError as error:
        out["refused"] = str(error)
    torch.save(out, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    from forked import on_processes  # of tests/training

    on_processes(lambda rank: main(rank, Path(sys.argv[1])))
