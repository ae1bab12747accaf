#!/bin/sh
# Installs uv where it is missing, into .tools: beside the project, not into the user's own Python.
set -eu
python=$(command -v python3.11 || command -v python3)
"$python" -m venv .tools
.tools/bin/python -m pip install --quiet --disable-pip-version-check "uv>=0.9,<1"
