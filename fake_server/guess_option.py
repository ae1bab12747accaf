"""--guess NAME=VALUE: another decision on what the providers leave open."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fake_server.timings import Guesses


class GuessOption(argparse.Action):
    """Collects the guesses into one Guesses; a name or value that does not exist is refused with what does."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Take one more."""
        del option_string
        try:
            setattr(namespace, self.dest, changed(getattr(namespace, self.dest) or Guesses(), str(values)))
        except ValueError as wrong:
            parser.error(str(wrong))


def changed(guesses: Guesses, text: str) -> Guesses:
    """Return guesses with one of them changed, "NAME=VALUE"; ValueError in words."""
    name, sign, value = text.partition("=")
    known = [each.name for each in fields(Guesses)]
    if not sign or name not in known:
        raise ValueError(f"--guess wants NAME=VALUE with a name of these: {', '.join(known)}")
    try:
        return TypeAdapter(Guesses).validate_python({**asdict(guesses), name: value})
    except ValidationError as wrong:
        raise ValueError(f"--guess {text}: {wrong.errors()[0]['msg']}") from wrong
