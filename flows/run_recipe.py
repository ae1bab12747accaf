"""The flow that runs a recipe. Deploy it as it stands, or wrap it in a flow of your own."""

from gpujobs.flow import run_recipe

__all__ = ["run_recipe"]
