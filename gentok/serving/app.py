"""The addresses of a served model.

    GET  /             a page to try it: class or text, seed, guidance, a file to complete, two samplers side by side
    POST /v1/sample    items by class, text, known part; JSON (messages.SampleRequest)
    GET  /v1/sample    one item as a file: ?condition=7&seed=3&sampler=jacobi&guidance=2, for a browser
    POST /v1/encode    the bytes of an image or sound file -> codes
    POST /v1/decode    codes -> items
    /v1/watch, /v1/stream, /v1/decode/stream    answers that come while the model works (live.py)
    GET  /v1/model     what the model is: its tokens, its conditions, the samplers that fit
    GET  /health       200 while it works
    GET  /metrics      counts, in Prometheus' form

What cannot be done is answered by {"error": one line}: 400 or 422 for a bad request, 413 for a body that is too large, 429 (with
Retry-After) where too much is waiting, 500 where drawing failed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gentok import __version__
from gentok.bundle import Bundle
from gentok.errors import ConfigError
from gentok.samplers.base import Sampler, described, fitting, sampler_name
from gentok.samplers.draws import Mark
from gentok.sampling import configured_sampler
from gentok.sampling_plan import Samples, SamplingPlan
from gentok.serving.engine import Busy, Engine
from gentok.serving.live import add_live
from gentok.serving.messages import (
    DecodeRequest,
    SampleRequest,
    asked_by_address,
    decoded_text,
    grid_of,
    items_of,
    keep_of,
    media_file,
    media_type,
    read_media,
    sampler_settings,
    tokens_of,
)  # fmt: skip
from gentok.types import Tokens

__all__ = ["Served", "make_app"]

_log = logging.getLogger("gentok")


@dataclass
class Served:
    """A model, and what a server allows.

    Attributes:
        bundle: a tokenizer, and a generator or none.
        sampler: of requests that name none; None: the first that fits.
        guidance: of requests that name none; None: the bundle's.
        mark: the watermark of everything that is drawn.
        text_encoder: a folder, of models that are conditioned on its vectors.
        batch_size, max_items, max_waiting, max_bytes, max_seconds: as in conf/serve.yaml.
    """

    bundle: Bundle
    sampler: Sampler | None = None
    guidance: float | None = None
    mark: Mark | None = None
    text_encoder: str | None = None
    batch_size: int = 64
    max_items: int = 64
    max_waiting: int = 256
    max_bytes: int = 16 << 20
    max_seconds: float = 60.0

    def plan(self, wanted: SampleRequest) -> SamplingPlan:
        """The plan of a request. Raises ValueError or ConfigError where it cannot be done."""
        if self.bundle.generator is None:
            raise ConfigError("this server has a tokenizer alone: it encodes and decodes")
        if wanted.n > self.max_items:
            raise ConfigError(f"n={wanted.n}: this server draws up to {self.max_items} items for a request")
        settings = sampler_settings(wanted.settings)
        sampler = self.sampler
        if wanted.sampler is not None or sampler is None or settings:
            sampler = configured_sampler(wanted.sampler or sampler, type(self.bundle.generator), settings)
        if self.mark is not None:
            sampler.check_marks()
        known = None if wanted.known is None else read_media(decoded_text(wanted.known, "known"), self.bundle.spec, self.max_seconds)
        guidance = self.guidance if wanted.guidance is None else wanted.guidance
        return SamplingPlan(
            self.bundle, sampler, n=wanted.n, condition=wanted.condition, seed=wanted.seed, known=known, keep=keep_of(wanted.keep),
            duration=wanted.duration, guidance=guidance, guidance_schedule=wanted.guidance_schedule, batch_size=self.batch_size,
            text_encoder=self.text_encoder, mark=self.mark,
        )  # fmt: skip

    def about(self) -> dict[str, Any]:
        """What GET /v1/model says."""
        generator, parts = self.bundle.generator, self.bundle.condition_spec.parts
        return {
            "gentok": __version__,
            "tokenizer": type(self.bundle.tokenizer).__name__,
            "tokens": self.bundle.spec.describe(),
            "generator": None if generator is None else type(generator).__name__,
            "conditions": {name: getattr(part, "names", part.kind) for name, part in parts},
            "samplers": [] if generator is None else [sampler_name(cls) for cls in fitting(generator)],
            "sampler": None if self.sampler is None else described(self.sampler),
            "guidance": self.bundle.meta.get("guidance", 1.0) if self.guidance is None else self.guidance,
            "grid": grid_of(self.bundle.spec),
            "codes": bool(self.bundle.spec.vocab_sizes),
            "streams": self.bundle.spec.modality == "audio",
            "media": media_type(self.bundle.spec),
            "media_shape": self.bundle.spec.media_shape,
            "watermarked": self.mark is not None,
        }


class _Counts:
    """The server's metrics, of one application."""

    def __init__(self, engine: Engine):
        self.registry = CollectorRegistry()
        self.requests = Counter("gentok_requests", "answers", ["address", "status"], registry=self.registry)
        self.seconds = Histogram("gentok_request_seconds", "from a request to its answer", ["address"], registry=self.registry)
        for name, about, value in (
            ("gentok_items_waiting", "items that wait", lambda: engine.waiting),
            ("gentok_items_drawn", "items drawn so far", lambda: engine.items),
            ("gentok_batches_drawn", "batches drawn so far", lambda: engine.batches),
        ):
            Gauge(name, about, registry=self.registry).set_function(value)


def make_app(served: Served) -> FastAPI:
    """The application, which any ASGI server runs.

    Args:
        served: the model and its limits.
    """
    engine = Engine(served.batch_size, served.max_waiting)
    counts, spec = _Counts(engine), served.bundle.spec

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)  # what waits is still drawn

    app = FastAPI(title="gentok", version=__version__, lifespan=lifespan)

    async def drawn(wanted: SampleRequest) -> tuple[SamplingPlan, Samples]:
        # Plans are made in the model's thread: known media are encoded for them.
        plan = await asyncio.wrap_future(engine.call(lambda: served.plan(wanted)))
        return plan, await asyncio.wrap_future(engine.sample(plan))

    @app.middleware("http")
    async def counted_and_limited(request: Request, call_next: Any) -> Any:
        began = time.perf_counter()
        length = request.headers.get("content-length", "")
        if request.method == "POST" and not length.isdigit():
            response: Any = _error(411, "a body needs its length: send it with Content-Length")
        elif length.isdigit() and int(length) > served.max_bytes:
            response = _error(413, f"the body has {int(length):,} bytes; this server takes {served.max_bytes:,}")
        else:
            response = await call_next(request)
        address = getattr(request.scope.get("route"), "path", "other")
        counts.requests.labels(address, response.status_code).inc()
        counts.seconds.labels(address).observe(time.perf_counter() - began)
        return response

    @app.exception_handler(RequestValidationError)
    async def unreadable(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query"))
        return _error(422, f"{where or 'the body'}: {first['msg']}")

    @app.exception_handler(Busy)
    async def later(_: Request, error: Busy) -> Response:
        return _error(429, f"{error}: try again later", {"Retry-After": "1"})

    @app.exception_handler(ValueError)  # ConfigError is one
    async def refused(_: Request, error: ValueError) -> Response:
        return _error(400, " ".join(str(error).split()))

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        _log.error("a request failed", exc_info=error)
        return _error(500, f"drawing failed: {type(error).__name__}")

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        here = Path(__file__).parent
        text = (here / "page.html").read_text(encoding="utf-8")
        for part in ("page.css", "page.js"):  # one answer, so that the page works behind any prefix of a proxy
            text = text.replace(f"/* {part} */", (here / part).read_text(encoding="utf-8"))
        return text

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "waiting": engine.waiting}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(counts.registry), media_type="text/plain; version=0.0.4")

    @app.get("/v1/model")
    async def model() -> dict[str, Any]:
        return served.about()

    async def answer(wanted: SampleRequest, plan: SamplingPlan, made: Samples) -> dict[str, Any]:
        return {
            "items": await asyncio.to_thread(items_of, made, spec, wanted.media, wanted.codes), "type": media_type(spec),
            "sampler": described(plan.sampler), "guidance": plan.guidance, "seed": wanted.seed, "seconds": round(made.seconds, 4),
        }  # fmt: skip

    @app.post("/v1/sample")
    async def sample(wanted: SampleRequest) -> dict[str, Any]:
        return await answer(wanted, *await drawn(wanted))

    @app.get("/v1/sample")
    async def sample_file(wanted: Annotated[SampleRequest, Depends(asked_by_address)]) -> Response:
        _, made = await drawn(wanted)
        item = made.media[0] if made.lengths is None else made.media[0][..., : int(made.lengths[0])]
        return Response(await asyncio.to_thread(media_file, item, spec), media_type=media_type(spec))

    @app.post("/v1/encode")
    async def encode(request: Request) -> dict[str, Any]:
        data = await request.body()

        def work() -> Any:
            tokens = served.bundle.encode(read_media(data, spec, served.max_seconds)[None])
            if not isinstance(tokens, Tokens):
                raise ConfigError("this model's tokenizer makes latents, which are not sent")
            return tokens.codes.tolist()

        return {"codes": await asyncio.wrap_future(engine.call(work)), "tokens": spec.describe()}

    @app.post("/v1/decode")
    async def decode(wanted: DecodeRequest) -> dict[str, Any]:
        if len(wanted.codes) > served.max_items:
            raise ConfigError(f"{len(wanted.codes)} items: this server decodes up to {served.max_items} for a request")

        def work() -> Samples:
            tokens = tokens_of(wanted.codes, served.bundle, served.max_seconds, wanted.keep)
            media = served.bundle.decode(tokens).float().cpu()
            ends = served.bundle.tokenizer.samples_of(tokens, media)
            return Samples(media, tokens, media.new_zeros(len(media)).long(), {}, 0.0, {}, ends)

        made = await asyncio.wrap_future(engine.call(work))
        items = await asyncio.to_thread(items_of, made, spec, True, False)
        return {"items": [{"media": item["media"]} for item in items], "type": media_type(spec)}

    add_live(app, served, engine, answer)
    return app


def _error(status: int, line: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": line}, status, headers)
