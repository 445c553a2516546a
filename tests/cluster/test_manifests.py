"""The shipped cluster files against the schemas of the tools that read them. Nothing is started."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest
import yaml

from tests.support.paths import ROOT

AWS = ROOT / "cluster" / "aws-a100.yaml"
RAYJOB = ROOT / "cluster" / "kuberay-rayjob.yaml"
CRD = ROOT.parent / "shared" / "data" / "kuberay" / "ray.io_rayjobs.yaml"


def _prepared(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` does with a file before it talks to a cloud."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config({"cluster_synced_files": [], **config})  # the file's own keys
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


@pytest.fixture
def aws() -> dict[str, Any]:
    return yaml.safe_load(AWS.read_text())


def test_ray_up_accepts_the_aws_cluster(aws: dict[str, Any]) -> None:
    prepared = _prepared(aws)
    types = prepared["available_node_types"]
    assert types["head"]["resources"]["GPU"] == 0
    assert (types["learner"]["min_workers"], types["annotator"]["min_workers"]) == (1, 0)
    assert "InstanceMarketOptions" not in types["learner"]["node_config"]
    spot = types["annotator"]["node_config"]["InstanceMarketOptions"]
    assert spot == {"MarketType": "spot"}
    workers = types["learner"]["max_workers"] + types["annotator"]["max_workers"]
    assert workers <= prepared["max_workers"]


def test_every_aws_node_gets_the_token_and_the_same_versions(aws: dict[str, Any]) -> None:
    prepared = _prepared(aws)
    assert prepared["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for commands in (prepared["head_setup_commands"], prepared["worker_setup_commands"]):
        text = "\n".join(commands)
        assert "vllm==0.32.0" in text and "ray==2.60.0" in text and "[gpu]" in text
        assert "RAY_AUTH_MODE=token" in text


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("max_workrs",), 3),
        (("provider_type",), "aws"),
        (("available_node_types", "learner", "min_worker"), 1),
        (("available_node_types", "learner", "resources", "GPU"), "eight"),
        (("docker",), {"imag": "x"}),
    ],
)
def test_ray_up_refuses_a_misspelled_aws_cluster(
    aws: dict[str, Any], path: tuple[str, ...], value: Any
) -> None:
    node = aws
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        _prepared(aws)


def test_ray_up_refuses_an_unknown_head_type(aws: dict[str, Any]) -> None:
    aws["head_node_type"] = "nope"
    with pytest.raises(ValueError, match="head_node_type"):
        _prepared(aws)


def test_more_workers_at_least_than_at_most_are_refused(aws: dict[str, Any]) -> None:
    aws["max_workers"] = 0
    with pytest.raises(ValueError, match="max_workers"):
        _prepared(aws)


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
def rayjob_schema() -> jsonschema.Draft202012Validator:
    if not CRD.is_file():
        pytest.skip(f"needs KubeRay's CRD at {CRD}")
    crd = yaml.load(CRD.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes checks it, the CRD does not
    # `jsonschema.validate` would check the schema itself each time, which takes five seconds.
    return jsonschema.Draft202012Validator(_strict(schema))


@pytest.fixture
def rayjob() -> dict[str, Any]:
    return yaml.safe_load(RAYJOB.read_text())


@pytest.mark.data
def test_kuberay_accepts_the_rayjob(
    rayjob: dict[str, Any], rayjob_schema: jsonschema.Draft202012Validator
) -> None:
    rayjob_schema.validate(rayjob)


@pytest.mark.data
def test_kuberay_refuses_a_misspelled_rayjob(
    rayjob: dict[str, Any], rayjob_schema: jsonschema.Draft202012Validator
) -> None:
    for change in (
        lambda spec: spec.update(entrypont="x"),
        lambda spec: spec["rayClusterSpec"]["authOptions"].update(mode="tokn"),
        lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0].update(minReplica=1),
        lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0].pop("template"),
    ):
        changed = copy.deepcopy(rayjob)
        change(changed["spec"])
        with pytest.raises(jsonschema.ValidationError):
            rayjob_schema.validate(changed)


def test_both_files_have_the_same_groups(aws: dict[str, Any], rayjob: dict[str, Any]) -> None:
    groups = {g["groupName"]: g for g in rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    types = aws["available_node_types"]
    assert set(groups) == set(types) - {"head"}
    for name, group in groups.items():
        assert group["minReplicas"] == types[name]["min_workers"]
        assert group["maxReplicas"] == types[name]["max_workers"]
        (container,) = group["template"]["spec"]["containers"]
        assert int(container["resources"]["limits"]["nvidia.com/gpu"]) == 8
