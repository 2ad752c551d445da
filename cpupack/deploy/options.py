"""What the user chooses about a deployment, and which of it a cluster would refuse."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from cpupack.errors import UsageError

Kind = Literal["k8s", "kserve"]
Features = Literal["prefer", "require", "ignore"]

_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_MOST_LABEL = {"k8s": 63, "kserve": 53}
"""KServe appends "-predictor" to a name, and the whole must be a label of DNS."""
_IMAGE = re.compile(
    r"(?:[a-zA-Z0-9](?:[-a-zA-Z0-9.]*[a-zA-Z0-9])?(?::\d+)?/)?"  # a registry
    r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][-A-Za-z0-9_.]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
_MEMORY = re.compile(r"[1-9]\d*(Mi|Gi)")
_KEY = re.compile(rf"(?:{_SUBDOMAIN.pattern}/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?")
_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
MOST_REPLICAS = 10_000
MOST_CPUS = 1024


@dataclass(frozen=True)
class DeployOptions:
    """How a wheel is deployed. None leaves a value to the wheel. Raises UsageError for a value that cannot work.

    ``cpus`` are those of a replica, ``target_utilisation`` is the share of them in percent at which replicas are
    added. ``features`` says what the labels of Node Feature Discovery are for. ``serve_arguments`` are further
    options of ``NAME serve``.
    """

    kind: Kind
    name: str | None = None
    namespace: str | None = None
    image: str | None = None
    pull_secret: str | None = None
    min_replicas: int = 2
    max_replicas: int = 10
    cpus: int | None = None
    memory: str | None = None
    max_latency_ms: float | None = None
    port: int = 8080
    grpc_port: int | None = None
    target_utilisation: int = 70
    features: Features = "prefer"
    node_selector: dict[str, str] = field(default_factory=dict)
    serve_arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name("--name", self.name, _MOST_LABEL[self.kind])
        for option, value in (("--namespace", self.namespace), ("--pull-secret", self.pull_secret)):
            if value is not None and (len(value) > 63 or not _SUBDOMAIN.fullmatch(value) or "." in value):
                raise UsageError(
                    f"{option} {value!r} is no name of DNS (RFC 1123): small letters, digits and -, 63 at most"
                )
        if self.image is not None and not _IMAGE.fullmatch(self.image):
            raise UsageError(
                f"--image {self.image!r} is no reference to an image",
                hint="such as registry.example.org/team/name:1.0.0; the name has small letters only",
            )
        if not 1 <= self.min_replicas <= MOST_REPLICAS:
            raise UsageError(f"--min-replicas {self.min_replicas}: expected 1 to {MOST_REPLICAS}")
        if not self.min_replicas <= self.max_replicas <= MOST_REPLICAS:
            raise UsageError(
                f"--max-replicas {self.max_replicas}: expected {self.min_replicas} (--min-replicas) to {MOST_REPLICAS}"
            )
        if self.cpus is not None and not 1 <= self.cpus <= MOST_CPUS:
            raise UsageError(f"--cpus {self.cpus}: expected 1 to {MOST_CPUS}")
        if self.memory is not None and not _MEMORY.fullmatch(self.memory):
            raise UsageError(f"--memory {self.memory!r}: expected a whole number of Mi or Gi, such as 512Mi")
        if self.max_latency_ms is not None and not 0 < self.max_latency_ms < math.inf:
            raise UsageError(f"--max-latency-ms {self.max_latency_ms}: expected milliseconds above 0")
        if not 10 <= self.target_utilisation <= 100:
            raise UsageError(f"--target-utilisation {self.target_utilisation}: expected percent, 10 to 100")
        for option, port in (("--port", self.port), ("--grpc-port", self.grpc_port)):
            if port is not None and not 1024 <= port <= 65535:
                raise UsageError(
                    f"{option} {port}: expected 1024 to 65535; the server is not root, which lower ports need"
                )
        for key, value in self.node_selector.items():
            if not _KEY.fullmatch(key) or not _VALUE.fullmatch(value):
                raise UsageError(f"--node-selector {key}={value} is no label of Kubernetes")


def check_name(option: str, name: str, most: int) -> None:
    """Raise UsageError unless a Service, a Deployment and a label may have the name: RFC 1123, and a letter first."""
    if len(name) > most or not _LABEL.fullmatch(name):
        raise UsageError(
            f"{option} {name!r} is no name of DNS (RFC 1123): small letters, digits and -, a letter first, no - at the "
            f"end, {most} at most",
            hint="choose another --name",
        )


def name_for(options: DeployOptions, package: str) -> str:
    """Return the name of the objects: the user's, or the package's as DNS writes it."""
    if options.name is not None:
        return options.name
    name = re.sub(r"[-_.]+", "-", package).lower()
    check_name("the package's name", name, _MOST_LABEL[options.kind])
    return name
