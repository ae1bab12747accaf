"""The JSON schema that editors and forms are given says what the model says."""

import json
from pathlib import Path

import pytest
from jsonschema import validate  # type: ignore[import-untyped]
from ruamel.yaml import YAML

from gpujobs.recipe_file import schema


def test_the_schema_knows_every_key_and_its_other_names() -> None:
    found = schema()
    assert {"name", "run", "commands", "envs", "env", "tasks", "concurrency"} <= found["properties"].keys()
    assert {"accelerators", "gpu"} <= found["$defs"]["Resources"]["properties"].keys()
    assert found["required"] == ["name", "resources"]
    assert found["additionalProperties"] is False
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml")), ids=lambda path: path.name
)
def test_the_schema_takes_every_recipe_of_the_project(path: Path) -> None:
    validate(YAML(typ="safe", pure=True).load(path.read_text()), schema())


def test_the_schemas_defaults_and_examples_are_values_that_it_takes() -> None:
    found = schema()
    for model in (found, *found["$defs"].values()):
        for known in model["properties"].values():
            for value in [*known.get("examples", []), *([known["default"]] if "default" in known else [])]:
                validate(value, {**known, "$defs": found["$defs"]})
