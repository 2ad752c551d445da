"""The page at ``/`` and that at ``/docs``: files of this folder, and the figures that the page draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..open_sizes import OpenSizes
from ..tensor_spec import TensorSpec, ids_text
from .messages import HttpAnswer
from .model import ServedModel
from .service import Service

STATIC = Path(__file__).parent / "static"
_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
}
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)
_SIDE = 64
"""Of what the page makes up for images of any size."""
_PATHS = {"/": "index.html", "/docs": "docs.html"}


def assets() -> dict[str, HttpAnswer]:
    """Return the answer for the path of each file. Nothing in them comes from the network."""
    paths = {path: STATIC / name for path, name in _PATHS.items()}
    paths |= {f"/static/{file.name}": file for file in sorted(STATIC.iterdir()) if file.suffix in (".css", ".js")}
    return {path: HttpAnswer(200, file.read_bytes(), _TYPES[file.suffix], _HEADERS) for path, file in paths.items()}


def status(service: Service) -> dict[str, Any]:
    """Return the figures of this moment, for the page's charts: counters, whose differences the page draws."""
    metrics, executor = service.metrics, service.executor
    model, scheduler = executor.model, executor.scheduler
    manifest, runner = model.runner.manifest, model.runner
    counts, total_s = metrics.duration.snapshot()
    return {
        "state": service.state.value,
        "model": {
            "name": model.name,
            "version": model.version,
            "description": manifest.model.get("description", ""),
            "random_weights": manifest.random_weights,
            "kind": model.kind,
            "skeleton": (manifest.task or {}).get("skeleton", ()),
            "takes_images": model.takes_images,
            "takes_text": model.takes_text,
            "classifies": model.classifies,
            "named": model.named,
            "inputs": _inputs(model),
            "outputs": [each.to_dict() for each in model.outputs_facts],
            "sizes": None if runner.sizes is None else runner.sizes.text(),
            "parameters": manifest.model.get("parameters"),
            "int8_bytes": manifest.model.get("int8_bytes"),
            "engine": manifest.target.get("engine"),
            "isa": manifest.target.get("isa"),
            "accuracy": {key: manifest.accuracy.get(key) for key in ("sqnr_db", "agreement", "top1_int8", "top1_fp32")},
        },
        "setting": {
            "threads": runner.plan.threads, "instances": runner.plan.instances, "batch_size": model.batch_size,
            "promise_ms": None if service.promise_s is None else 1000.0 * service.promise_s,
        },
        "now": {
            "waiting": scheduler.waiting, "running": scheduler.running, "drift": scheduler.times.correction,
        },
        "counters": {
            "answered": sum(counts), "samples": metrics.samples.total(), "refused": metrics.refused.total(),
            "kept": metrics.kept.total(), "broken": metrics.broken.total(), "duration_s": total_s,
        },
        "latency": {"bounds_s": list(metrics.duration.bounds), "counts": counts},
    }  # fmt: skip


def _inputs(model: ServedModel) -> list[dict[str, Any]]:
    """Return what the page's fields need to know of each input. ``sample`` is the shape of one that it makes up."""
    sizes = model.runner.sizes
    return [
        facts.to_dict()
        | {
            "sample": _sample(facts.shape[1:], spec, sizes, number if sizes is not None and sizes.inputs else None),
            "image": spec.preprocess is not None, "default": spec.default, "ids": ids_text(spec),
            "vocabulary": spec.vocabulary, "vocabularies": list(spec.vocabularies), "least": spec.least,
            "state": spec.state,
        }
        for number, (facts, spec) in enumerate(zip(model.inputs, model.signature.inputs, strict=True))
    ]  # fmt: skip


def _sample(shape: tuple[int, ...], spec: TensorSpec, sizes: OpenSizes | None, number: int | None) -> list[int]:
    """Return the shape of a sample that the page makes up. ``shape`` is that of one as clients send it."""
    if sizes is None:
        return list(shape)
    bounds = zip(sizes.least, sizes.most, sizes.multiple, strict=True)
    size = tuple(low + (min(max(_SIDE, low), high) - low) // step * step for low, high, step in bounds)
    found = sizes.shape_at(spec.shape, size) if number is None else sizes.input_at(number, size)
    return [*found[1:], found[0]] if spec.pixel_shape else list(found)
