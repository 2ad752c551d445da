"""Validates objects by the published schemas of Kubernetes, and of KServe's two kinds.

kubernetes-validate carries the schemas of Kubernetes. Those of KServe are written down here from its CRDs of 2026,
``config/crd/full/serving.kserve.io_inferenceservices.yaml`` (v1beta1) and ``..._servingruntimes.yaml`` (v1alpha1): the
fields of a predictor and a runtime that KServe itself defines. What they take from a pod refers to the schemas of
Kubernetes.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

import jsonschema
import kubernetes_validate

VERSIONS = ("1.28", "1.31", "1.34")
_POD = "io.k8s.api.core.v1.PodSpec"
_CONTAINER = "io.k8s.api.core.v1.Container"
_STRING = {"type": "string"}
_STRINGS = {"type": "object", "additionalProperties": _STRING}
_INTEGER = {"type": "integer"}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }


def _kind(group: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    meta = _ref("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")
    return _object(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": group}, kind={"const": kind}, metadata=meta, spec=spec,
    )  # fmt: skip


def _from(definitions: dict[str, Any], name: str, *without: str) -> dict[str, Any]:
    return {key: value for key, value in definitions[name]["properties"].items() if key not in without}


def _kserve(definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of each kind of KServe."""
    pod = _from(definitions, _POD)
    model = _object(
        **_from(definitions, _CONTAINER),
        modelFormat=_object(("name",), name=_STRING, version=_STRING),
        runtime=_STRING, protocolVersion=_STRING, runtimeVersion=_STRING, storageUri=_STRING,
    )  # fmt: skip
    predictor = _object(
        **pod,
        minReplicas=_INTEGER, maxReplicas=_INTEGER, scaleTarget=_INTEGER, timeout=_INTEGER,
        containerConcurrency=_INTEGER, canaryTrafficPercent=_INTEGER,
        scaleMetric={"enum": ["cpu", "memory", "concurrency", "rps"]},
        scaleMetricType={"enum": ["Utilization", "Value", "AverageValue"]},
        deploymentStrategy=_ref("io.k8s.api.apps.v1.DeploymentStrategy"),
        labels=_STRINGS, annotations=_STRINGS, model=model,
    )  # fmt: skip
    taken = ("nodeSelector", "affinity", "tolerations", "volumes", "imagePullSecrets", "hostIPC", "schedulerName")
    runtime = _object(
        ("containers",),
        **{name: pod[name] for name in taken},
        containers={"type": "array", "items": _ref(_CONTAINER)},
        supportedModelFormats={
            "type": "array",
            "items": _object(
                ("name",), name=_STRING, version=_STRING, autoSelect={"type": "boolean"},
                priority={"type": "integer", "minimum": 1},
            ),
        },
        protocolVersions={"type": "array", "items": _STRING},
        multiModel={"type": "boolean"}, disabled={"type": "boolean"}, labels=_STRINGS, annotations=_STRINGS,
    )  # fmt: skip
    return {
        "InferenceService": _kind(
            "serving.kserve.io/v1beta1", "InferenceService", _object(("predictor",), predictor=predictor)
        ),
        "ServingRuntime": _kind("serving.kserve.io/v1alpha1", "ServingRuntime", runtime),
    }


@cache
def _definitions(version: str) -> dict[str, Any]:
    place = resources.files(kubernetes_validate).joinpath(
        f"kubernetes-json-schema/v{version}.0-local-strict/_definitions.json"
    )
    found: dict[str, Any] = json.loads(place.read_text("utf-8"))
    return found


def validate(manifest: dict[str, Any], version: str) -> None:
    """Raise ``jsonschema.ValidationError`` unless Kubernetes ``version`` (or KServe on it) knows every field."""
    if not manifest["apiVersion"].startswith("serving.kserve.io/"):
        kubernetes_validate.validate(manifest, version, strict=True)
        return
    definitions = _definitions(version)
    schema = {"$defs": definitions["$defs"], **_kserve(definitions["$defs"])[manifest["kind"]]}
    jsonschema.Draft202012Validator(schema).validate(manifest)
