"""infra/kubernetes: what schemas and linters miss, and how it fits the service."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings, load
from tests.harness.process import ROOT
from tests.harness.tools import missing
from tests.infra.dockerfile import read_dockerfile
from tests.infra.linters import checkov, kubernetes_validate

MANIFESTS = ROOT / "infra" / "kubernetes"
# What the Secret `steadwire` has to hold, by docs/deployment.md.
SECRET = {
    "STEADWIRE_TOKEN_HMAC_SECRET_KEY": "t" * 64,
    "STEADWIRE_API_KEY": "a" * 64,
}


def rendered(overlay: str) -> str:
    for command in (["kubectl", "kustomize"], ["kustomize", "build"]):
        if shutil.which(command[0]):
            done = subprocess.run(
                [*command, MANIFESTS / overlay], capture_output=True, text=True
            )
            assert done.returncode == 0 and not done.stderr, done.stderr
            return done.stdout
    missing("kubectl", "see https://kubernetes.io/docs/tasks/tools/")


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kubernetes") / "production.yaml"
    path.write_text(rendered("production"))
    return path


@pytest.fixture(scope="module")
def objects(manifests: Path) -> dict[str, Any]:
    return {each["kind"]: each for each in yaml.safe_load_all(manifests.read_text())}


@pytest.fixture(scope="module")
def pod(objects: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = objects["Deployment"]["spec"]["template"]["spec"]
    return spec


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    [only] = pod["containers"]
    assert isinstance(only, dict)
    return only


@pytest.fixture(scope="module")
def settings(objects: dict[str, Any]) -> Settings:
    return load(objects["ConfigMap"]["data"] | SECRET, {})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_schemas_and_linters_find_nothing(manifests: Path) -> None:
    assert kubernetes_validate(manifests) == []
    assert checkov(manifests, "kubernetes") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("periodSeconds: 10", "periodSecond: 10"),
        ("maxUnavailable: 1", "maxUnavailable: [1]"),
        ("minReplicas: 2", "minReplicas: two"),
    ],
)
def test_a_planted_mistake_is_found(
    manifests: Path, tmp_path: Path, right: str, wrong: str
) -> None:
    text = manifests.read_text()
    assert right in text
    planted = tmp_path / "planted.yaml"
    planted.write_text(text.replace(right, wrong))
    assert kubernetes_validate(planted)


def test_the_settings_are_known_and_complete(settings: Settings) -> None:
    """`load` refuses what it does not know, and a service without a way in."""
    assert settings.environment == "production"
    assert settings.store.backend == "dynamodb"
    assert settings.server.host == "0.0.0.0"
    assert settings.server.trusted_proxies


def test_a_change_of_settings_makes_new_pods(
    objects: dict[str, Any], container: dict[str, Any]
) -> None:
    """The name of the ConfigMap has a hash of what is in it; the Secret's has none."""
    config, secret = container["envFrom"]
    name = config["configMapRef"]["name"]
    assert re.fullmatch(r"steadwire-\w{10}", name)
    assert objects["ConfigMap"]["metadata"]["name"] == name
    assert secret == {"secretRef": {"name": "steadwire"}}


def test_probes_are_of_the_service(
    container: dict[str, Any], settings: Settings
) -> None:
    [port] = container["ports"]
    assert (port["name"], port["containerPort"]) == ("http", settings.server.port)
    paths = {
        name: container[f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "liveness", "readiness")
    }
    assert paths == {
        "startup": "/health/live",
        "liveness": "/health/live",
        "readiness": "/health/ready",
    }


def test_a_pod_has_the_time_to_send_its_clients_away(
    pod: dict[str, Any], container: dict[str, Any], settings: Settings
) -> None:
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    probe = container["readinessProbe"]
    # New clients must be gone before SIGTERM; readiness would say so too late.
    assert before >= probe["periodSeconds"] * probe["failureThreshold"]
    assert settings.server.drain_time is not None
    needed = before + settings.server.drain_time + settings.server.shutdown_timeout
    assert needed < pod["terminationGracePeriodSeconds"]


def test_it_has_no_more_rights_than_the_image(
    pod: dict[str, Any], container: dict[str, Any]
) -> None:
    [user] = [
        each for each in read_dockerfile(ROOT / "Dockerfile") if each.name == "USER"
    ]
    own = pod["securityContext"]
    assert user.text == f"{own['runAsUser']}:{own['runAsGroup']}"
    assert own["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["enableServiceLinks"] is False
    assert pod["automountServiceAccountToken"] is False


def test_selectors_meet(objects: dict[str, Any]) -> None:
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(each.items() <= labels.items() and each for each in selectors)
    target = objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == objects["Deployment"]["metadata"]["name"]
    assert "replicas" not in objects["Deployment"]["spec"]
    budget = objects["PodDisruptionBudget"]["spec"]["maxUnavailable"]
    assert budget < objects["HorizontalPodAutoscaler"]["spec"]["minReplicas"]
    [port] = objects["Service"]["spec"]["ports"]
    [host] = objects["Ingress"]["spec"]["rules"]
    for path in host["http"]["paths"]:
        assert path["backend"]["service"]["name"] == "steadwire"
        assert path["backend"]["service"]["port"]["name"] == port["name"]


def test_backends_metrics_and_credentials_pass_the_network_policy(
    objects: dict[str, Any],
) -> None:
    policy = objects["NetworkPolicy"]["spec"]
    [into] = policy["ingress"]
    labels = [each["namespaceSelector"]["matchLabels"] for each in into["from"]]
    assert {"steadwire-access": "true"} in labels
    text = (ROOT / "docs" / "deployment.md").read_text()
    assert "kubectl label namespace backend steadwire-access=true" in text
    identity = {
        "to": [{"ipBlock": {"cidr": "169.254.170.23/32"}}],
        "ports": [{"port": 80, "protocol": "TCP"}],
    }
    assert identity in policy["egress"]


def test_the_ingress_does_not_cut_between_pings(
    objects: dict[str, Any], settings: Settings
) -> None:
    annotations = objects["Ingress"]["metadata"]["annotations"]
    idle = int(annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"])
    assert idle > settings.client.ping_interval + settings.client.pong_timeout


def test_the_ingress_limits_sockets_as_nginx_does(objects: dict[str, Any]) -> None:
    annotations = objects["Ingress"]["metadata"]["annotations"]
    limit = annotations["nginx.ingress.kubernetes.io/limit-connections"]
    block = (ROOT / "infra" / "nginx" / "steadwire.conf").read_text()
    assert f"limit_conn steadwire_clients {limit};" in block
