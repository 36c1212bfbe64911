"""What /openapi.json says of requests and answers beyond what FastAPI sees: bodies, every status, content types and limits."""

from typing import Any

from tlkit.deploy.serve.limits import Limits

Schema = dict[str, Any]

PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"

_TEXT: Schema = {"type": "string"}
_PROBABILITY: Schema = {"type": "number", "minimum": 0, "maximum": 1}
_BINARY: Schema = {"type": "string", "format": "binary"}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "required": True, "schema": _TEXT}}
_BEARER = {"WWW-Authenticate": {"required": True, "schema": _TEXT}}


def _object(required: Schema, optional: Schema | None = None) -> Schema:
    properties = {**required, **(optional or {})}
    return {"type": "object", "required": list(required), "properties": properties, "additionalProperties": False}


def _answer(description: str, schema: Schema, headers: Schema | None = None, *, content: str = "application/json") -> Schema:
    return {"description": description, "content": {content: {"schema": schema}}, **({"headers": headers} if headers else {})}


_ERROR = _object({"error": _TEXT})
UNAUTHORIZED = {401: _answer("The token is missing or wrong.", _ERROR, _BEARER)}
UNREADY = {503: _answer("It can't take an image right now.", _ERROR, _RETRY_AFTER)}
STATUS = {200: _answer("It does.", _object({"status": _TEXT}))}
FIGURES = {200: _answer("Prometheus' text format.", _TEXT, content=PROMETHEUS)}


def request_body(limits: Limits) -> Schema:
    """Return the ways to send images to /predict."""
    files = {"type": "array", "minItems": 1, "maxItems": limits.files, "items": _BINARY}
    form = {"type": "object", "required": ["files"], "properties": {"files": files}}
    schemas = {"multipart/form-data": form, "image/*": _BINARY, "application/octet-stream": _BINARY}
    megabytes, pixels = f"{limits.upload_bytes / 1e6:g} MB", f"{limits.pixels / 1e6:g} million pixels"
    description = f"An image as it is, or a form with images: {megabytes} in all, {pixels} each."
    return {"required": True, "description": description, "content": {kind: {"schema": schema} for kind, schema in schemas.items()}}


def prediction_answers(*, multilabel: bool) -> dict[int, Schema]:
    """Return every answer of /predict, by status."""
    likely = {"type": "array", "items": _object({"class": _TEXT, "probability": _PROBABILITY})}
    best = {"class": {"type": ["string", "null"]}, "probability": _PROBABILITY}
    beside = {"set": {"type": "array", "items": _TEXT}, "unknown": {"type": "boolean"}, "note": _TEXT}
    prediction = (
        _object({"classes": likely, "top": likely}, beside)
        if multilabel
        else _object({**best, "top": likely}, {"abstains": {"type": "boolean"}, **beside})
    )
    each = {"type": "array", "minItems": 1, "items": {"anyOf": [prediction, _ERROR]}}
    of_a_file = _object({"error": _TEXT}, {"predictions": each})
    return {
        200: _answer(
            "A prediction for each file, in their order.", _object({"predictions": {"type": "array", "minItems": 1, "items": prediction}})
        ),
        400: _answer("Nothing came, or the form is broken.", _ERROR),
        408: _answer("The request had not arrived in time.", _ERROR),
        413: _answer("Too many bytes, files or pixels.", of_a_file),
        415: _answer("Another content type.", _ERROR),
        422: _answer("A file is no whole image, or the query can't be used.", of_a_file),
        500: _answer("The model answers NaN for an image, or the server has a fault.", of_a_file),
        503: _answer("Too much at once, or no answer in time.", _ERROR, _RETRY_AFTER),
    }
