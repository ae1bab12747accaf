"""Runs recipes that are started in the Prefect UI, each in a process of its own.

`python flows/serve.py`, for one machine and a few runs at a time; `gpujobs serve` runs many in one process.
"""

from datetime import timedelta

from prefect import serve
from reap import reap
from run_recipe import run_recipe

if __name__ == "__main__":
    serve(
        run_recipe.to_deployment("served", tags=["gpujobs"]),
        reap.to_deployment("served", interval=timedelta(minutes=10), tags=["gpujobs"]),
        limit=20,
        pause_on_shutdown=False,
    )
