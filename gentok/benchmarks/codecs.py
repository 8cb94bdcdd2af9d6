"""A codec against the package of its authors."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from gentok.metrics.speed import Measured, figure, interleaved, missing, timed

__all__ = ["codec"]

PEER = "encodec EncodecModel"


def codec(rounds: int, seconds: tuple[int, ...] = (1, 10)) -> Measured:
    """gentok's EnCodec at 24 kHz against the package `encodec`.

    Both have the same random weights and filled tables, and encode and decode the same sounds in all 32
    levels. real_time_factor is seconds of sound per second.

    Args:
        rounds: measurements of each contender.
        seconds: lengths of the sounds.

    Raises:
        ValueError: both do not give the same codes, near ties aside, so they would not do the same work.
    """
    try:
        from encodec.model import EncodecModel
    except ImportError:
        names = [f"codec/encodec_24khz/{length}s/{what}" for length in seconds for what in ("encode", "decode")]
        yield from ((name, missing(PEER, "encodec")) for name in names)
        return
    import torch

    from gentok.build import build
    from gentok.cli import compose

    generator = torch.Generator().manual_seed(0)
    peer = EncodecModel.encodec_model_24khz(pretrained=False).eval()
    peer.set_target_bandwidth(24.0)
    sound = 0.1 * torch.randn(1, 1, 24_000 * max(seconds), generator=generator)
    with torch.no_grad():
        spread = peer.encoder(sound[..., :24_000]).std()
        for layer in peer.quantizer.vq.layers:
            layer._codebook.embed.copy_(spread * torch.randn(layer._codebook.embed.shape, generator=generator))
            layer._codebook.inited.fill_(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encodec.th"
        torch.save(peer.state_dict(), path)
        own = build(compose("config", ["tokenizer=encodec_24khz", f"tokenizer.weights={path}"])["tokenizer"]).eval()
    for length in seconds:
        media = sound[..., : 24_000 * length]
        with torch.inference_mode():
            frames, tokens = peer.encode(media), own.encode(media)
        agreeing = float((frames[0][0] == tokens.codes).double().mean())
        if agreeing < 0.95:  # a near tie changes the levels after it, too
            raise ValueError(f"encodec and gentok agree in {agreeing:.1%} of the codes: they do not do the same work")
        for what, given, given_to_peer in (("encode", media, media), ("decode", tokens, frames)):
            with torch.inference_mode():
                contenders = {"gentok": timed(getattr(own, what), given), PEER: timed(getattr(peer, what), given_to_peer)}
                took = interleaved(contenders, rounds)
            yield f"codec/encodec_24khz/{length}s/{what}", figure(
                took["gentok"], took[PEER], peer=PEER, dtype="float32", setting=f"{length} s of sound, 32 levels, batch 1",
                real_time_factor=length / statistics.median(took["gentok"]),
                peer_real_time_factor=length / statistics.median(took[PEER]),
            )  # fmt: skip
