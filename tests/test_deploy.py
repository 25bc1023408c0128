"""The manifests in deploy/: what can be checked without a cluster."""

from pathlib import Path

import pytest

from sdpl.cli.serve import command

DEPLOY = Path(__file__).parents[1] / "deploy"


def documents(name: str) -> list[dict]:
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def containers() -> list[dict]:
    """The server's container in every manifest."""
    deployment, runtime = documents("kubernetes.yaml")[0], documents("kserve.yaml")[0]
    return [deployment["spec"]["template"]["spec"]["containers"][0], runtime["spec"]["containers"][0]]


def test_manifests_name_options_that_exist_and_ports_that_are_served():
    known = {option for parameter in command.params for option in parameter.opts}
    for container in containers():
        options = [word for word in container["args"] if word.startswith("--")]
        assert options
        assert set(options) <= known
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        probes = [container[name]["httpGet"] for name in ("readinessProbe", "livenessProbe")]
        assert [probe["path"] for probe in probes] == ["/v2/health/ready", "/v2/health/live"]
        assert {ports.get(probe["port"], probe["port"]) for probe in probes} <= {8000, 8080}


def test_kubernetes_takes_them():
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate has the published schemas")
    for document in documents("kubernetes.yaml"):
        validate.validate(document, validate.latest_version(), strict=True)
