"""The OpenAPI description of the HTTP side."""

from typing import Any

from sdpl import __version__
from sdpl.server.refusal import REASONS


def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    name = [_parameter("name", "path", {"type": "string"}, "A model.")]
    photo = [
        _parameter("model", "query", {"type": "string"}, "By default the first one."),
        _parameter("threshold", "query", {"type": "number", "minimum": 0, "maximum": 1}, "For all categories."),
        _parameter("top_k", "query", {"type": "integer", "minimum": 1}, "At most so many labels."),
        _parameter("attention", "query", {"type": "string"}, "1: also where the model looked, for the best 20."),
    ]
    image: dict[str, Any] = {"application/octet-stream": {}, "image/*": {}, "multipart/form-data": {}}
    tensors = {"application/json": {"schema": _schema("InferenceRequest")}, "application/octet-stream": {}}
    paths = {
        "/recognize": {"post": _operation("Labels of one photo", "Recognition", photo, image)},
        "/v2": {"get": _operation("The server", "Object")},
        "/v2/health/live": {"get": _operation("Whether the server lives", "Object")},
        "/v2/health/ready": {"get": _operation("Whether all models are ready, and why not", "Object")},
        "/v2/models/stats": {"get": _operation("Statistics of all models", "Object")},
        "/v2/models/{name}": {"get": _operation("A model: inputs, outputs, categories", "Object", name)},
        "/v2/models/{name}/config": {"get": _operation("Its configuration", "Object", name)},
        "/v2/models/{name}/ready": {"get": _operation("Whether it is ready", "Object", name)},
        "/v2/models/{name}/stats": {"get": _operation("Its statistics", "Object", name)},
        "/v2/models/{name}/infer": {"post": _operation("Inference", "InferenceResponse", name, tensors)},
        "/v2/repository/index": {"post": _operation("All models and their states", "Array")},
        "/v2/repository/models/{name}/load": {"post": _operation("Load (again) from disk", "Object", name)},
        "/v2/repository/models/{name}/unload": {"post": _operation("Take out of service", "Object", name)},
        "/metrics": {"get": _operation("Metrics for Prometheus", "Text")},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sdpl-serve",
            "version": __version__,
            "description": "Multi-label image recognition: the Open Inference Protocol (KServe v2), and /recognize.",
        },
        "paths": paths,
        "components": {"schemas": SCHEMAS, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
    }


TENSOR = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "description": "image, jpeg; scores, attention, labels"},
        "datatype": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "parameters": {"type": "object"},
        "data": {"type": "array", "items": {}},
    },
}
SCHEMAS: dict[str, Any] = {
    "Object": {"type": "object"},
    "Array": {"type": "array", "items": {"type": "object"}},
    "Text": {"type": "string"},
    "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
    "Tensor": TENSOR,
    "InferenceRequest": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {
                "type": "object",
                "properties": {
                    "threshold": {"type": "number"},
                    "top_k": {"type": "integer"},
                    "timeout": {"type": "integer", "description": "microseconds"},
                    "binary_data_output": {"type": "boolean"},
                },
            },
            "inputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}},
            "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}},
        },
    },
    "InferenceResponse": {
        "type": "object",
        "properties": {
            "model_name": {"type": "string"},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}},
        },
    },
    "Recognition": {
        "type": "object",
        "properties": {
            "model": {"type": "string"},
            "labels": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"name": {"type": "string"}, "score": {"type": "number"}},
                },
            },
            "scores": {"type": "object", "additionalProperties": {"type": "number"}},
            "thresholds": {"type": "object", "additionalProperties": {"type": "number"}},
            "attention": {"type": "object"},
            "ms": {"type": "object", "additionalProperties": {"type": "number"}},
        },
    },
}


def _schema(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _parameter(name: str, where: str, schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"name": name, "in": where, "required": where == "path", "schema": schema, "description": text}


def _operation(
    summary: str, answer: str, parameters: list[dict[str, Any]] | None = None, body: dict[str, Any] | None = None
) -> dict[str, Any]:
    kind = "text/plain" if answer == "Text" else "application/json"
    error = {"description": "Refused", "content": {"application/json": {"schema": _schema("Error")}}}
    codes = sorted({reason.http for reason in REASONS.values()} - {499})
    failures = {str(code): error for code in codes}
    return {
        "summary": summary,
        "parameters": parameters or [],
        **({"requestBody": {"required": True, "content": body}} if body else {}),
        "responses": {"200": {"description": "OK", "content": {kind: {"schema": _schema(answer)}}}, **failures},
    }
