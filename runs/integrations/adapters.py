"""The adapters' rows in one file, from what ``runs/integrations/adapters.sh`` measured.

    python -m runs.integrations.adapters

Reads the results of ``SOURCES`` and writes ``runs/results/adapters.json``.
"""

from __future__ import annotations

import json

from runs.common import RESULTS, write_result

SOURCES = (
    "adapter_overhead",
    "conformance_hf",
    "vllm_check",
    "vllm_overhead",
    "llama_check",
    "llama_cpp_check",
)


def main() -> None:
    found = {}
    for name in SOURCES:
        path = RESULTS / f"{name}.json"
        if not path.is_file():
            raise SystemExit(f"there is no {path.name} yet: run runs/integrations/adapters.sh")
        found[name] = json.loads(path.read_text(encoding="utf-8"))
    write_result(
        "adapters",
        [row for result in found.values() for row in result["rows"]],
        reproduce="bash runs/integrations/adapters.sh",
        measured={
            name: {key: result[key] for key in ("command", "machine", "versions")}
            for name, result in found.items()
        },
    )


if __name__ == "__main__":
    main()
