"""The processes that are measured: the replaying upstream, our gateway, LiteLLM's proxy, nginx."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlbudget.models.smollm2 import smollm2_folder
from rlbudget.policy.folder import load_policy, make_policy, save_policy
from runs.common import KEPT, ROOT
from runs.integrations.llama_process import free_port

LITELLM = ROOT / ".venv-litellm"
_TICK = os.sysconf("SC_CLK_TCK")
_START = 300.0
"""seconds that a process may take to answer"""


@dataclass(frozen=True, slots=True)
class Process:
    """A server of its own process."""

    url: str
    """up to ``/v1``"""
    pid: int

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")

    def tree(self) -> list[int]:
        """It and its children."""
        found = [self.pid]
        for task in Path("/proc", str(self.pid), "task").iterdir():
            children = (task / "children").read_text().split()
            found += [pid for child in children for pid in Process("", int(child)).tree()]
        return found

    def used(self) -> float:
        """Seconds of processor so far."""
        total = 0
        for pid in self.tree():
            numbers = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
            total += int(numbers[11]) + int(numbers[12])
        return total / _TICK

    def memory(self) -> float:
        """Resident, in MB."""
        total = 0
        for pid in self.tree():
            for line in Path("/proc", str(pid), "status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1])
        return total / 1024


@contextmanager
def upstream() -> Iterator[Process]:
    """The replaying one."""
    command = [sys.executable, "-m", "runs.serve.replay_upstream"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            yield Process(f"http://127.0.0.1:{port}/v1", process.pid)
        finally:
            process.kill()


def pace(server: Process, rate: float, *, stamps: bool = False) -> None:
    """Set that of an upstream, in tokens a second and stream; 0 for none."""
    body = json.dumps({"rate": rate, "stamps": stamps}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{server.root}/pace", body), timeout=30).close()


def stats(server: Process) -> dict[str, int]:
    """What an upstream has seen."""
    with urllib.request.urlopen(f"{server.root}/stats", timeout=30) as answer:
        found: dict[str, int] = json.load(answer)
        return found


@contextmanager
def gateway(behind: Process, folder: Path, *arguments: str) -> Iterator[Process]:
    """Ours, with a policy that is asked at every checkpoint and stops nowhere."""
    plan = folder / "plan.toml"
    plan.write_text(f'policy = "{reluctant(folder)}"\nmax_thinking_tokens = 32768\n')
    with serving(plan, behind.url, folder, *arguments) as process:
        yield process


@contextmanager
def serving(plan: Path, upstream_url: str, folder: Path, *arguments: str) -> Iterator[Process]:
    """``rlbudget serve`` with a plan, before a server of the SmolLM2 reasoner."""
    port = free_port()
    command = [sys.executable, "-m", "rlbudget", "serve", "--plan", str(plan), "--upstream",
               upstream_url, "--tokenizer", str(smollm2_folder()), "--port", str(port),
               *arguments]  # fmt: skip
    more = {"RLBUDGET_STORE": str(folder / "store.sqlite3")}
    with _running(command, folder / "gateway.log", port, "/readyz", more) as process:
        yield process


def reluctant(folder: Path) -> Path:
    """The kept policy of SmolLM2 over 20 log-probabilities, its bias to stop taken away."""
    place = folder / "policy"
    if not place.is_dir():
        kept = load_policy(KEPT / "policy_top")
        tensors = dict(kept.tensors)
        tensors["action_net.bias"] = tensors["action_net.bias"].copy()
        tensors["action_net.bias"][1] = -1e4
        made = make_policy(
            tensors,
            features=kept.features,
            preset=kept.preset,
            price_range=kept.price_range,
            trained=kept.config["trained"],
        )
        save_policy(place, made)
    return place


@contextmanager
def litellm(behind: Process, folder: Path) -> Iterator[Process]:
    """LiteLLM's proxy as it comes, in its own environment, one worker."""
    config = folder / "litellm.yaml"
    config.write_text(
        "model_list:\n  - model_name: replay\n    litellm_params:\n      model: openai/replay\n"
        f"      api_base: {behind.url}\n      api_key: none\n"
    )
    port = free_port()
    command = [str(LITELLM / "bin" / "litellm"), "--config", str(config), "--host", "127.0.0.1",
               "--port", str(port), "--num_workers", "1"]  # fmt: skip
    # Neither asks its clients for a key: both listen on loopback alone.
    more = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}  # fmt: skip
    with _running(command, folder / "litellm.log", port, "/health/liveliness", more) as process:
        yield process


@contextmanager
def nginx(behind: Process, folder: Path) -> Iterator[Process]:
    """nginx passing through, without buffering, its connections kept: the floor."""
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(
        f"""daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.err;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream behind {{ server {behind.root.removeprefix("http://")}; keepalive 512; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://behind; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 600s;
    }}
  }}
}}
"""
    )
    command = ["nginx", "-p", str(folder), "-c", str(config)]
    with _running(command, folder / "nginx.log", port, "/v1/models") as process:
        yield process


@contextmanager
def _running(
    command: list[str], log: Path, port: int, path: str, more: Mapping[str, str] | None = None
) -> Iterator[Process]:
    environment: dict[str, Any] = {**os.environ, **(more or {})}
    with log.open("wb") as said, subprocess.Popen(
        command, stdout=said, stderr=said, cwd=ROOT, env=environment
    ) as process:  # fmt: skip
        try:
            root = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + _START
            while True:
                try:
                    urllib.request.urlopen(root + path, timeout=10).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise SystemExit(f"{command[0]} did not start:\n{_end(log)}") from None
                    time.sleep(0.1)
            yield Process(f"{root}/v1", process.pid)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _end(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that nginx's worker may write into as well."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)
