"""The manifests of deploy/kubernetes: every combination of components, against Kubernetes' schemas and our own policy.

`tests.kustomize` renders them; `kubectl`, where there is one, must render the same.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator

from shared.settings import ApiSettings, Settings, WorkerSettings, variables
from tests.compose import ROOT
from tests.kustomize import Manifest, rendered

KUBERNETES: Final = ROOT / "deploy" / "kubernetes"
BASE: Final = KUBERNETES / "base"
COMPONENTS: Final = sorted(path.parent for path in KUBERNETES.glob("components/*/kustomization.yaml"))
OVERLAYS: Final = sorted(path.parent for path in KUBERNETES.glob("overlays/*/kustomization.yaml"))
KUBECTL: Final = shutil.which("kubectl")

# The oldest and the newest Kubernetes that the schemas of kubernetes-validate and our users have.
_VERSIONS: Final = ("1.27", kubernetes_validate.latest_version())
_SETTINGS: Final[Mapping[str, type[Settings]]] = {
    "api": ApiSettings,
    "worker": WorkerSettings,
    "migrate": WorkerSettings,
    "prune": WorkerSettings,
}
# Of other projects' kinds, the fields that are used here, as their CRDs have them.
_CUSTOM: Final[dict[str, Any]] = yaml.safe_load((ROOT / "tests/unit/data/custom_kinds.yaml").read_text("utf-8"))


def combined() -> Iterator[tuple[Path, ...]]:
    """Every set of components but those with both of `keda` and `keda-to-zero`, which is another `keda`."""
    sets = chain.from_iterable(combinations(COMPONENTS, size) for size in range(len(COMPONENTS) + 1))
    return (each for each in sets if not {"keda", "keda-to-zero"} <= {path.name for path in each})


SEVERAL: Final = [(), *((each,) for each in COMPONENTS), [*combined()][-1]]


def names_of(components: Sequence[Path]) -> list[str]:
    return [each.name for each in components]


def pod_of(manifest: Manifest) -> Manifest | None:
    """The template of the manifest's pods."""
    spec = manifest.get("spec", {})
    template: Manifest | None = spec.get("jobTemplate", {}).get("spec", spec).get("template")
    return template


def check_schema(manifest: Manifest) -> None:
    group = manifest["apiVersion"].partition("/")[0]
    if group in ("keda.sh", "monitoring.coreos.com"):
        Draft202012Validator(_CUSTOM[manifest["kind"]]).validate(manifest)
        return
    for version in _VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)


def check_policy(manifest: Manifest) -> None:
    """What every manifest with pods must be."""
    if (template := pod_of(manifest)) is None:
        return
    pod = template["spec"]
    (container,) = pod["containers"]
    program = container["args"][0]
    assert {each["name"] for each in container["env"]} <= variables(_SETTINGS[program])
    assert all(each["name"].endswith("_FILE") for each in container["env"] if "SECRET" in each["name"])
    assert not any("URL" in each["name"] and "@" in each["value"] for each in container["env"])
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    assert "memory" in container["resources"]["limits"]
    assert container["image"].rpartition(":")[2] not in ("", "latest")
    if manifest["kind"] == "Deployment":
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports["ops"] == 9090
        assert container["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "ops"}
        assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "ops"}
        assert pod["terminationGracePeriodSeconds"] >= 2 * Settings.model_fields["shutdown_grace"].default
    else:
        assert pod["restartPolicy"] == "Never"


def selected(selector: Manifest, labels: Mapping[str, str]) -> bool:
    wanted = selector.get("matchLabels", {}) if selector.keys() <= {"matchLabels", "matchExpressions"} else selector
    return wanted.items() <= labels.items() and all(
        each["operator"] == "In" and labels.get(each["key"]) in each["values"]
        for each in selector.get("matchExpressions", [])
    )


def check_references(manifests: Sequence[Manifest]) -> None:
    """What one manifest says of another must be there: pods that are selected, their ports, what is scaled."""
    pods = [pod for each in manifests if (pod := pod_of(each)) is not None]
    known = {(each["kind"], each["metadata"]["name"]) for each in manifests}
    for manifest in manifests:
        spec = manifest.get("spec", {})
        for selector in (spec.get("selector"), spec.get("podSelector")):
            assert selector is None or any(selected(selector, pod["metadata"]["labels"]) for pod in pods)
        if manifest["kind"] == "ScaledObject":
            assert ("Deployment", spec["scaleTargetRef"]["name"]) in known
            for trigger in spec["triggers"]:
                assert ("TriggerAuthentication", trigger["authenticationRef"]["name"]) in known
    names = {port["name"] for pod in pods for each in pod["spec"]["containers"] for port in each.get("ports", [])}
    assert set(ports_named(manifests)) <= names


def ports_named(manifests: Sequence[Manifest]) -> Iterator[str]:
    """The ports of pods that Services, monitors and policies name."""
    for manifest in manifests:
        spec = manifest.get("spec", {})
        if manifest["kind"] == "Service":
            yield from (each["targetPort"] for each in spec["ports"])
        if manifest["kind"] == "PodMonitor":
            yield from (each["port"] for each in spec["podMetricsEndpoints"])
        if manifest["kind"] == "NetworkPolicy":
            ports = [port["port"] for rule in spec.get("ingress", []) for port in rule["ports"]]
            yield from (each for each in ports if isinstance(each, str))


def test_every_combination_of_components_is_valid_and_keeps_our_policy() -> None:
    checked = set()
    for components in combined():
        manifests = rendered(BASE, components)
        check_references(manifests)
        for manifest in manifests:
            if (text := json.dumps(manifest, sort_keys=True)) not in checked:
                check_schema(manifest)
                check_policy(manifest)
                checked.add(text)
    assert len(checked) > len(COMPONENTS)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_an_overlay_is_valid_and_keeps_our_policy(overlay: Path) -> None:
    manifests = rendered(overlay)

    check_references(manifests)
    for manifest in manifests:
        check_schema(manifest)
        check_policy(manifest)
        assert manifest["metadata"]["namespace"] == "redrive"


if KUBECTL is not None:

    @pytest.mark.parametrize("components", SEVERAL, ids=lambda some: "+".join(names_of(some)) or "none")
    def test_kubectl_renders_the_same(components: Sequence[Path], tmp_path: Path) -> None:
        def seen_from_there(folder: Path) -> str:
            return os.path.relpath(folder, tmp_path.resolve())

        content = {"resources": [seen_from_there(BASE)], "components": [seen_from_there(each) for each in components]}
        (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(content), "utf-8")

        assert by_id(kustomized(tmp_path)) == by_id(rendered(BASE, components))

    @pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
    def test_kubectl_renders_the_same_overlay(overlay: Path) -> None:
        assert by_id(kustomized(overlay)) == by_id(rendered(overlay))


def kustomized(folder: Path) -> list[Manifest]:
    done = subprocess.run([str(KUBECTL), "kustomize", folder], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


def by_id(manifests: Sequence[Manifest]) -> dict[str, Manifest]:
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in manifests}


def test_what_scales_the_workers_is_set_in_one_place_only() -> None:
    for name in ("keda", "keda-to-zero"):
        manifests = by_id(rendered(BASE, [KUBERNETES / "components" / name]))
        assert "replicas" not in manifests["Deployment/redrive-worker"]["spec"]
        assert manifests["ScaledObject/redrive-worker"]["spec"]["minReplicaCount"] == (name == "keda")
    with pytest.raises(ValueError, match="twice"):
        rendered(BASE, [KUBERNETES / "components" / "keda", KUBERNETES / "components" / "keda-to-zero"])


def test_without_rabbitmq_no_program_is_given_its_url() -> None:
    manifests = rendered(BASE, [KUBERNETES / "components" / "ledger-only"])
    given = {each["name"] for pod in map(pod_of, manifests) if pod for each in pod["spec"]["containers"][0]["env"]}

    assert given == {"REDRIVE_DATABASE_URL_FILE", "REDRIVE_JWT_SECRET_FILE"}


def test_the_version_is_that_of_the_project() -> None:
    images = {
        each["spec"]["containers"][0]["image"] for pod in map(pod_of, rendered(BASE, COMPONENTS[:0])) if (each := pod)
    }
    version = (ROOT / "pyproject.toml").read_text("utf-8").partition('version = "')[2].partition('"')[0]

    assert images == {f"redrive:{version}"}
