"""docs/fake-cloud-coverage.md names every documented field, and tests that exist."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fake_server import autodl_requests, matrixdc_requests
from fake_server.openapi import CALLS

HERE = Path(__file__).parent
TABLE = (HERE.parent.parent / "docs" / "fake-cloud-coverage.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (.+) \| `(\S+)` \|$", TABLE, re.MULTILINE)
GPU_NAMES = {"RTX 4090", "RTX 3080 Ti", "RTX A4000"}


def keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from keys(each)


def named(provider: str) -> set[str]:
    """The fields that a provider's rows name."""
    text = TABLE.split(f"\n## {provider}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+) \| `\S+` \|$", text, re.MULTILINE)
    return {field for row in rows for field in re.findall(r"`([^`]+)`", row)}


def test_every_test_that_the_table_names_exists() -> None:
    assert len(ROWS) > 100
    missing = []
    for _, test in ROWS:
        file, _, name = test.partition("::")
        if not re.search(rf"^def {re.escape(name)}\(", (HERE / file).read_text(encoding="utf-8"), re.MULTILINE):
            missing.append(test)
    assert missing == []


def test_every_field_of_the_documents_replies_is_in_the_table() -> None:
    replies = json.loads((HERE / "samples" / "replies.json").read_text(encoding="utf-8"))
    for provider, prefix in (("AutoDL", "autodl."), ("MatrixDC", "matrixdc.")):
        documented = {key for name, reply in replies.items() if name.startswith(prefix) for key in keys(reply)}
        assert documented - named(provider) - GPU_NAMES == set()


def test_every_field_that_a_request_can_have_is_in_the_table() -> None:
    for provider, module in (("AutoDL", autodl_requests), ("MatrixDC", matrixdc_requests)):
        models = [each for each in vars(module).values() if hasattr(each, "model_fields")]
        fields = {name for model in models for name in model.model_fields}
        assert fields - named(provider) == set()


def test_every_call_has_its_rows() -> None:
    for call in CALLS:
        path = call.path.replace("{cluster}", "{clusterName}")
        tail = path.removeprefix("/mdc/api/v1/clusters/{clusterName}")
        headings = re.findall(r"^### (.+)$", TABLE, re.MULTILINE)
        found = [
            each for each in headings if call.method in each and (path in each or each.split("…")[-1].startswith(tail))
        ]
        assert found, call
