"""The container files are whole, and the dashboard shows metrics that there are."""

from __future__ import annotations

import json
import re
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateways import StopsAt, gateway_of, serving_gateway

from rlbudget.cli.main import main
from rlbudget.models import load_model
from rlbudget.serve.upstream import look_at
from runs.integrations.toy_server import Toy, serving

yaml: Any = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "runs" / "serve" / "container"
DASHBOARD = PLACE / "grafana" / "dashboards" / "rlbudget.json"


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def stages() -> dict[str, list[str]]:
    """Stage -> its lines."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    text = (PLACE / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        if named := re.fullmatch(r"FROM \S+ AS (\w+)", line):
            lines = found.setdefault(named[1], [])
        lines.append(line)
    return found


def test_all_yaml_and_json_is_read() -> None:
    files = [*PLACE.rglob("*.yaml"), *PLACE.rglob("*.json")]
    assert len(files) >= 5
    for file in files:
        assert json.loads(file.read_text()) if file.suffix == ".json" else read(file)


def test_every_metric_of_the_dashboard_is_shown_by_a_gateway() -> None:
    gateway = gateway_of(StopsAt(24))
    with serving(Toy(load_model("embedded"))) as url:
        opens = partial(look_at, url, gateway.settings, tokenizer="embedded")
        with serving_gateway(gateway, opens) as root:
            shown = httpx.get(f"{root}/metrics", timeout=60).text
    there: set[str] = set()
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", shown, re.MULTILINE):
        ends = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        there |= {name + end for end in ends}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = {
        name
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"\brlbudget_\w+", target["expr"])
    }
    assert len(asked) >= 10
    assert asked <= there
    assert all(panel["datasource"]["uid"] == "prometheus" for panel in panels)
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_the_services_fit_together() -> None:
    compose = read(PLACE / "compose.yaml")
    services, built = compose["services"], stages()
    for name, service in services.items():
        if "build" in service:
            build = service["build"]
            assert build["target"] in built
            assert (PLACE / build["context"]).resolve() == ROOT
            assert (ROOT / build["dockerfile"]).is_file()
        for volume in service.get("volumes", ()):
            source = volume.split(":", 1)[0]
            if source.startswith("./"):
                assert (PLACE / source).exists(), (name, volume)
            elif not source.startswith("$"):
                assert source in compose["volumes"], (name, volume)
        assert set(service.get("depends_on", ())) <= set(services)
    scraped = read(PLACE / "prometheus.yaml")["scrape_configs"]
    hosts = {
        h.split(":")[0] for one in scraped for c in one["static_configs"] for h in c["targets"]
    }
    networks = [(one.get("networks") or {}).get("default") or {} for one in services.values()]
    aliases = {alias for network in networks for alias in network.get("aliases", ())}
    assert hosts <= {*services, *aliases}
    source = read(PLACE / "grafana/provisioning/datasources/prometheus.yaml")["datasources"][0]
    assert source["uid"] == "prometheus"
    provider = read(PLACE / "grafana/provisioning/dashboards/rlbudget.yaml")["providers"][0]
    mounts = [v.split(":")[1] for v in services["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounts


def test_what_the_images_copy_and_install_is_there() -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ignored = (ROOT / ".containerignore").read_text().splitlines()
    for line in [line for lines in stages().values() for line in lines]:
        if line.startswith("COPY ") and "--from=" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), line
                assert f"!{source}" in ignored
        for extras in re.findall(r"\.whl\)\[([\w,]+)\]", line):
            assert set(extras.split(",")) <= set(known["optional-dependencies"])


def test_the_command_of_the_gateway_is_one_that_it_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = read(PLACE / "compose.yaml")["services"]["gateway"]["command"]
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    said = capsys.readouterr().out
    for option in command:
        assert option.split("=")[0] in said
