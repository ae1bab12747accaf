"""Trains the digits model each night, on whatever cloud is cheapest. Copy it for a nightly job of your own.

`gpujobs deploy recipes/quickstart.yaml --cron "0 2 * * *"` does the same without a flow. A flow is for what a recipe
cannot say: parameters with types and bounds of their own, or values that are worked out when the night has come.
"""

from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import Field

from gpujobs.flow import run_recipe
from gpujobs.recipe_file import load_recipe

RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"

LearningRate = Annotated[float, Field(gt=0, le=1)]
Epochs = Annotated[int, Field(ge=1, le=1000)]


@flow(
    name=run_recipe.name,  # so that a host goes on with it after a restart, as with any recipe
    flow_run_name="nightly-digits-lr{learning_rate}",
    retries=0,
    persist_result=False,
)
async def nightly_digits(learning_rate: LearningRate = 0.02, epochs: Epochs = 60) -> State[Any]:
    """Train the digits model on a rented GPU machine, bring the results home, switch it off.

    Args:
        learning_rate: of the gradient descent, up to 1
        epochs: passes over the data, up to 1000
    """
    values = {"name": "nightly-digits", "envs.LR": learning_rate, "envs.EPOCHS": epochs}
    recipe = load_recipe(RECIPE, [f"{key}={value}" for key, value in values.items()]).recipe
    ended: State[Any] = await run_recipe.fn(recipe)  # this flow run is the recipe's run: no flow within a flow
    return ended
