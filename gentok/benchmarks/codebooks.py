"""Codebooks against vector-quantize-pytorch."""

from __future__ import annotations

from gentok.metrics.speed import Measured, figure, interleaved, timed

__all__ = ["codebook"]


def codebook(rounds: int, vectors: int = 16_384, vocab: int = 16_384, residual_vocab: int = 1024) -> Measured:
    """Codebooks against vector-quantize-pytorch with the same arithmetic.

    That is Euclidean distance, moving averages and straight-through gradients, in evaluation and as a
    training step (forward, backward, update of the table). VQ is also measured against the bare product of
    all vectors with all rows (torch.mm), the least that a search over all distances costs.

    Args:
        rounds: measurements of each contender.
        vectors: how many are quantized at once.
        vocab: rows of the VQ codebook.
        residual_vocab: rows of each level of the residual codebook.
    """
    import torch
    import vector_quantize_pytorch as library

    from gentok.codebooks.fsq import FSQ
    from gentok.codebooks.residual import ResidualCodebook
    from gentok.codebooks.vq import VQ

    ema = {"commitment_weight": 0.25, "decay": 0.99, "rotation_trick": False}
    values = (8, 8, 8, 5, 5, 5)

    def trained(rows: int, dim: int) -> VQ:
        return VQ(rows, dim, normalize=False, update="ema", commitment=0.25, decay=0.99)

    pairs = {
        "vq": (trained(vocab, 8), library.VectorQuantize(dim=8, codebook_size=vocab, **ema), 8, f"V = {vocab:,}, D = 8"),
        "fsq": (FSQ(values), library.FSQ(levels=list(values)), 6, f"values {'x'.join(map(str, values))}"),
        "residual": (
            ResidualCodebook(trained(residual_vocab, 128), levels=8),
            library.ResidualVQ(dim=128, num_quantizers=8, codebook_size=residual_vocab, **ema),
            128,
            f"8 levels of V = {residual_vocab:,}, D = 128",
        ),
    }

    def step(codebook: torch.nn.Module, z: torch.Tensor, training: bool) -> None:
        codebook.train(training)
        with torch.set_grad_enabled(training):
            out = codebook(z.detach().requires_grad_(training))
            if training:
                whole, losses = (out.vectors, out.losses.values()) if hasattr(out, "losses") else (out[0], out[2:])
                (whole.square().mean() + sum(part.sum() for part in losses)).backward()

    for name, (own, theirs, dim, setting) in pairs.items():
        z, repeat = torch.randn(16, vectors // 16, dim), 20 if name == "fsq" else 1
        for mode in ("eval", "train"):
            contenders = {
                "gentok": timed(step, own, z.transpose(1, 2).contiguous(), mode == "train", repeat=repeat),
                f"vector-quantize-pytorch {type(theirs).__name__}": timed(step, theirs, z, mode == "train", repeat=repeat),
            }
            if name == "vq":
                contenders["bare matrix product"] = timed(torch.mm, z.view(-1, dim), torch.randn(dim, vocab))
            seconds = interleaved(contenders, rounds)
            for peer in list(seconds)[1:]:
                key = f"codebook/{name}/{mode}/{'product' if peer.startswith('bare') else 'library'}"
                about = f"{setting}, {vectors:,} vectors, {'forward' if mode == 'eval' else 'training step'}"
                yield key, figure(seconds["gentok"], seconds[peer], peer=peer, dtype="float32", setting=about)
