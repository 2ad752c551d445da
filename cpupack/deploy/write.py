"""Renders the files of a deployment, reads them back, and writes them with the wheel into a directory."""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from cpupack.deploy.nodes import feature_labels, node_selector
from cpupack.deploy.options import DeployOptions, name_for
from cpupack.deploy.shape import Shape, choose_shape
from cpupack.errors import PackagingError, UsageError
from cpupack.runtime.capacity.profiles import complete
from cpupack.runtime.errors import InputError
from cpupack.runtime.manifest import Manifest
from cpupack.runtime.serve import emit
from cpupack.runtime.serve import options as serving
from cpupack.scratch import sweep_parts
from cpupack.templates import render
from cpupack.wheel.build_page import WheelReport, read_report

USER = 10001
"""The user of the image (``serve --emit containerfile``)."""
GRACE_S = 10
"""Seconds that a stopping replica still serves: until then every node's rules have forgotten it."""
_STOP_MARGIN_S = 10
_START_S = 300
_MEBIBYTE = 1 << 20
_PYTHON_MIB, _TORCH_MIB, _STEP_MIB = 256, 1024, 64
_OWN = (
    "--host", "--port", "--grpc-port", "--max-latency-ms", "--threads", "--instances", "--batch-size", "--plan",
    "--emit", "--token-file", "--tls-cert", "--tls-key",
)  # fmt: skip


@dataclass(frozen=True)
class Deployment:
    """What was written into ``directory``: the manifests, the Containerfile and the wheel.

    ``objects`` are the manifests as they were read back. ``warnings`` are sentences for people.
    """

    directory: Path
    name: str
    image: str
    shape: Shape
    memory: str
    objects: tuple[dict[str, Any], ...]
    files: tuple[str, ...]
    warnings: tuple[str, ...]


def deploy(wheel: Path, directory: Path, options: DeployOptions, *, overwrite: bool = False) -> Deployment:
    """Write the files that put ``wheel`` on Kubernetes.

    Raises UsageError for a file that is not a wheel as cpupack built it, for options that cannot work with it, and for
    files that exist, unless they may be overwritten. PackagingError where a file cannot be written.
    """
    report = read_report(wheel)
    manifest = report.inspection.manifest
    name = name_for(options, manifest.name)
    rows = (report.facts.get("plan") or {}).get("rows") or []
    shape = choose_shape(manifest, complete(rows), options.cpus, options.max_latency_ms)
    words = _arguments(options, shape)
    served, args = _parse(words, options)
    memory = options.memory or f"{_memory_mib(report, served)}Mi"
    image = options.image or f"{name}:{manifest.version.replace('+', '-')}"
    values = _values(report, options, served, name, image, memory, shape, words)
    files = {
        f"{options.kind}.yaml": render(f"deploy/{options.kind}.yaml.j2", **values),
        "Containerfile": emit.emit("containerfile", manifest, args),
    }
    objects = _read_back(files[f"{options.kind}.yaml"], name, [*words, *options.serve_arguments])
    _write(directory, wheel, files, overwrite=overwrite)
    return Deployment(
        directory, name, image, shape, memory, objects, (*files, wheel.name), _warnings(manifest, shape, options)
    )


def _arguments(options: DeployOptions, shape: Shape) -> list[str]:
    given = {
        "host": "0.0.0.0",  # noqa: S104 - the container's own network; the Service decides who reaches it
        "port": options.port,
        "grpc-port": options.grpc_port,
        "max-latency-ms": None if options.max_latency_ms is None else f"{options.max_latency_ms:g}",
        "threads": shape.threads,
        "instances": shape.instances,
        "batch-size": shape.batch_size,
    }
    words = [word for key, value in given.items() if value is not None for word in (f"--{key}", str(value))]
    if "--grace" not in _names(options.serve_arguments):
        words += ["--grace", str(GRACE_S)]
    return words


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"options of the server, after --: {message}")


def _parse(words: list[str], options: DeployOptions) -> tuple[serving.ServeOptions, argparse.Namespace]:
    """Check the server's options with its own parser. Raises UsageError."""
    for word in _names(options.serve_arguments):
        if word in _OWN:
            raise UsageError(
                f"{word}, after --, cannot be given there",
                hint="deploy has an option of this name, or mount the file and add the option to the manifest",
            )
    parser = _Parser(allow_abbrev=False, add_help=False)
    serving.add_arguments(parser)
    args = parser.parse_args([*words, *options.serve_arguments])
    try:
        return serving.from_arguments(args), args
    except InputError as error:
        raise UsageError(f"options of the server: {error}") from error


def _names(words: tuple[str, ...]) -> list[str]:
    return [word.partition("=")[0] for word in words if word.startswith("--")]


def _memory_mib(report: WheelReport, served: serving.ServeOptions) -> int:
    """Return what a replica may need: Python, the program and its activations, bodies that wait, and torch."""
    manifest = report.inspection.manifest
    model_bytes = sum(entry.bytes for name, entry in manifest.files.items() if name.endswith(".pt"))
    needs = _PYTHON_MIB + 3 * model_bytes / _MEBIBYTE + served.max_queue_bytes / _MEBIBYTE
    if manifest.torch_text != "not needed":
        needs += _TORCH_MIB
    return -(-int(needs) // _STEP_MIB) * _STEP_MIB


def _values(
    report: WheelReport,
    options: DeployOptions,
    served: serving.ServeOptions,
    name: str,
    image: str,
    memory: str,
    shape: Shape,
    words: list[str],
) -> dict[str, Any]:
    """Return what the templates show."""
    manifest = report.inspection.manifest
    kserve = options.kind == "kserve"
    selector = {"app.kubernetes.io/name": manifest.name.lower()[:63].rstrip("-_."), "app.kubernetes.io/instance": name}
    labels = {
        **selector,
        "app.kubernetes.io/version": manifest.version.replace("+", "_")[:63],
        "app.kubernetes.io/managed-by": "cpupack",
    }
    ports = [{"name": "http1" if kserve else "http", "number": options.port, "service": 80}]
    if options.grpc_port is not None:
        ports.append({"name": "h2c" if kserve else "grpc", "number": options.grpc_port, "service": options.grpc_port})
    annotations = {"cpupack/shape": shape.why, "cpupack/wheel-sha256": report.sha256}
    if manifest.random_weights:
        annotations["cpupack/random-weights"] = "true: the predictions mean nothing"
    return {
        "wheel": report.inspection.path.name,
        "name": name,
        "namespace": options.namespace,
        "image": image,
        "pull_policy": "IfNotPresent",
        "pull_secret": options.pull_secret,
        "command": manifest.name,
        "arguments": [*words, *options.serve_arguments],
        "ports": ports,
        "http_port": options.port,
        "cpus": shape.cpus,
        "memory": memory,
        "start_s": _START_S,
        "stop_s": round(served.grace_s + served.drain_s) + _STOP_MARGIN_S,
        "user": USER,
        "node_selector": node_selector(manifest, options.node_selector),
        "feature_labels": [] if options.features == "ignore" else feature_labels(manifest),
        "features": options.features,
        "labels": labels,
        "selector": {"serving.kserve.io/inferenceservice": name} if kserve else selector,
        "annotations": annotations,
        "replicas": {"min": options.min_replicas, "max": options.max_replicas},
        "autoscaled": options.min_replicas < options.max_replicas,
        "target_utilisation": options.target_utilisation,
        "model_format": f"cpupack-{name}",
        "protocols": ["v2"] if options.grpc_port is None else ["v2", "grpc-v2"],
        # Standard in KServe 0.16 and later, which still knows this name.
        "mode": "RawDeployment",
    }


def _read_back(text: str, name: str, arguments: list[str]) -> tuple[dict[str, Any], ...]:
    """Parse the manifests, and check what is easily lost between a template and a cluster."""
    import yaml

    try:
        objects = tuple(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise PackagingError(f"the manifests that cpupack rendered are no YAML: {error}") from error
    for each in objects:
        if not isinstance(each, dict) or each.get("metadata", {}).get("name") != name:
            raise PackagingError(f"a manifest that cpupack rendered is not of {name}: {each!r}")
    spec = objects[0]["spec"]
    (container,) = (spec["template"]["spec"] if "template" in spec else spec)["containers"]
    if container["args"] != arguments:
        raise PackagingError(f"the manifests start the server with {container['args']}, not with {arguments}")
    return objects


def _warnings(manifest: Manifest, shape: Shape, options: DeployOptions) -> tuple[str, ...]:
    found = []
    if manifest.random_weights:
        found.append("the wheel has random weights; its predictions mean nothing")
    if options.max_latency_ms is not None and shape.carries_per_s is None:
        found.append(
            f"nothing was measured at the build, so --max-latency-ms {options.max_latency_ms:g} is not checked here; "
            "the server checks it at its start, and does not start where it cannot be held"
        )
    return tuple(found)


def _write(directory: Path, wheel: Path, files: dict[str, str], *, overwrite: bool) -> None:
    """Write all files or none: into a directory beside it first, then each into its place."""
    part = directory.with_name(f".{directory.name}.{os.getpid()}.part")
    try:
        there = [name for name in (*files, wheel.name) if os.path.lexists(directory / name)]
        others = [path.name for path in directory.glob("*.whl") if path.name != wheel.name]
        if there and not overwrite:
            raise UsageError(
                f"{directory} has {', '.join(there)} already", hint="choose another --out, or give --overwrite"
            )
        if others:
            raise UsageError(
                f"{directory} has another wheel, {others[0]}, which the Containerfile would install too",
                hint="choose another --out, or move it away",
            )
        sweep_parts(directory)
        part.mkdir(parents=True)
        for name, text in files.items():
            (part / name).write_text(text, encoding="utf-8")
        shutil.copyfile(wheel, part / wheel.name)
        directory.mkdir(parents=True, exist_ok=True)
        for name in (*files, wheel.name):
            (part / name).replace(directory / name)
    except OSError as error:
        raise PackagingError(
            f"cannot write {directory}: {error.strerror or error}", hint="name another --out"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
