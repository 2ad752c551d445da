"""The OpenAPI document of the server (version 3.1), from which ``/docs`` is drawn and clients can be generated."""

from __future__ import annotations

from typing import Any

from ..tasks.spec import CLASSIFICATION
from ..text.spec import TEXT, TEXT_PAIR
from ..text.texts import MOST_CHARACTERS
from . import result_schemas, tensor_schemas
from .model import ServedModel, TensorFacts
from .service import MOST_DEADLINE_MS, PRIORITIES
from .texts import TEXTS

_ERROR = {"$ref": "#/components/schemas/Error"}
_FILE = {"type": "string", "format": "binary"}


def document(model: ServedModel, *, token: bool) -> dict[str, Any]:
    """Return the document as JSON-ready values. ``token``: whether requests need one."""
    infer = f"/v2/models/{model.name}"
    paths: dict[str, Any] = {
        "/predict": {"post": _predict(model)},
        "/v2": {"get": _read("What the server is", "ServerMetadata")},
        "/v2/health/live": {"get": _read("Whether the process answers", "Live", token=False)},
        "/v2/health/ready": {"get": _read("Whether requests should be sent here", "Ready", token=False, unready=True)},
        infer: {"get": _read("The model's inputs and outputs", "ModelMetadata")},
        f"{infer}/ready": {"get": _read("Whether the model is ready", "ModelReady", unready=True)},
        f"{infer}/infer": {"post": _infer(model)},
        "/metrics": {"get": _text("Metrics for Prometheus")},
    }
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": model.name,
            "version": model.version,
            "description": "An INT8 model behind the Open Inference Protocol and a plain /predict.",
        },
        "paths": paths,
        "components": {"schemas": _schemas(model)},
    }
    if token:
        found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        for methods in paths.values():
            for operation in methods.values():
                operation.setdefault("security", [{"token": []}])
                operation["responses"].setdefault("401", _error("The token is missing or wrong"))
    return found


def _predict(model: ServedModel) -> dict[str, Any]:
    # A file is an image, or an .npy file for a model that takes arrays. JSON has images in base64.
    content: dict[str, Any] = {
        "application/octet-stream": {"schema": _FILE},
        "multipart/form-data": {"schema": {"type": "object", "minProperties": 1, "additionalProperties": _FILE}},
        "application/json": {
            "schema": {"$ref": f"#/components/schemas/{'Images' if model.takes_images else 'Arrays'}"}
        },
    }
    if model.takes_images:
        content["image/*"] = {"schema": _FILE}
    elif model.named:
        content = {
            "application/json": {"schema": {"$ref": "#/components/schemas/Named"}},
            "multipart/form-data": {"schema": tensor_schemas.fields(model, _FILE)},
        }
    if model.takes_text:
        json_form = {"oneOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("Text", "Texts", "Named")]}
        content["application/json"] = {"schema": json_form}
        content["text/plain"] = {"schema": {"type": "string"}}
        fields = {name: {"type": "string"} for name in (TEXT, TEXT_PAIR)}
        content["multipart/form-data"] = {"schema": {"type": "object", "properties": fields, "required": [TEXT]}}
    classifies = model.kind == CLASSIFICATION
    images = model.takes_images or any(each.preprocess is not None for each in model.signature.inputs)
    top_k = {
        "name": "top_k", "in": "query", "description": "How many classes to return for each input",
        "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999, "default": 5},
    }  # fmt: skip
    return {
        "summary": "Classify images"
        if model.takes_images and classifies
        else f"Run the model on {'images' if images else 'text' if model.takes_text else 'arrays'}",
        "parameters": [*([top_k] if classifies else []), *_urgency()],
        "requestBody": {"required": True, "content": content},
        "responses": {"200": _json("The answers, in order", "Predictions"), **_failures()},
    }


def _infer(model: ServedModel) -> dict[str, Any]:
    raw = len(model.inputs) == 1 and not model.takes_text
    length = {
        "name": "Inference-Header-Content-Length", "in": "header",
        "description": "Length of the JSON in front of binary data; " + "0 for raw data alone; " * raw
        + "without it all is JSON",
        "schema": {"type": "integer", "minimum": 0 if raw else 1},
    }  # fmt: skip
    outputs = _json("The outputs: JSON, in front of binary data where that is asked for", "InferResponse")
    outputs["content"]["application/octet-stream"] = {"schema": _FILE}
    return {
        "summary": "Run the model, as the Open Inference Protocol has it",
        "parameters": [length, *_urgency()],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}},
                "application/octet-stream": {"schema": _FILE},
            },
        },
        "responses": {"200": outputs, **_failures()},
    }


def _urgency() -> list[dict[str, Any]]:
    return [
        {
            "name": "X-Deadline-Ms", "in": "header", "description": "By when the answer must be there",
            "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": MOST_DEADLINE_MS},
        },
        {
            "name": "X-Priority", "in": "header",
            "description": "Which requests go first: high (1), normal (2, also 0) or low (3)",
            "schema": {"type": "string", "enum": list(PRIORITIES)},
        },
    ]  # fmt: skip


def _failures() -> dict[str, Any]:
    return {
        "400": _error("The request is not valid; the error says why"),
        "413": _error("The body is too large"),
        "415": _error("The Content-Encoding is not taken"),
        "429": _error("Refused: the answer would come too late, or too much waits; Retry-After says when to try"),
        "503": _error("The server starts or stops"),
    }


def _read(summary: str, schema: str, *, token: bool = True, unready: bool = False) -> dict[str, Any]:
    responses = {"200": _json(summary, schema)}
    if unready:
        responses["503"] = _json("Not ready", schema)
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if not token:
        operation["security"] = []
    return operation


def _text(summary: str) -> dict[str, Any]:
    content = {"text/plain": {"schema": {"type": "string"}}}
    return {"summary": summary, "responses": {"200": {"description": summary, "content": content}}}


def _json(description: str, schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, "content": content}


def _error(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ERROR}}}


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required or properties)}


def _schemas(model: ServedModel) -> dict[str, Any]:
    text, whole, true_false = ({"type": name} for name in ("string", "integer", "boolean"))
    tensor = _object(name=text, datatype=text, shape={"type": "array", "items": whole})
    answered = _object(
        ("name", "datatype", "shape"), **tensor["properties"], data={"type": "array"}, parameters={"type": "object"}
    )
    answered["properties"]["name"] = {"enum": [each.name for each in model.outputs_facts]}
    return {
        "Error": _object(error=text),
        "Live": _object(live=true_false),
        "Ready": _object(ready=true_false),
        "ModelReady": _object(name=text, ready=true_false),
        "ServerMetadata": _object(name=text, version=text, extensions={"type": "array", "items": text}),
        "ModelMetadata": _object(
            name=text, versions={"type": "array", "items": text}, platform=text,
            inputs={"type": "array", "items": tensor}, outputs={"type": "array", "items": tensor},
        ),
        "Images": _one_or_many("image", "images", tensor_schemas.BASE64),
        "Arrays": _one_or_many("input", "inputs", tensor_schemas.array(model)),
        "Named": _one_or_many("input", "inputs", tensor_schemas.sample(model)),
        **(_texts() if model.takes_text else {}),
        "Predictions": result_schemas.predictions(
            model.runner.answers.spec,
            takes_text=model.takes_text,
            outputs=[each.name for each in model.outputs_facts],
        ),
        "InferRequest": _object(
            ("inputs",), id=text, parameters=_asked(), inputs=tensor_schemas.tensors(model),
            outputs={
                "type": "array", "maxItems": len(model.outputs_facts),
                "items": {"oneOf": [_wanted(each) for each in model.outputs_facts]},
                **tensor_schemas.each_once({each.name: False for each in model.outputs_facts}),
            },
        ),
        "InferResponse": _object(
            ("model_name", "model_version", "outputs"), model_name=text, model_version=text, id=text,
            outputs={"type": "array", "items": answered},
        ),
    }  # fmt: skip


def _texts() -> dict[str, Any]:
    """Return the schemas of one text or pair, and of several."""
    string = {"type": "string", "maxLength": MOST_CHARACTERS}
    one = {**_object((TEXT,), **{TEXT: string, TEXT_PAIR: string}), "additionalProperties": False}
    pair = {"type": "array", "items": string, "minItems": 2, "maxItems": 2}
    many = {"type": "array", "minItems": 1, "items": {"oneOf": [string, one, pair]}}
    return {"Text": one, "Texts": {**_object((TEXTS,), **{TEXTS: many}), "additionalProperties": False}}


def _one_or_many(one: str, many: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object with one item under a name, or with a list of them under another."""
    several = {"type": "array", "items": schema, "minItems": 1}
    return {
        "oneOf": [
            {"type": "object", "properties": {name: what}, "required": [name], "additionalProperties": False}
            for name, what in ((many, several), (one, schema))
        ]
    }


def _asked() -> dict[str, Any]:
    """Return the schema of the parameters of a request that the server knows; others are ignored."""
    return {
        "type": "object",
        "properties": {
            "timeout": {"type": "integer", "minimum": 0, "maximum": int(MOST_DEADLINE_MS * 1000)},
            "priority": {"enum": [0, 1, 2, 3, *PRIORITIES]},
            "binary_data_output": {"type": "boolean"},
        },
    }


def _wanted(facts: TensorFacts) -> dict[str, Any]:
    """Return the schema of an output that is asked for."""
    parameters: dict[str, Any] = {"binary_data": {"type": "boolean"}, "shared_memory_region": False}
    scores = len(facts.shape) == 2 and facts.datatype == "FP32"
    parameters["classification"] = {"type": "integer", "minimum": 0} | ({} if scores else {"maximum": 0})
    return {
        "type": "object",
        "properties": {"name": {"const": facts.name}, "parameters": {"type": "object", "properties": parameters}},
        "required": ["name"],
    }
