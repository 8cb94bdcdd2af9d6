"""Addresses that answer while a model still works.

    POST /v1/watch            a line of JSON per step: the cells that it drew; then the answer of /v1/sample
    GET  /v1/stream           one sound by class or text, sent while it is drawn (POST: everything that /v1/sample takes)
    POST /v1/decode/stream    one item's codes -> its sound, sent while it is decoded

Sounds are WAV files of 16 bits whose header leaves the length open.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import torch
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse
from torch import Tensor

from gentok.errors import ConfigError
from gentok.sampling_plan import Samples, SamplingPlan
from gentok.serving.engine import Engine
from gentok.serving.messages import DecodeRequest, SampleRequest, asked_by_address, tokens_of
from gentok.serving.sound_stream import SoundStream, reach
from gentok.serving.watch import Changes, Watcher
from gentok.types import Tokens, TokenSpec

if TYPE_CHECKING:
    from gentok.serving.app import Served

__all__ = ["add_live", "pcm", "wav_header"]

Answer = Callable[[SampleRequest, SamplingPlan, Samples], Awaitable[dict[str, Any]]]


def wav_header(spec: TokenSpec) -> bytes:
    """The first 44 bytes of a WAV file of 16 bits and of any length."""
    rate, channels, most = spec.sample_rate or 1, (spec.media_shape or (1,))[0], 0xFFFFFFFF
    form = struct.pack("<HHIIHH", 1, channels, rate, 2 * channels * rate, 2 * channels, 16)
    return b"RIFF" + struct.pack("<I", most) + b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", most - 36)


def pcm(sound: Tensor) -> bytes:
    """float [C, n] in [-1, 1] as samples of 16 bits."""
    return (sound.clamp(-1, 1) * 32767).round().to(torch.int16).T.contiguous().numpy().tobytes()


def add_live(app: FastAPI, served: Served, engine: Engine, answer: Answer) -> None:
    """Adds the addresses.

    Args:
        app: of gentok.serving.app.
        served: the model and its limits.
        engine: that draws.
        answer: what /v1/sample answers.
    """
    spec, tokenizer = served.bundle.spec, served.bundle.tokenizer
    reached = cache(lambda: reach(tokenizer))  # measured in the model's thread, when it is first needed

    async def checked_plan(wanted: SampleRequest) -> SamplingPlan:
        return await asyncio.wrap_future(engine.call(lambda: served.plan(wanted)))

    @app.post("/v1/watch")
    async def watch(wanted: SampleRequest) -> StreamingResponse:
        plan = await checked_plan(wanted)
        told = _Told(engine, plan, Changes)

        async def lines() -> AsyncIterator[str]:
            async for step in told:
                yield json.dumps(step) + "\n"
            try:
                last = {"done": await answer(wanted, plan, told.made)}
            except Exception as error:  # the status was sent long ago
                refused = isinstance(error, ValueError)
                last = {"error": " ".join(str(error).split()) if refused else f"drawing failed: {type(error).__name__}"}
            yield json.dumps(last) + "\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def streamed(wanted: SampleRequest) -> StreamingResponse:
        if spec.modality != "audio" or wanted.n != 1:
            raise ConfigError(f"a stream is one sound; asked for: n={wanted.n}, of a model of {spec.modality}")
        plan = await checked_plan(wanted)
        reaches = await asyncio.wrap_future(engine.call(reached)) if tokenizer.latency_samples is None else None
        sound = SoundStream(tokenizer, reaches, plan.sampler)

        def watcher(tell: Callable[[Any], None]) -> Watcher:
            def hear(step: Any) -> None:
                if isinstance(step.tokens, Tokens) and (part := sound.feed(step.tokens)) is not None:
                    tell(part)

            return hear

        told = _Told(engine, plan, watcher)

        async def parts() -> AsyncIterator[bytes]:
            yield wav_header(spec)
            async for part in told:
                yield pcm(part)
            made = told.made
            end = made.media.shape[-1] if made.lengths is None else int(made.lengths[0])
            yield pcm(made.media[0, :, sound.sent : end])

        return StreamingResponse(parts(), media_type="audio/wav")

    @app.post("/v1/stream")
    async def stream(wanted: SampleRequest) -> StreamingResponse:
        return await streamed(wanted)

    @app.get("/v1/stream")
    async def stream_file(wanted: Annotated[SampleRequest, Depends(asked_by_address)]) -> StreamingResponse:
        return await streamed(wanted)

    @app.post("/v1/decode/stream")
    async def decode(wanted: DecodeRequest) -> StreamingResponse:
        if spec.modality != "audio" or len(wanted.codes) != 1:
            raise ConfigError(f"a stream is one sound; got codes of {len(wanted.codes)} items of {spec.modality}")
        tokens = tokens_of(wanted.codes, served.bundle, served.max_seconds, wanted.keep).to(served.bundle.device).validate()
        reaches = await asyncio.wrap_future(engine.call(reached)) if tokenizer.latency_samples is None else None
        sound, frames = SoundStream(tokenizer, reaches), tokens.codes.shape[2]
        step = -(-max(int(getattr(spec.grid, "rate_hz", 1)), sum(reaches or ())) // spec.frame_multiple) * spec.frame_multiple

        async def parts() -> AsyncIterator[bytes]:
            yield wav_header(spec)
            for end in range(step, frames + step, step):
                first = Tokens(tokens.codes[:, :, :end], spec)
                part = await asyncio.wrap_future(engine.call(lambda first=first, end=end: sound.feed(first, end >= frames)))
                if part is not None:
                    yield pcm(part)

        return StreamingResponse(parts(), media_type="audio/wav")


class _Told:
    """What the model's thread tells of a request, in the server's: an iteration that ends with the drawing.

    Args:
        engine: that draws.
        plan: of the request.
        watcher: makes one of the function that tells.

    Raises:
        Busy: too much is waiting.
    """

    def __init__(self, engine: Engine, plan: SamplingPlan, watcher: Callable[[Callable[[Any], None]], Watcher]):
        loop, self._queue = asyncio.get_running_loop(), asyncio.Queue[Any]()
        self._end = object()
        self._future = engine.sample(plan, watcher(lambda told: self._hand(loop, told)))
        self._future.add_done_callback(lambda _: self._hand(loop, self._end))

    def _hand(self, loop: asyncio.AbstractEventLoop, told: Any) -> None:
        loop.call_soon_threadsafe(self._queue.put_nowait, told)

    @property
    def made(self) -> Samples:
        """What was drawn. Raises the error of drawing."""
        return self._future.result()

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            while (told := await self._queue.get()) is not self._end:
                yield told
        finally:
            self._future.cancel()  # of one who went away, what was not yet begun
