"""The OpenAPI description of the HTTP API, as plain data."""

from __future__ import annotations

from typing import Any

import vitlet
from vitlet.partition.cluster.web.service import MAX_DEADLINE, MAX_IMAGE

_INTEGERS = {"type": "array", "items": {"type": "integer"}}
_PREDICTION = {
    "type": "object",
    "properties": {
        "label": {"type": "string"},
        "index": {"type": "integer"},
        "score": {"type": "number", "description": "Calibrated probability."},
    },
}
_SLOT = {
    "type": "object",
    "description": "How one sub-model's features came; times in seconds.",
    "properties": {
        "slot": {"type": "integer"},
        "device": {"type": "string", "description": "Empty when nobody answered."},
        "compute": {"type": "number"},
        "queue": {"type": "number"},
        "total": {"type": "number"},
        "attempts": {"type": "integer"},
        "hedged": {"type": "boolean"},
    },
}
_ANSWER = {
    "type": "object",
    "properties": {
        "images": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "predictions": {"type": "array", "items": _PREDICTION},
                    "confidence": {"type": "number"},
                    "covered": {
                        "type": "boolean",
                        "description": "Whether the best guess is of a class whose slot answered.",
                    },
                },
            },
        },
        "missing": {**_INTEGERS, "description": "Slots that did not answer in time."},
        "covered_classes": _INTEGERS,
        "degraded": {"type": "boolean"},
        "latency_ms": {"type": "number"},
        "slots": {"type": "array", "items": {"$ref": "#/components/schemas/Slot"}},
    },
}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {"code": {"type": "string"}, "message": {"type": "string"}},
        }
    },
}
_WHY = {
    400: "No image, or a parameter that makes no sense.",
    401: "No token, or the wrong one.",
    408: "The body came too slowly.",
    413: "The image is too large.",
    429: "Too many requests are under way; Retry-After says when to come again.",
    503: "Too few slots have a worker; Retry-After says when to come again.",
    504: "Too few slots answered by the deadline.",
}


def document(slots: int) -> dict[str, Any]:
    """Return the description, for a plan of so many slots."""
    options = [
        _parameter("topk", "Guesses per image.", {"type": "integer", "default": 5}),
        _parameter(
            "deadline_ms", f"At most {MAX_DEADLINE * 1e3:g}; else that of the server.",
            {"type": "number"},
        ),
    ]  # fmt: skip
    image = {"schema": {"type": "string", "format": "binary", "maxLength": MAX_IMAGE}}
    line = {"schema": {"type": "string", "example": '{"id": 1, "image": "BASE64"}'}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "vitlet run",
            "version": vitlet.__version__,
            "description": f"Classifies images with a model that is split over {slots} slots.",
        },
        "security": [{"token": []}],
        "paths": {
            "/v1/classify": {
                "post": {
                    "summary": "Classify one image: the body is the file (JPEG, PNG, WebP, ...).",
                    "parameters": options,
                    "requestBody": {"required": True, "content": {"image/*": image}},
                    "responses": _responses(_json("Answer"), 400, 401, 408, 413, 429, 503, 504),
                }
            },
            "/v1/stream": {
                "post": {
                    "summary": "Classify many: a JSON line each way per image, answers as they "
                    "are ready. Read them while you send.",
                    "parameters": options,
                    "requestBody": {"required": True, "content": {"application/x-ndjson": line}},
                    "responses": _responses({"application/x-ndjson": line}, 400, 401, 429, 503),
                }
            },
            "/v1/status": _get("The cluster as the coordinator sees it.", "application/json"),
            "/v1/events": _get("The same twice a second, as events.", "text/event-stream"),
            "/metrics": _get("Metrics for Prometheus.", "text/plain"),
            "/healthz": {
                "get": {
                    "summary": "Whether enough slots have a worker: 200 or 503. Needs no token.",
                    "security": [],
                    "responses": {"200": {"description": "Yes."}, "503": {"description": "No."}},
                }
            },
        },
        "components": {
            "schemas": {"Answer": _ANSWER, "Slot": _SLOT, "Error": _ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _parameter(name: str, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": text, "schema": schema}


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _get(text: str, kind: str) -> dict[str, Any]:
    return {"get": {"summary": text, "responses": _responses({kind: {}}, 401)}}


def _responses(content: dict[str, Any], *refusals: int) -> dict[str, Any]:
    found: dict[str, Any] = {"200": {"description": "Done.", "content": content}}
    for status in refusals:
        found[str(status)] = {"description": _WHY[status], "content": _json("Error")}
    return found
