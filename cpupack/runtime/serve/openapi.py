"""The OpenAPI document of the server (version 3.1), from which ``/docs`` is drawn and clients can be generated."""

from __future__ import annotations

from typing import Any

from .model import ServedModel, TensorFacts

_ERROR = {"$ref": "#/components/schemas/Error"}


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
    if model.takes_images:
        binary = {"type": "string", "format": "binary"}
        # Lists of the images that a client has; JSON has them in base64.
        content: dict[str, Any] = {
            "image/*": {"schema": binary},
            "multipart/form-data": {"schema": {"type": "object", "properties": {"file": binary}, "required": ["file"]}},
            "application/json": {"schema": {"$ref": "#/components/schemas/Images"}},
        }
    elif model.named:
        fields = {each.name: {"type": "string"} for each in model.inputs}
        needed = [each.name for each in model.signature.inputs if each.default is None]
        content = {
            "application/json": {"schema": {"$ref": "#/components/schemas/Named"}},
            "multipart/form-data": {"schema": {"type": "object", "properties": fields, "required": needed}},
        }
    else:
        content = {"application/json": {"schema": {"$ref": "#/components/schemas/Arrays"}}}
    top_k = {
        "name": "top_k", "in": "query", "description": "How many classes to return for each input",
        "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999, "default": 5},
    }  # fmt: skip
    return {
        "summary": "Classify images" if model.takes_images else "Run the model on arrays",
        "parameters": [top_k, *_urgency()],
        "requestBody": {"required": True, "content": content},
        "responses": {"200": _json("The answers, in order", "Predictions"), **_failures()},
    }


def _infer(model: ServedModel) -> dict[str, Any]:
    length = {
        "name": "Inference-Header-Content-Length", "in": "header",
        "description": "Length of the JSON in front of binary data; 0 for raw data alone",
        "schema": {"type": "integer", "minimum": 0},
    }  # fmt: skip
    return {
        "summary": "Run the model, as the Open Inference Protocol has it",
        "parameters": [length, *_urgency()],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}}},
        },
        "responses": {"200": _json("The outputs", "InferResponse"), **_failures()},
    }


def _urgency() -> list[dict[str, Any]]:
    return [
        {
            "name": "X-Deadline-Ms", "in": "header", "description": "By when the answer must be there",
            "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 600_000},
        },
        {
            "name": "X-Priority", "in": "header", "description": "Which requests go first",
            "schema": {"type": "string", "enum": ["high", "normal", "low"]},
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


def _array(facts: TensorFacts) -> dict[str, Any]:
    """Return the schema of one sample of a tensor as nested lists."""
    kind = {"FP32": "number", "BOOL": "boolean"}.get(facts.datatype, "integer")
    array: dict[str, Any] = {"type": kind}
    for size in reversed(facts.shape[1:]):
        array = {"type": "array", "items": array, "minItems": size, "maxItems": size}
    return array


def _named(model: ServedModel) -> dict[str, Any]:
    """Return the schema of one sample by the names of its inputs; images are in base64."""
    values: dict[str, Any] = {}
    for spec, facts in zip(model.signature.inputs, model.inputs, strict=True):
        values[spec.name] = {"type": "string", "format": "byte"} if spec.preprocess is not None else _array(facts)
        if spec.vocabulary is not None:
            values[spec.name]["description"] = f"whole numbers from 0 to {spec.vocabulary - 1}"
    needed = tuple(each.name for each in model.signature.inputs if each.default is None)
    return {**_object(needed, **values), "additionalProperties": False}


def _schemas(model: ServedModel) -> dict[str, Any]:
    text, number, whole, true_false = ({"type": name} for name in ("string", "number", "integer", "boolean"))
    tensor = _object(name=text, datatype=text, shape={"type": "array", "items": whole})
    top = _object(label=text, index=whole, probability=number)
    found = {"type": "array", "items": _object(top={"type": "array", "items": top})}
    timing = _object(queue=number, prepare=number, compute=number, batch=whole)
    array = _array(model.input)
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
        "Images": {
            "type": "object",
            "properties": {"images": {"type": "array", "items": {"type": "string", "format": "byte"}, "minItems": 1}},
            "required": ["images"],
            "additionalProperties": False,
        },
        "Arrays": {
            "type": "object",
            "properties": {"inputs": {"type": "array", "items": array, "minItems": 1}},
            "required": ["inputs"],
            "additionalProperties": False,
        },
        "Named": _object(inputs={"type": "array", "minItems": 1, "items": _named(model)}),
        "Predictions": _object(
            ("model", "version", "timing_ms"), model=text, version=text, predictions=found, timing_ms=timing,
            outputs={"type": "array", "items": {"type": "object"}},
        ),
        "InferRequest": _object(
            ("inputs",), id=text, parameters={"type": "object"},
            inputs={"type": "array", "minItems": 1, "items": {
                "type": "object",
                "properties": {
                    "name": {"enum": [each.name for each in model.inputs]},
                    "datatype": {"enum": sorted({"UINT8", "FP32", "BYTES", *(each.datatype for each in model.inputs)})},
                    "shape": {"type": "array", "items": whole}, "data": {"type": "array"},
                    "parameters": {"type": "object"},
                },
                "required": ["name", "datatype", "shape"],
            }},
            outputs={"type": "array", "items": {
                "type": "object", "required": ["name"],
                "properties": {
                    "name": {"enum": [each.name for each in model.outputs_facts]}, "parameters": {"type": "object"},
                },
            }},
        ),
        "InferResponse": _object(
            ("model_name", "model_version", "outputs"), model_name=text, model_version=text, id=text,
            outputs={"type": "array", "items": {"type": "object"}},
        ),
    }  # fmt: skip
