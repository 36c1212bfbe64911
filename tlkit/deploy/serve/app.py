"""The server's pages: POST /predict, the page to drop an image on, health, metrics."""

import asyncio
import hmac
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics, generate_latest

import tlkit
from tlkit.deploy.predict.layouts import OutputOptions, json_values
from tlkit.deploy.predict.prediction import NOT_FINITE, Prediction
from tlkit.deploy.predict.predictor import Answer, Predictor
from tlkit.deploy.serve.batching import Batches
from tlkit.deploy.serve.description import FIGURES, PROMETHEUS, STATUS, UNAUTHORIZED, UNREADY, prediction_answers, request_body
from tlkit.deploy.serve.limits import Limits, Refusal, Room
from tlkit.deploy.serve.page import page
from tlkit.deploy.serve.uploads import EXPECTED, Upload, image, read_upload
from tlkit.errors import expected_one_of

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request

PATHS = ("/", "/predict", "/health", "/ready", "/metrics", "/openapi.json")
_QUERY = ("top_k", "threshold")
_THRESHOLD = {
    False: "Abstain where no class is as likely.",
    True: "Name every class that is likelier, in place of the model's own thresholds.",
}
"""Whether the model is multilabel -> description of the query parameter."""
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True)
class Service:
    """max_batch, max_wait_s: see Batches. token: what `Authorization: Bearer` must bring; None asks for none."""

    predictor: Predictor
    limits: Limits
    max_batch: int
    max_wait_s: float
    token: str | None


class Server:
    """What the requests share."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.room = Room(service.limits)
        self.metrics = Metrics(waiting=lambda: self.room.images, held_bytes=lambda: self.room.bytes)
        self.decoders = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")
        self.batches = Batches(
            lambda images: _rows(service.predictor.answer(images)),
            size=service.max_batch,
            wait_s=service.max_wait_s,
            more_come=lambda in_hand: self.room.images > in_hand,
            on_batch=self.metrics.batches.observe,
        )

    async def predict(self, request: "Request", question: OutputOptions, thresholds: tuple[float, ...]) -> tuple[int, dict[str, Any]]:
        """Return the status and the answer: a prediction, or an error, for each file in order. Raises Refusal.

        thresholds: of a multilabel model, one a class.
        """
        with self.room.for_upload() as hold:
            files = await read_upload(request, self.service.limits, hold)
            request.state.images = len(files)
            with self.room.for_images(len(files)):
                uploads = [Upload(data, f"image {i + 1}" if len(files) > 1 else "The image") for i, data in enumerate(files)]
                try:
                    async with asyncio.timeout(self.service.limits.answer_s):
                        found = await asyncio.gather(*map(self._row, uploads), return_exceptions=True)
                except TimeoutError as error:
                    raise Refusal(503, f"No answer was found within {self.service.limits.answer_s:g} s. Try again.") from error
        return _answer(found, question, thresholds)

    async def _row(self, upload: Upload) -> NDArray[np.float64]:
        loop = asyncio.get_running_loop()
        fitted = await loop.run_in_executor(self.decoders, image, upload, self.service.predictor.preprocessing, self.service.limits)
        row = await self.batches.ask(fitted)
        if not np.isfinite(row[:-1]).all():
            raise Refusal(500, f"{upload}: {NOT_FINITE}")
        self.metrics.images.inc()
        return row


def _rows(answer: Answer) -> NDArray[np.float64]:
    """Return a row per image: its probabilities, and how unlike the training images it is; NaN where the model has no such score."""
    unknown = np.full(len(answer.probabilities), np.nan) if answer.unknown is None else answer.unknown
    return np.concatenate([answer.probabilities, unknown[:, None]], 1)


def _answer(found: list[Any], question: OutputOptions, thresholds: tuple[float, ...]) -> tuple[int, dict[str, Any]]:
    """Return 200 if every image has a prediction, otherwise the status of the first that has none."""
    rows: list[dict[str, Any]] = []
    status = 200
    for row in found:
        if isinstance(row, Refusal):
            status = row.status if status == 200 else status
            rows.append({"error": row.message})
        elif isinstance(row, BaseException):
            raise row
        else:
            values = json_values(Prediction("", row[:-1], thresholds=thresholds, unknown=float(row[-1])), question)
            rows.append({key: value for key, value in values.items() if key != "path"})
    if status == 200:
        return status, {"predictions": rows}
    return status, {"error": next(row["error"] for row in rows if "error" in row), "predictions": rows}


def create_app(service: Service) -> "FastAPI":
    from fastapi import FastAPI

    server = Server(service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.batches.start()
        yield
        await server.batches.stop()
        server.decoders.shutdown()

    # The pages that FastAPI makes for people to try things on load scripts from elsewhere.
    app = FastAPI(title=f"tlkit: {service.predictor.name}", version=tlkit.__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    _add_predict(app, server)
    _add_pages(app, server)
    _add_refusals(app)
    app.add_middleware(Observed, metrics=server.metrics)
    return app


def _add_predict(app: "FastAPI", server: Server) -> None:
    from fastapi import Query, Request
    from fastapi.responses import JSONResponse

    predictor = server.service.predictor
    multilabel = bool(predictor.thresholds)
    token = _token_asked_for(server.service.token)

    @app.post(
        "/predict",
        summary="Name the classes of images",
        openapi_extra={"requestBody": request_body(server.service.limits)},
        responses=prediction_answers(multilabel=multilabel) | token["responses"],
        dependencies=token["dependencies"],
    )
    async def predict(
        request: Request,
        top_k: int = Query(3, ge=1, description="Classes to name for each image."),
        threshold: float | None = Query(None, ge=0, le=1, description=_THRESHOLD[multilabel]),
    ) -> JSONResponse:
        """Return predictions in the order of the files; 200 only if every file has one."""
        _check_names(request.query_params)
        question = OutputOptions.of(predictor, top_k, threshold)
        thresholds = predictor.thresholds if threshold is None else (threshold,) * len(predictor.thresholds)
        status, answer = await server.predict(request, question, thresholds)
        return JSONResponse(answer, status)


def _check_names(query: Iterable[str]) -> None:
    """Raise Refusal for a parameter that there isn't, which FastAPI leaves unread."""
    if (unknown := next((name for name in query if name not in _QUERY), None)) is not None:
        raise Refusal(422, f"'{unknown}' is no parameter of /predict. {expected_one_of(unknown, _QUERY)}")


def _add_pages(app: "FastAPI", server: Server) -> None:
    from fastapi.responses import HTMLResponse, JSONResponse, Response

    html, policy = page(server.service.predictor.name, server.service.predictor.classes, asks_token=server.service.token is not None)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def front() -> HTMLResponse:
        return HTMLResponse(html, headers={"Content-Security-Policy": policy})

    @app.get("/health", summary="Whether the server lives", responses=STATUS)  # type: ignore[arg-type]
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready", summary="Whether it can answer right now", responses=STATUS | UNREADY)  # type: ignore[arg-type]
    async def ready() -> JSONResponse:
        if not server.batches.alive:
            raise Refusal(503, "The network doesn't run. Start the server again.")
        if server.room.images >= server.service.limits.waiting:
            raise Refusal(503, "As many images wait as may.")
        return JSONResponse({"status": "ready"})

    token = _token_asked_for(server.service.token)
    responses = FIGURES | token["responses"]

    @app.get(
        "/metrics",
        summary="Figures for Prometheus",
        response_class=Response,  # it names no content type of its own beside that of the responses
        responses=responses,
        dependencies=token["dependencies"],
    )
    async def metrics() -> Response:
        return Response(server.metrics.text(), media_type=PROMETHEUS)


def _token_asked_for(token: str | None) -> dict[str, Any]:
    """Return `dependencies` that refuse a request without the token before anything else is looked at, and the `responses` of that."""
    from fastapi import Depends, Request
    from fastapi.security import HTTPBearer

    if token is None:
        return {"dependencies": [], "responses": {}}

    async def check(request: Request) -> None:
        _check_token(request, token)

    # The first is there for the description alone: its own refusals say less.
    return {"dependencies": [Depends(HTTPBearer(auto_error=False)), Depends(check)], "responses": UNAUTHORIZED}


def _check_token(request: "Request", token: str) -> None:
    """Raise Refusal if the request doesn't bring it."""
    scheme, _, brought = request.headers.get("authorization", "").partition(" ")
    # Compared in a time that doesn't tell how much of it was right.
    if not hmac.compare_digest(brought.strip().encode(), token.encode()) or scheme.lower() != "bearer":
        came = "a wrong one" if brought else "none"
        raise Refusal(401, f"A token is needed, and {came} came. Expected the header: Authorization: Bearer TOKEN")


def _add_refusals(app: "FastAPI") -> None:
    """Answer every refusal as JSON with an `error` that says what came and what was expected."""
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect

    @app.exception_handler(Refusal)
    async def refuse(_: Any, refusal: Refusal) -> JSONResponse:
        return JSONResponse({"error": refusal.message}, refusal.status, refusal.headers)

    @app.exception_handler(RequestValidationError)
    async def refuse_query(_: Any, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}, but '{first.get('input')}' came."}, 422)

    @app.exception_handler(HTTPException)
    async def refuse_path(request: Any, error: HTTPException) -> JSONResponse:
        expected = {404: f"Expected one of: {', '.join(PATHS)}.", 405: f"Expected {(error.headers or {}).get('Allow', 'another method')}."}
        message = f"{request.method} of this path: {error.detail}. {expected.get(error.status_code, EXPECTED)}"
        return JSONResponse({"error": message}, error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def client_gone(_: Any, __: ClientDisconnect) -> JSONResponse:
        return JSONResponse({"error": "The client left before its request had arrived."}, 400)

    @app.exception_handler(Exception)
    async def fault(_: Any, __: Exception) -> JSONResponse:
        return JSONResponse({"error": "This is a fault of the server, not yours. It is in the server's log."}, 500)


class Observed:
    """Around every request: a line in the log, the metrics, and headers that every answer has."""

    def __init__(self, app: Any, metrics: "Metrics") -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, received = time.perf_counter(), 0, 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
            await send(message)

        try:
            await self._app(scope, counted, marked)
        finally:
            seconds = time.perf_counter() - began
            # Another path than these may be anything, a person's name too.
            path = scope["path"] if scope["path"] in PATHS else "other"
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(seconds)
            images = scope.get("state", {}).get("images", 0)
            facts = {"method": scope["method"], "path": path, "status": status, "ms": round(1000 * seconds, 1)}
            LOG.info("request", extra={**facts, "bytes": received, "pictures": images})


LOG = logging.getLogger("tlkit.serve")
_KEYS = ("method", "path", "status", "ms", "bytes", "pictures", "url")


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        values: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage().strip(),
        }
        values |= {key: getattr(record, key) for key in _KEYS if hasattr(record, key)}
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=False)


def log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.captureWarnings(True)
    for name, level in (("tlkit.serve", logging.INFO), ("uvicorn", logging.WARNING), ("py.warnings", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """waiting, held_bytes: asked when the page is."""

    def __init__(self, *, waiting: Callable[[], float], held_bytes: Callable[[], float]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self.requests = Counter("tlkit_requests", "Requests answered.", ("path", "status"), registry=self._registry)
        self.seconds = Histogram(
            "tlkit_request_seconds", "From the request's head to its answer.", ("path",), buckets=SECONDS, registry=self._registry
        )
        self.batches = Histogram("tlkit_batch_pictures", "Images in the network together.", buckets=IMAGES, registry=self._registry)
        self.images = Counter("tlkit_pictures", "Images answered.", registry=self._registry)
        queue = Gauge("tlkit_waiting_pictures", "Images between their upload and their answer.", registry=self._registry)
        queue.set_function(waiting)
        held = Gauge("tlkit_held_bytes", "Bytes of uploads that are being read or decoded.", registry=self._registry)
        held.set_function(held_bytes)

    def text(self) -> bytes:
        return generate_latest(self._registry)
