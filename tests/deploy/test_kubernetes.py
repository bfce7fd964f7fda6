"""The manifests, checked offline: against Kubernetes' schemas, each other and the settings."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings

kubernetes_validate = pytest.importorskip("kubernetes_validate")
yaml = pytest.importorskip("yaml")

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
VERSIONS = ("1.29", "1.33")
MADE_BY_HAND = {("Secret", "eqnet-keys")}
"""docs/clusters.md says how."""

Document = dict[str, Any]


def documents() -> Iterator[Document]:
    for path in sorted(FOLDER.glob("*.yaml")):
        if path.name != "kustomization.yaml":
            yield from yaml.safe_load_all(path.read_text())


def named(kind: str) -> dict[str, Document]:
    return {entry["metadata"]["name"]: entry for entry in documents() if entry["kind"] == kind}


def workloads() -> dict[str, Document]:
    return named("Deployment") | named("StatefulSet")


def containers() -> Iterator[tuple[str, Document, Document]]:
    """Name of the workload, its pod's specification and each container."""
    for name, workload in workloads().items():
        pod = workload["spec"]["template"]["spec"]
        for container in pod["containers"]:
            yield name, pod, container


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_meets_the_schema(version: str) -> None:
    for document in documents():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_schema_notices_what_is_wrong() -> None:
    document = named("Deployment")["eqnet-api"]
    document["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, VERSIONS[0], strict=True)


def test_the_kustomization_has_every_file() -> None:
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(
        path.name for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml"
    )


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_accepts_it() -> None:
    built = subprocess.run(["kubectl", "kustomize", FOLDER], capture_output=True, text=True, check=True)
    assert len(list(yaml.safe_load_all(built.stdout))) == len(list(documents()))


def test_containers_have_no_rights_and_bounds_on_memory() -> None:
    for name, pod, container in containers():
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"], name
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        assert "memory" in container["resources"]["limits"], name
        assert {"readinessProbe", "livenessProbe"} <= container.keys(), name


def test_variables_are_settings_and_no_secrets() -> None:
    known = {f"EQNET_{name.upper()}" for name in Settings.model_fields}
    given = dict(named("ConfigMap")["eqnet"]["data"])
    for _, _, container in containers():
        given |= {entry["name"]: entry["value"] for entry in container.get("env", ())}
    assert given.keys() <= known
    assert "EQNET_API_KEYS" not in given
    values = {name.removeprefix("EQNET_").lower(): value for name, value in given.items()}
    settings = Settings(**values)
    assert settings.broker_url is not None
    service = named("Service")["eqnet-redis"]
    assert f"//{service['metadata']['name']}:{service['spec']['ports'][0]['port']}/" in settings.broker_url


def test_what_is_referred_to_is_there() -> None:
    there = {(entry["kind"], entry["metadata"]["name"]) for entry in documents()} | MADE_BY_HAND
    for name, pod, container in containers():
        volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
        templates = workloads()[name]["spec"].get("volumeClaimTemplates", ())
        own = {template["metadata"]["name"] for template in templates}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys() | own
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in there
        for source in container.get("envFrom", ()):
            for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                assert key not in source or (kind, source[key]["name"]) in there
        ports = {port["name"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if "httpGet" in container.get(probe, {}):
                assert container[probe]["httpGet"]["port"] in ports, name


def test_selectors_select() -> None:
    labels = [workload["spec"]["template"]["metadata"]["labels"] for workload in workloads().values()]
    for workload in workloads().values():
        selected = workload["spec"]["selector"]["matchLabels"]
        assert selected.items() <= workload["spec"]["template"]["metadata"]["labels"].items()
    for service in named("Service").values():
        matching = [entry for entry in labels if service["spec"]["selector"].items() <= entry.items()]
        assert len(matching) == 1, service["metadata"]["name"]
    for scaler in named("HorizontalPodAutoscaler").values():
        assert scaler["spec"]["scaleTargetRef"]["name"] in named("Deployment")
