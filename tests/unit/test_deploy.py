"""``cpupack deploy``: manifests that Kubernetes and KServe know every field of, and what they would refuse, refused."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cpupack.cli import main
from cpupack.deploy import DeployOptions, deploy
from cpupack.errors import CpupackError, UsageError
from cpupack.runtime.capacity.planning import MAX_UTILISATION
from cpupack.stages.package import build_wheel, finish, stage_project
from helpers.build_facts import PLAN
from helpers.containerfiles import complaints, needs_hadolint
from helpers.kubernetes_schemas import VERSIONS, validate
from helpers.tiny_wheel import TinyWheel

KINDS = {
    "k8s": ["Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"],
    "kserve": ["ServingRuntime", "InferenceService", "PodDisruptionBudget"],
}

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tiny: TinyWheel, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return a function that builds a wheel: with the plan 2 x 1 threads of ``PLAN``, or without one."""

    def wheel(plan: Any = PLAN, **contents: Any) -> Path:
        directory = tmp_path_factory.mktemp("deploy")
        staged = stage_project(tiny.contents(**contents), directory / "project")
        if plan is not None:
            staged = finish(staged, plan, {"plan": {"rows": plan.rows}})
        return build_wheel(staged, directory / "dist").path

    return wheel


@pytest.fixture(scope="module")
def tuned(make: Make) -> Path:
    return make()


@pytest.fixture(scope="module")
def untuned(make: Make) -> Path:
    return make(None)


def pod_of(objects: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    spec = objects[0]["spec"]
    found: dict[str, Any] = spec["template"]["spec"] if "template" in spec else spec
    return found


def options_of(container: dict[str, Any]) -> dict[str, str]:
    words = container["args"]
    return dict(zip(words[::2], words[1::2], strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_replicas": 3, "max_replicas": 3},
        {
            "name": "a", "namespace": "prod", "image": "registry.example.org:5000/team/a:1@sha256:" + "0" * 64,
            "pull_secret": "pull", "cpus": 1, "memory": "1Gi", "max_latency_ms": 50.0, "grpc_port": 8081,
            "features": "require", "node_selector": {"pool": "cpu", "example.org/x": ""},
            "serve_arguments": ("--shed-status", "503"),
        },
    ],
)  # fmt: skip
def test_the_schemas_know_every_field(tuned: Path, tmp_path: Path, kind: Any, options: dict[str, Any]) -> None:
    done = deploy(tuned, tmp_path / "out", DeployOptions(kind, **options))
    written = list(yaml.safe_load_all((tmp_path / "out" / f"{kind}.yaml").read_text("utf-8")))
    assert written == list(done.objects)
    fixed = options.get("min_replicas") == options.get("max_replicas", 10)
    assert [each["kind"] for each in written] == [
        each for each in KINDS[kind] if not (fixed and each == "HorizontalPodAutoscaler")
    ]
    for each in written:
        assert each["metadata"].get("namespace") == options.get("namespace")
        for version in VERSIONS:
            validate(each, version)


@pytest.mark.parametrize("kind", KINDS)
def test_the_validator_sees_a_wrong_field(tuned: Path, tmp_path: Path, kind: Any) -> None:
    """Of each kind and of the pod inside: else the test above could not fail."""
    objects = deploy(tuned, tmp_path / "out", DeployOptions(kind)).objects
    for each in objects:
        wrong = copy.deepcopy(each)
        wrong["spec"]["replica"] = 2
        with pytest.raises(jsonschema.ValidationError):
            validate(wrong, VERSIONS[0])
    wrong = copy.deepcopy(objects[0])
    pod_of((wrong,))["containers"][0]["readinessProbe"]["httpGet"]["port"] = [8080]
    with pytest.raises(jsonschema.ValidationError):
        validate(wrong, VERSIONS[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_replica_has_the_whole_cpus_of_the_plan(tuned: Path, tmp_path: Path, kind: Any) -> None:
    """``PLAN`` is two instances of one thread with batches of 8."""
    container = pod_of(deploy(tuned, tmp_path / "out", DeployOptions(kind)).objects)["containers"][0]
    resources = container["resources"]
    assert resources["requests"] == resources["limits"]
    assert resources["limits"]["cpu"] == "2"
    options = options_of(container)
    assert (options["--threads"], options["--instances"], options["--batch-size"]) == ("1", "2", "8")
    assert "--max-latency-ms" not in options


def test_cpus_of_a_replica_change_the_instances(tuned: Path, untuned: Path, tmp_path: Path) -> None:
    done = deploy(tuned, tmp_path / "a", DeployOptions("k8s", cpus=3))
    assert options_of(pod_of(done.objects)["containers"][0])["--instances"] == "3"
    done = deploy(untuned, tmp_path / "b", DeployOptions("k8s", cpus=3))
    container = pod_of(done.objects)["containers"][0]
    assert container["resources"]["limits"]["cpu"] == "3"
    assert "--threads" not in options_of(container)  # the server asks its control group


def test_a_promise_takes_the_layout_that_carries_most_within_it(tuned: Path, tmp_path: Path) -> None:
    """Two instances do 8004 samples a second in batches of 8, of which the plan uses a share."""
    done = deploy(tuned, tmp_path / "out", DeployOptions("k8s", max_latency_ms=100.0))
    assert done.shape.carries_per_s == pytest.approx(MAX_UTILISATION * 8004.0, rel=0.02)
    assert options_of(pod_of(done.objects)["containers"][0])["--max-latency-ms"] == "100"
    assert done.warnings == ()


def test_a_promise_of_an_untuned_wheel_is_left_to_the_server(untuned: Path, tmp_path: Path) -> None:
    done = deploy(untuned, tmp_path / "out", DeployOptions("k8s", cpus=2, max_latency_ms=0.01))
    assert "is not checked here" in done.warnings[0]


@pytest.mark.parametrize("kind", KINDS)
def test_pods_are_neither_root_nor_able_to_write(tuned: Path, tmp_path: Path, kind: Any) -> None:
    objects = deploy(tuned, tmp_path / "out", DeployOptions(kind)).objects
    pod = pod_of(objects)
    container = pod["containers"][0]
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"]
    assert context["runAsNonRoot"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert {volume["name"] for volume in pod["volumes"]} == {mounted["/tmp"]}
    # What the runner keeps (the table of `tune`) goes there.
    assert {each["name"]: each["value"] for each in container["env"]}["XDG_CACHE_HOME"] == "/tmp"
    security = (pod if kind == "k8s" else objects[1]["spec"]["predictor"])["securityContext"]
    assert f"--uid {security['runAsUser']}" in (tmp_path / "out/Containerfile").read_text("utf-8")


def test_the_probes_are_addresses_that_the_server_has(tuned: Path, tmp_path: Path) -> None:
    """The reference lists the server's addresses, and tests of the server ask each of them."""
    container = pod_of(deploy(tuned, tmp_path / "out", DeployOptions("k8s")).objects)["containers"][0]
    assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
    for probe in ("readinessProbe", "startupProbe"):
        assert container[probe]["httpGet"]["path"] == "/v2/health/ready"
    assert {port["containerPort"] for port in container["ports"]} == {int(options_of(container)["--port"])}


def test_a_pod_has_the_time_to_drain(tuned: Path, tmp_path: Path) -> None:
    options = DeployOptions("k8s", serve_arguments=("--drain", "100", "--grace=7"))
    objects = deploy(tuned, tmp_path / "out", options).objects
    assert pod_of(objects)["terminationGracePeriodSeconds"] > 107


@pytest.mark.parametrize(("cpu", "arch"), [("x86_64", "amd64"), ("aarch64", "arm64")])
def test_nodes_are_of_the_wheels_family(make: Make, tmp_path: Path, cpu: str, arch: str) -> None:
    wheel = make(None, cpu=cpu)
    pod = pod_of(deploy(wheel, tmp_path / "a", DeployOptions("k8s", cpus=1)).objects)
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux", "kubernetes.io/arch": arch}
    other = {"kubernetes.io/arch": "arm64" if arch == "amd64" else "amd64"}
    with pytest.raises(UsageError, match=f"the wheel is for {cpu}"):
        deploy(wheel, tmp_path / "b", DeployOptions("k8s", cpus=1, node_selector=other))
    assert not (tmp_path / "b").exists()


def test_labels_of_cpu_features_are_wished_for_or_required(tuned: Path, tmp_path: Path) -> None:
    label = "feature.node.kubernetes.io/cpu-cpuid.AVX2"
    found = {}
    for features in ("prefer", "require", "ignore"):
        options = DeployOptions("k8s", features=features)  # type: ignore[arg-type]  # one of the three
        found[features] = pod_of(deploy(tuned, tmp_path / features, options).objects).get("affinity")
    assert found["ignore"] is None
    for features, start in (("prefer", "preferred"), ("require", "required")):
        ((key, terms),) = found[features]["nodeAffinity"].items()
        assert key.startswith(start)
        assert label in json.dumps(terms)


def test_the_directory_builds_the_image(tuned: Path, tmp_path: Path) -> None:
    done = deploy(tuned, tmp_path / "out", DeployOptions("k8s", port=9000))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(done.files)
    assert (tmp_path / "out" / tuned.name).read_bytes() == tuned.read_bytes()
    text = (tmp_path / "out" / "Containerfile").read_text("utf-8")
    assert "COPY *.whl" in text
    assert "EXPOSE 9000" in text


@needs_hadolint
@pytest.mark.parametrize("kind", ["k8s", "kserve"])
def test_the_containerfile_pleases_hadolint(tuned: Path, tmp_path: Path, kind: str) -> None:
    deploy(tuned, tmp_path / "out", DeployOptions(kind, port=9000))
    assert complaints(tmp_path / "out" / "Containerfile") == ""


def test_names_come_from_the_package_as_dns_writes_them(make: Make, tmp_path: Path) -> None:
    wheel = make(None, name="My_Model.INT8", version="1.0.0", random_weights=True)
    done = deploy(wheel, tmp_path / "out", DeployOptions("k8s", cpus=1))
    assert (done.name, done.image) == ("my-model-int8", "my-model-int8:1.0.0-random")
    assert "random weights" in done.warnings[0]
    assert "cpupack/random-weights" in done.objects[0]["metadata"]["annotations"]
    for each in done.objects:
        validate(each, VERSIONS[-1])


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": "My_Name"}, "--name 'My_Name' is no name of DNS"),
    ({"name": "1st"}, "a letter first"),
    ({"name": "a" * 64}, "63 at most"),
    ({"kind": "kserve", "name": "a" * 54}, "53 at most"),
    ({"name": "a\n"}, "is no name of DNS"),
    ({"namespace": "a.b"}, "--namespace 'a.b'"),
    ({"pull_secret": "A"}, "--pull-secret 'A'"),
    ({"image": "Team/Name"}, "--image 'Team/Name'"),
    ({"image": "a b"}, "--image 'a b'"),
    ({"min_replicas": 0}, "--min-replicas 0"),
    ({"min_replicas": 3, "max_replicas": 2}, "--max-replicas 2: expected 3"),
    ({"cpus": 0}, "--cpus 0"),
    ({"memory": "512"}, "--memory '512'"),
    ({"memory": "0.5Gi"}, "--memory '0.5Gi'"),
    ({"port": 80}, "--port 80: expected 1024"),
    ({"grpc_port": 70000}, "--grpc-port 70000"),
    ({"grpc_port": 8080}, "HTTP has this port"),
    ({"target_utilisation": 101}, "--target-utilisation 101"),
    ({"node_selector": {"a b": "c"}}, "--node-selector a b=c"),
    ({"max_latency_ms": float("nan")}, "--max-latency-ms nan"),
    ({"max_latency_ms": 2.0}, "--max-latency-ms 2 cannot be held: one request takes 3.25 ms"),
    ({"max_latency_ms": 50.0, "cpus": 3}, "no layout of so many CPUs, 2 at most"),
    ({"serve_arguments": ("--port", "1")}, "--port, after --, cannot be given there"),
    ({"serve_arguments": ("--emit=systemd",)}, "--emit, after --, cannot be given there"),
    ({"serve_arguments": ("--nonsense",)}, "unrecognized arguments: --nonsense"),
    ({"serve_arguments": ("--drain", "-1")}, "--drain -1"),
]


@pytest.mark.parametrize(("options", "said"), WRONG)
def test_what_cannot_work_is_refused_and_leaves_nothing(
    tuned: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    """The fastest call of ``PLAN``'s rows has a p99 of 2.25 ms; a millisecond is allowed for HTTP."""
    with pytest.raises(UsageError) as error:
        deploy(tuned, tmp_path / "out", DeployOptions(**{"kind": "k8s", **options}))
    assert said in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_untuned_wheel_needs_the_cpus(untuned: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing says how many CPUs"):
        deploy(untuned, tmp_path / "out", DeployOptions("k8s"))


def test_threads_of_the_plan_divide_the_cpus(make: Make, tmp_path: Path) -> None:
    wheel = make(dataclasses.replace(PLAN, threads=2, instances=1))
    with pytest.raises(UsageError, match="an instance of the wheel's plan has 2 threads"):
        deploy(wheel, tmp_path / "out", DeployOptions("k8s", cpus=3))


def test_what_is_no_wheel_is_refused(tuned: Path, tmp_path: Path) -> None:
    note = tmp_path / "note.whl"
    note.write_text("no wheel")
    foreign = tmp_path / "foreign-1-py3-none-any.whl"
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("foreign-1.dist-info/WHEEL", "")
    damaged = tmp_path / "damaged.whl"
    damaged.write_bytes(tuned.read_bytes()[:-100])
    for path in (note, foreign, damaged, tmp_path / "absent.whl", tmp_path):
        with pytest.raises(UsageError, match=path.name):
            deploy(path, tmp_path / "out", DeployOptions("k8s"))
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_unless_asked(tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    deploy(tuned, out, DeployOptions("k8s"))
    before = (out / "k8s.yaml").read_bytes()
    with pytest.raises(UsageError, match=r"k8s\.yaml.* already"):
        deploy(tuned, out, DeployOptions("k8s", name="other"))
    assert (out / "k8s.yaml").read_bytes() == before
    deploy(tuned, out, DeployOptions("k8s", name="other"), overwrite=True)
    assert b'"other"' in (out / "k8s.yaml").read_bytes()
    shutil.copy(tuned, out / "tiny_int8-0.9-py3-none-any.whl")
    with pytest.raises(UsageError, match=r"another wheel, tiny_int8-0\.9"):
        deploy(tuned, out, DeployOptions("k8s"), overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_directory_that_cannot_be(tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CpupackError, match="cannot write"):
        deploy(tuned, tmp_path / "file", DeployOptions("k8s"))
    with pytest.raises(CpupackError, match="cannot write"):
        deploy(tuned, tmp_path / "file" / "out", DeployOptions("k8s"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_command(tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    out = tmp_path / "out"
    arguments = ["deploy", kind, str(tuned), "--out", str(out), "--max-latency-ms", "50", "--node-selector", "a=b"]
    with pytest.raises(SystemExit) as done:
        main([*arguments, "--", "--shed-status", "503"])
    captured = capsys.readouterr()
    assert (done.value.code, captured.out) == (0, f"{out}\n")
    assert "a replica: 2 CPUs" in captured.err
    with pytest.raises(SystemExit) as done:
        main([*arguments, "--json", "--overwrite"])
    facts = json.loads(capsys.readouterr().out)
    assert (done.value.code, facts["shape"]["cpus"]) == (0, 2)
    for wrong, said in (
        (["--cpus", "1.5"], "--cpus 1.5: expected a whole number"),
        (["--cpus", "500m"], "--cpus 500m"),
        (["--node-selector", "a"], "expected KEY=VALUE"),
        (["surplus"], "unrecognized arguments: surplus"),
        (["--min-replicas", "x"], "not a valid integer"),
    ):
        with pytest.raises(SystemExit) as done:
            main([*arguments, "--overwrite", *wrong])
        assert (done.value.code, said in capsys.readouterr().err) == (2, True)
