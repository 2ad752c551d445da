"""``cpupack deploy k8s`` and ``cpupack deploy kserve``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cpupack.commands.options import JSON, WHEEL, Finite, Place
from cpupack.errors import UsageError

if TYPE_CHECKING:
    from cpupack.deploy.options import Kind


def _whole(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Return a whole number; the message says why parts of a CPU are refused."""
    try:
        return None if value is None else int(value)
    except ValueError:
        raise UsageError(
            f"--cpus {value}: expected a whole number",
            hint="each thread of the kernels needs a CPU of its own; with a part of one the system stops it",
        ) from None


_OPTIONS = (
    click.option("--name", metavar="NAME", help="Name of the objects. The default is the package's."),
    click.option("--namespace", metavar="NAME", help="Namespace of the objects. The default is kubectl's."),
    click.option(
        "--image", metavar="IMAGE", help="Where the image is pushed to and pulled from. The default is NAME:VERSION."
    ),
    click.option("--pull-secret", metavar="NAME", help="Secret to pull the image with."),
    click.option("--min-replicas", type=int, default=2, show_default=True, metavar="N"),
    click.option("--max-replicas", type=int, default=10, show_default=True, metavar="N"),
    click.option(
        "--cpus",
        callback=_whole,
        metavar="N",
        help="Whole CPUs of a replica. The default is what the wheel's plan uses.",
    ),
    click.option(
        "--memory", metavar="SIZE", help="Memory of a replica, e.g. 512Mi. The default is estimated from the wheel."
    ),
    click.option(
        "--max-latency-ms",
        type=Finite(min=0, min_open=True),
        metavar="MS",
        help="p99 of admitted requests. It must hold by the build's measurements, where there are any.",
    ),
    click.option("--port", type=int, default=8080, show_default=True, metavar="PORT", help="Port of HTTP in the pod."),
    click.option("--grpc-port", type=int, metavar="PORT", help="Port of gRPC. The default is no gRPC."),
    click.option(
        "--target-utilisation",
        type=int,
        default=70,
        show_default=True,
        metavar="PERCENT",
        help="Use of the CPUs at which replicas are added.",
    ),
    click.option(
        "--features",
        type=click.Choice(["prefer", "require", "ignore"]),
        default="prefer",
        show_default=True,
        help="What the CPU labels of Node Feature Discovery are for. `require` needs a cluster that has them.",
    ),
    click.option(
        "--node-selector", "selectors", multiple=True, metavar="KEY=VALUE", help="Label of nodes; repeatable."
    ),
    click.option(
        "--out",
        metavar="DIR",
        type=Place(),
        help="The directory to write. The default is NAME-VERSION-KIND beside the wheel.",
    ),
    click.option("--overwrite", is_flag=True, help="Write over files of an earlier run."),
    JSON,
)


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return WHEEL(click.argument("serve_arguments", nargs=-1, metavar="[-- SERVE_OPTION...]")(command))


@click.group(short_help="Write the files that put a wheel on Kubernetes.")
def deploy() -> None:
    """Write the files that put a wheel on Kubernetes: manifests, a Containerfile, and a copy of the wheel.

    Nothing is sent to a cluster.
    """


@deploy.command(short_help="A Deployment, a Service, an autoscaler and a disruption budget.")
@_with_options
def k8s(**given: Any) -> None:
    """Write a Deployment, a Service, a HorizontalPodAutoscaler and a PodDisruptionBudget for WHEEL.

    A replica has whole CPUs, as many as the wheel's plan uses; with --max-latency-ms as many as the layout that carries
    most within it. Options of `NAME serve` may follow after `--`. The last line of stdout is the directory.
    """
    _run("k8s", **given)


@deploy.command(short_help="An InferenceService with a ServingRuntime, for KServe.")
@_with_options
def kserve(**given: Any) -> None:
    """Write an InferenceService, its ServingRuntime and a PodDisruptionBudget for WHEEL.

    KServe makes the Deployment, the Service and the autoscaler from them. The model is in the image, so
    there is no storageUri. All options are those of `cpupack deploy k8s`.
    """
    _run("kserve", **given)


def _run(
    kind: Kind,
    wheel: Path,
    serve_arguments: tuple[str, ...],
    selectors: tuple[str, ...],
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    from cpupack.deploy import DeployOptions
    from cpupack.deploy import deploy as write
    from cpupack.wheel.foreign import facts_of

    labels = {}
    for text in selectors:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--node-selector {text}: expected KEY=VALUE")
        labels[key] = value
    chosen = DeployOptions(kind, node_selector=labels, serve_arguments=serve_arguments, **options)
    target = out or wheel.with_name("-".join([*wheel.name.split("-")[:2], kind]))
    with facts_of(wheel):
        done = write(wheel, target, chosen, overwrite=overwrite)
    for warning in done.warnings:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        facts = {
            "directory": str(done.directory),
            "name": done.name,
            "image": done.image,
            "memory": done.memory,
            "shape": asdict(done.shape),
            "files": list(done.files),
            "objects": list(done.objects),
            "warnings": list(done.warnings),
        }
        click.echo(json.dumps(facts, indent=2))
    else:
        plural = "" if done.shape.cpus == 1 else "s"
        click.echo(f"a replica: {done.shape.cpus} CPU{plural}, {done.memory}; {done.shape.why}", err=True)
        click.echo(done.directory)
