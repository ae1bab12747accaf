"""A recipe as a form: what it shows, that it gives the recipe back, and what it refuses in which words."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from gpujobs import backends
from gpujobs.deploy import may_run_on
from gpujobs.errors import BadInput
from gpujobs.form import Form, duration
from gpujobs.form_schema import form_schema
from gpujobs.recipe import Recipe
from gpujobs.recipe_file import load_recipe

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))
EVERYTHING = Recipe.model_validate(
    {
        "name": "all",
        "resources": {
            "infra": ["matrixdc", "autodl/westDC2", "autodl/newDC9"],
            "accelerators": ["RTX 4090:2", "B200:8", "H20"],
            "cpus": "4+",
            "memory": 16,
            "cuda": "11.8+",
            "image": {"autodl": "base-image-l2t43iu6uk"},
            "max_price": 4.5,
            "volumes": [{"path": "/root/data", "size": 50}],
        },
        "workdir": "/srv/work",
        "file_mounts": {"/root/data/a=b.csv": "/srv/a.csv"},
        "envs": {"LR": "1e-3", "EMPTY": "", "TEXT": "two\nlines = 2"},
        "secrets": ["HF_TOKEN"],
        "setup": "pip install x",
        "run": "python train.py\necho done",
        "outputs": {"ckpt": "runs/a=b"},
        "snapshot": {"name": "env", "tag": "v1", "on": "always"},
        "max_duration": "1h30m",
        "linger": "10m",
        "budget": 30,
        "retry": {"on": ["no-capacity"], "attempts": 5, "wait": "2h"},
        "on_failure": {"keep": "30m"},
        "schedule": {"cron": "0 2 * * *", "timezone": "UTC", "max_lateness": "2h"},
        "autodl": {"deployment_type": "Container", "reuse_container": True},
        "matrixdc": {"cost_type": 4, "cost_time": "3D"},
    }
)


def form_of(recipe: Recipe) -> Form:
    return Form.of(recipe, may_run_on(recipe))


def schema_of(recipe: Recipe) -> dict[str, Any]:
    return form_schema(form_of(recipe), may_run_on(recipe))


def sent(recipe: Recipe, **changes: Any) -> dict[str, Any]:
    """What the UI sends for `recipe` once fields are changed: `machine__gpus=[…]` is a field of a group."""
    values = form_of(recipe).model_dump(mode="json")
    for key, value in changes.items():
        group, _, field = key.partition("__")
        values[group][field] = value
    return values


def told(recipe: Recipe) -> dict[str, Any]:
    """What a run makes of the recipe: its values, with the image and the GPUs as they are asked for."""
    values = recipe.model_dump()
    del values["resources"]["image"], values["resources"]["accelerators"]
    images = {name: recipe.resources.image_for(name) for name in may_run_on(recipe)}
    return values | {"images": images, "wanted": recipe.resources.wanted}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_of_ours_comes_back_from_its_form(path: Path) -> None:
    recipe = load_recipe(path).recipe
    assert told(Form.read(sent(recipe)).recipe()) == told(recipe)


def test_a_recipe_that_sets_everything_comes_back_from_its_form() -> None:
    assert told(Form.read(sent(EVERYTHING)).recipe()) == told(EVERYTHING)


def test_gpus_of_one_count_are_shown_by_name_and_others_with_their_own() -> None:
    def shown(*gpus: str) -> tuple[list[str], int]:
        recipe = Recipe.model_validate({"name": "t", "run": "true", "resources": {"gpu": list(gpus)}})
        machine = form_of(recipe).machine
        return machine.gpus, machine.gpu_count

    assert shown("RTX 4090:2", "H20:2") == (["RTX 4090", "H20"], 2)
    assert shown("RTX 4090:2", "H20") == (["RTX 4090:2", "H20"], 1)


def test_what_the_form_does_not_show_travels_beside_it() -> None:
    assert form_of(EVERYTHING).rest == {
        "schedule": {"cron": "0 2 * * *", "timezone": "UTC", "max_lateness": "7200s"},
    }


def parts(schema: Any) -> Iterator[dict[str, Any]]:
    for field in schema["properties"].values():
        yield field
        yield from parts(field) if "properties" in field else ()
        yield from parts(field["items"]) if "properties" in field.get("items", {}) else ()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_each_field_has_a_type_and_a_title_and_none_is_a_union(path: Path) -> None:
    schema = schema_of(load_recipe(path).recipe)
    for field in parts(schema):
        assert {"type", "title"} <= field.keys()
        assert not field.keys() & {"anyOf", "oneOf", "allOf", "$ref"}
        assert field["type"] != "object" or field["properties"], f"{field['title']} would be a box for JSON"
    assert all("position" in group and group["description"] for group in schema["properties"].values())


def test_the_forms_own_values_are_its_defaults_and_fit_its_schema() -> None:
    schema = schema_of(EVERYTHING)
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(sent(EVERYTHING))
    fields = {f"{name}.{key}": field for name, group in schema["properties"].items() for key, field in parts_of(group)}
    assert fields["envs.LR"]["default"] == "1e-3"
    assert fields["limits.max_duration"]["default"] == "90m"
    assert fields["images.autodl"]["default"] == "base-image-l2t43iu6uk"


def parts_of(group: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return list(group["properties"].items())


def test_choices_are_the_clouds_own_and_what_the_recipe_names() -> None:
    machine = schema_of(EVERYTHING)["properties"]["machine"]["properties"]
    assert {"RTX 4090:2", "B200:8", "H20", "RTX 3090"} <= set(machine["gpus"]["items"]["enum"])
    assert {"autodl/newDC9", "autodl", "autodl/beijingDC1", "matrixdc/北京一区"} <= set(
        machine["places"]["items"]["enum"]
    )


def test_a_form_for_one_cloud_shows_nothing_of_another() -> None:
    recipe = Recipe.model_validate({"name": "t", "run": "true", "resources": {"infra": "autodl", "gpu": "L20"}})
    schema = schema_of(recipe)
    assert list(schema["properties"]) == ["job", "machine", "limits", "images", "autodl"]
    assert "matrixdc" not in str(schema["properties"]["machine"])


def test_each_environment_variable_is_a_field() -> None:
    envs = schema_of(EVERYTHING)["properties"]["envs"]
    assert list(envs["properties"]) == ["LR", "EMPTY", "TEXT"]
    assert envs["required"] == ["LR", "TEXT"]  # the UI sends no empty text


def test_changed_and_added_environment_variables_reach_the_recipe() -> None:
    values = sent(EVERYTHING, envs__LR="0.1", job__more_envs=["SEED=3", "EQ=a=b"])
    assert Form.read(values).recipe().envs == {
        **EVERYTHING.envs,
        "LR": "0.1",
        "SEED": "3",
        "EQ": "a=b",
    }


def test_texts_that_the_ui_leaves_out_are_empty() -> None:
    values = sent(EVERYTHING)
    for group, field in [("job", "setup"), ("job", "workdir"), ("machine", "cuda"), ("snapshot", "name")]:
        del values[group][field]
    recipe = Form.read(values).recipe()
    assert (recipe.setup, recipe.workdir, recipe.resources.cuda, recipe.snapshot) == (None, "", "", None)


BAD = [
    ("machine__gpus", ["GTX 99"], "GTX 99"),
    ("machine__gpus", [], "[]"),
    ("machine__gpu_count", 0, "0"),
    ("machine__places", ["mars"], "mars"),
    ("machine__cuda", "latest", "latest"),
    ("machine__max_price_cny_per_h", -1, "-1"),
    ("limits__max_duration", "90", "90"),
    ("limits__max_duration", "soon", "soon"),
    ("limits__budget_cny", "ten", "ten"),
    ("limits__retry_on", ["rain"], "rain"),
    ("job__name", "Has Capitals", "Has Capitals"),
    ("job__more_envs", ["LR"], "LR"),
    ("job__secrets", ["HF_TOKEN=x"], "HF_TOKEN"),
    ("job__outputs", ["runs"], "runs"),
    ("job__file_mounts", [{"on_machine": "data", "on_host": "/srv"}], "data"),
    ("autodl__deployment_type", "Batch", "Batch"),
    ("matrixdc__cost_type", 9, "9"),
]


@pytest.mark.parametrize(("field", "value", "quoted"), BAD)
def test_the_servers_own_check_refuses(field: str, value: Any, quoted: str) -> None:
    with pytest.raises(ValidationError, match=quoted.replace("[", "\\[")):
        Draft202012Validator(schema_of(EVERYTHING)).validate(sent(EVERYTHING, **{field: value}))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("job__more_envs", ["A=1", "A=2"], "job.more_envs: A stands there twice; leave one"),
        ("job__outputs", ["a=1", "a=2"], "job.outputs: a stands there twice; leave one"),
        ("job__more_envs", ["GPUJOBS_X=1"], "names that begin with GPUJOBS_ are set by gpujobs"),
        ("job__more_envs", ["HF_TOKEN=1"], "stands in both envs and secrets"),
        ("limits__max_duration", "400d", "is longer than a year; write less"),
        ("limits__max_duration", "0s", "max_duration must be above 0"),
        ("machine__gpus", ["RTX 4090:"], "is not a GPU; write NAME or NAME:COUNT"),
        ("matrixdc__cost_time", "", "matrixdc: Value error, cost_type 4 needs cost_time"),
        ("limits__attempts", 3.5, "limits.attempts: Input should be a valid integer"),
    ],
)
def test_what_only_we_can_check_is_refused_in_plain_words(field: str, value: Any, words: str) -> None:
    with pytest.raises(BadInput) as error:
        Form.read(sent(EVERYTHING, **{field: value})).recipe()
    assert words.replace("Value error, ", "") in str(error.value)


def test_a_secret_typed_for_a_name_is_not_repeated() -> None:
    with pytest.raises(BadInput) as error:
        Form.read(sent(EVERYTHING, job__secrets=["hf_value of mine"])).recipe()
    assert "mine" not in str(error.value)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (90, "90s"), (5400, "90m"), (7200, "2h"), (172800, "2d")])
def test_durations_are_written_as_people_do(seconds: int, text: str) -> None:
    assert duration(seconds) == text


def test_every_backend_names_its_gpus_and_regions() -> None:
    for name in backends.names():
        assert backends.catalogue(name).gpus
        assert backends.catalogue(name).regions
