"""The manifests in deploy/: what can be checked without a cluster."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sdpl.cli.serve import command
from sdpl.server.counters import Counters
from sdpl.server.refusal import REASONS

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


def test_the_unit_of_systemd_names_options_that_exist_and_systemd_takes_it(tmp_path):
    text = (DEPLOY / "sdpl-serve.service").read_text()
    known = {option for parameter in command.params for option in parameter.opts}
    start = re.search(r"^ExecStart=(.*)$", text, re.MULTILINE)[1].split()
    assert set(word for word in start if word.startswith("--")) <= known
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here: the unit's keys were not checked")
    unit = tmp_path / "sdpl-serve.service"
    unit.write_text(text.replace("/opt/sdpl/bin/sdpl-serve", "/bin/true"))
    result = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert [line for line in result.stderr.splitlines() if unit.name in line] == []


def test_alerts_name_metrics_that_the_server_has():
    groups = documents("prometheus-rules.yaml")[0]["groups"]
    counters = Counters(Counters.memory(1, 1), 1, ["m"])
    served = {re.split("[{ ]", line)[0] for line in counters.to_prometheus() if not line.startswith("#")}
    served |= {"sdpl_model_ready", "sdpl_model_unloaded"}  # tests of the server have their lines
    rules = [rule for group in groups for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 7
    for rule in rules:
        names = set(re.findall(r"sdpl_\w+", rule["expr"]))
        assert names <= served, rule["alert"]
        assert names or "up{" in rule["expr"]
        assert set(re.findall(r'reason="(\w+)"', rule["expr"])) <= set(REASONS)
