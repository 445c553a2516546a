"""The manifests for Kubernetes: KubeRay's schemas, and times against those of Ray and Serve.

Nothing is started.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import yaml

from serve.ingress import router
from stepwiser.config import RunConfig, load_config
from tests.support.paths import ROOT, SHARED_DATA

FILES = {path.stem: path for path in (ROOT / "cluster" / "kuberay").glob("*.yaml")}
CRDS = {"raycluster": "rayclusters", "rayjob": "rayjobs", "rayservice": "rayservices"}
STOP_S = 10.0
"""What a drained server has to end (docs/serving.md)."""


def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load(FILES[name].read_text())


def _cluster(name: str) -> dict[str, Any]:
    spec = _read(name)["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def _pods(name: str) -> dict[str, dict[str, Any]]:
    """The pod of the head and that of each group of workers."""
    cluster = _cluster(name)
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    groups["head"] = cluster["headGroupSpec"]
    return {group: found["template"]["spec"] for group, found in groups.items()}


def _strict(schema: Any) -> Any:
    """The schema with unknown keys refused, as `kubectl apply --validate=strict` does."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    closed = isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema
    if closed and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict["additionalProperties"] = False
    return strict


@pytest.fixture(scope="module")
def validator() -> Callable[[str], jsonschema.Draft202012Validator]:
    known: dict[str, jsonschema.Draft202012Validator] = {}

    def of(name: str) -> jsonschema.Draft202012Validator:
        crd = SHARED_DATA / "kuberay" / f"ray.io_{CRDS[name]}.yaml"
        if not crd.is_file():
            pytest.skip(f"needs KubeRay's CRD at {crd}")
        if name not in known:
            loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            versions = yaml.load(crd.read_text(), Loader=loader)["spec"]["versions"]
            (version,) = [one for one in versions if one["name"] == "v1"]
            schema = version["schema"]["openAPIV3Schema"]
            schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes checks it
            # `jsonschema.validate` would check the schema itself, which takes five seconds.
            known[name] = jsonschema.Draft202012Validator(_strict(schema))
        return known[name]

    return of


@pytest.mark.data
@pytest.mark.parametrize("name", CRDS)
def test_kuberay_accepts_it(name: str, validator: Any) -> None:
    assert set(FILES) == set(CRDS)
    validator(name).validate(_read(name))


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("rayjob", lambda spec: spec.update(entrypont="x")),
        ("rayjob", lambda spec: spec["rayClusterSpec"]["authOptions"].update(mode="tokn")),
        ("raycluster", lambda spec: spec["workerGroupSpecs"][0].update(minReplica=1)),
        ("raycluster", lambda spec: spec["workerGroupSpecs"][0].pop("template")),
        ("raycluster", lambda spec: spec["workerGroupSpecs"][0].update(labels={"a": 1})),
        ("rayservice", lambda spec: spec["upgradeStrategy"].update(typ="NewCluster")),
        ("rayservice", lambda spec: spec.pop("rayClusterConfig")),
    ],
)
def test_kuberay_refuses_what_is_misspelled(
    name: str, change: Callable[[Any], None], validator: Any
) -> None:
    manifest = copy.deepcopy(_read(name))
    change(manifest["spec"])
    if name == "rayservice" and "rayClusterConfig" not in manifest["spec"]:
        manifest["spec"]["rayClusterSpec"] = {}  # the name it has in a job
    with pytest.raises(jsonschema.ValidationError):
        validator(name).validate(manifest)


@pytest.mark.parametrize("name", CRDS)
def test_a_pod_has_longer_to_end_than_all_that_it_does_then(name: str) -> None:
    from ray._private.ray_constants import RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S

    for group, pod in _pods(name).items():
        (container,) = pod["containers"]
        set_to = {one["name"]: one["value"] for one in container["env"]}
        drain_s = float(set_to["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert drain_s > RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, "the default would do"
        assert pod["terminationGracePeriodSeconds"] > drain_s, group
        assert pod["terminationGracePeriodSeconds"] > RunConfig().serve.drain_s + STOP_S


@pytest.mark.parametrize("name", CRDS)
def test_clusters_want_a_token_and_grow_and_shrink(name: str) -> None:
    cluster = _cluster(name)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["minReplicas"] < group["maxReplicas"]


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_groups_are_those_of_ray_up(name: str) -> None:
    path = ROOT / "cluster" / "gcp" / "a2-ultragpu-8g.yaml"
    types = yaml.safe_load(path.read_text())["available_node_types"]
    groups = {group["groupName"]: group for group in _cluster(name)["workerGroupSpecs"]}
    assert set(groups) == set(types) - {"head"}
    for kind, group in groups.items():
        assert group["minReplicas"] == types[kind]["min_workers"]
        assert group["maxReplicas"] == types[kind]["max_workers"]
        assert group["labels"] == types[kind]["labels"]
        (container,) = group["template"]["spec"]["containers"]
        assert int(container["resources"]["limits"]["nvidia.com/gpu"]) == 8


def test_the_service_is_an_application_of_ours_whose_replicas_fit() -> None:
    from ray.serve.schema import ServeDeploySchema

    spec = _read("rayservice")["spec"]
    deploy = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    (application,) = deploy.applications
    arguments = dict(application.args)
    path = ROOT / str(arguments.pop("config")).removeprefix("/opt/stepwiser/")
    config = load_config(path, [f"{key}={value}" for key, value in arguments.items()])
    assert config.serve.keys is not None, "whoever reaches it would be answered"
    pods = _pods("rayservice")
    for group, pod in pods.items():
        ends_s = config.serve.drain_s + STOP_S
        assert pod["terminationGracePeriodSeconds"] > ends_s, group
    assert spec["rayClusterDeletionDelaySeconds"] > config.serve.drain_s
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    (worker,) = pods["judge"]["containers"]
    gpus = int(worker["resources"]["limits"]["nvidia.com/gpu"])
    assert config.serve.replicas * config.engine.gpus <= group["replicas"] * gpus
    most = config.serve.max_replicas or config.serve.replicas
    assert most * config.engine.gpus == group["maxReplicas"] * gpus


def test_traffic_waits_for_the_judges_own_route() -> None:
    pods = _pods("rayservice")
    (worker,) = pods["judge"]["containers"]
    probe = worker["readinessProbe"]["httpGet"]
    assert probe["path"] in {route.path for route in router.routes}  # type: ignore[attr-defined]
    assert probe["path"] == "/ready"
    http = yaml.safe_load(_read("rayservice")["spec"]["serveConfigV2"])["http_options"]
    assert probe["port"] == http["port"] and http["host"] == "0.0.0.0"
    # The operator deploys nothing on a head that is not ready, so that one must not wait for it.
    (head,) = pods["head"]["containers"]
    assert "readinessProbe" not in head
    assert _read("rayservice")["spec"]["excludeHeadPodFromServeSvc"] is True
