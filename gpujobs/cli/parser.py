"""The command line's grammar. What a command does is in its own file, imported once the command is known."""

import argparse
import difflib
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, NoReturn

from gpujobs.errors import BadInput

_EPILOG = """exit codes: 0 done; 1 the job failed; 2 bad input; 3 nothing could be rented; 4 cancelled;
5 over budget or time; 6 the machine was lost; 70 an error of gpujobs itself"""

Words = Callable[[argparse.ArgumentParser], None]


class Command(NamedTuple):
    """One command: where its function is, the words that it takes, and whether it asks a cloud."""

    name: str
    help: str
    module: str  # of gpujobs.cli; its function has the command's name
    words: Words
    cloud: bool = False  # --fake must have its server up
    fakeable: bool = True


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        """Raise BadInput instead of printing the usage and exiting."""
        raise BadInput(f"{message}; see: {self.prog} --help")


def _recipe(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    parser.add_argument("recipe", metavar="RECIPE", nargs=nargs, help="the recipe's YAML file; - reads standard input")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="as resources.infra=autodl"
    )


def _run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run", metavar="RUN", nargs="?", default="-", help="id, start of an id, or name; else the latest"
    )


def _nothing(_: argparse.ArgumentParser) -> None:
    pass


def _init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", default="recipe.yaml", help="recipe.yaml; - prints it")


def _submit(parser: argparse.ArgumentParser) -> None:
    _recipe(parser, nargs="?")
    parser.add_argument(
        "--retry-failed", metavar="RUN", default=None, help="instead of a recipe: that run's tasks that did not succeed"
    )
    parser.add_argument("--here", action="store_true", help="run it in this process, without a controller")
    parser.add_argument("--detach", "-d", action="store_true", help="start it and come back at once")
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask before renting")


def _deploy(parser: argparse.ArgumentParser) -> None:
    _recipe(parser)
    parser.add_argument("--all", action="store_true", help="RECIPE is a folder: deploy every recipe in it")
    parser.add_argument("--cron", default=None, metavar="LINE", help='when it runs by itself, as "0 2 * * *"')
    parser.add_argument("--timezone", default=None, metavar="ZONE", help="of the cron line (Asia/Shanghai)")
    parser.add_argument("--name", default=None, help="of the deployment; else the recipe's")
    parser.add_argument("--pool", default="gpujobs", help="the work pool whose hosts run it (gpujobs)")


def _ls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", "-n", type=_count, default=None, metavar="N", help="only the newest N")
    parser.add_argument("--state", action="append", default=[], help="only runs in this state")


def _logs(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    parser.add_argument("--follow", "-f", action="store_true", help="go on until the run ends")
    parser.add_argument("--attempt", type=_count, default=None, metavar="N", help="of an earlier attempt")


def _cancel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="id, start of an id, or name; - is the latest")


def _pull(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    parser.add_argument("--to", default=None, metavar="DIR", help="a folder for them; else NAME-RUN in this one")


def _ssh(parser: argparse.ArgumentParser) -> None:
    _run(parser)
    parser.usage = "gpujobs ssh [RUN] [--print] [--json] [--fake] [-- COMMAND ...]"
    parser.add_argument("--print", dest="show", action="store_true", help="only show the ssh command")


def _cost(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", nargs="?", default=None, help="one run's bills; else those of all")


def _offers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("gpu", metavar="GPU", nargs="+", help='NAME[:COUNT], as "RTX 4090" or H20:8')
    parser.add_argument("--infra", action="append", default=[], metavar="PLACE", help="backend or backend/region")


def _reap(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", "-y", action="store_true", help="release what the ledger does not know, too")


def _adopt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", "-y", action="store_true", help="write into the ledger what would be adopted")


def _up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait", type=_seconds, default=90.0, metavar="SECONDS", help="for its server to answer (90)")
    parser.add_argument("--automations", action="store_true", help="have crashed and silent runs call the reaper")
    _serve(parser)


def _serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit", type=_count, default=None, metavar="N", help="runs at a time, of all hosts: your quota"
    )


COMMANDS: Sequence[Command] = (
    Command("init", "write a commented recipe to start from", "recipes", _init, fakeable=False),
    Command("plan", "show offers, choice and cost; rents nothing", "recipes", _recipe, cloud=True),
    Command("submit", "run a recipe on a rented machine", "submit", _submit, cloud=True),
    Command("deploy", "put a recipe into Prefect: its form, its schedule", "deploy", _deploy, cloud=True),
    Command("ls", "list the runs", "runs", _ls),
    Command("status", "say where a run stands", "runs", _run),
    Command("logs", "print what a run's job wrote", "logs", _logs),
    Command("wait", "wait for a run's end; ends with its exit code", "logs", _run),
    Command("cancel", "stop a run and release its machine", "cancel", _cancel, cloud=True),
    Command("resume", "go on with a run whose process died", "resume", _cancel, cloud=True),
    Command("pull", "copy a run's outputs into a folder", "outputs", _pull, cloud=True),
    Command("ssh", "log in to a run's machine", "ssh", _ssh, cloud=True),
    Command("cost", "show what runs cost", "runs", _cost),
    Command("offers", "list what can be rented now", "clouds", _offers, cloud=True),
    Command("machines", "list the rented machines, as the clouds tell it", "clouds", _nothing, cloud=True),
    Command("images", "list images that can be booted", "clouds", _nothing, cloud=True),
    Command("snapshots", "list the disks that were saved", "clouds", _nothing),
    Command("reap", "release machines that no living run owns", "clouds", _reap, cloud=True),
    Command("adopt", "rebuild a lost ledger from what is rented", "adopt", _adopt, cloud=True),
    Command("doctor", "check settings, tokens, clouds and tools", "doctor", _nothing, cloud=True),
    Command("up", "start the local controller", "control", _up, cloud=True),
    Command("down", "end the local controller", "control", _nothing),
    Command("serve", "run recipes in this process, for a Prefect server", "control", _serve, cloud=True),
    Command("schema", "print the recipe's JSON schema, for editors", "recipes", _nothing, fakeable=False),
)


def parse(argv: Sequence[str]) -> tuple[Command, argparse.Namespace]:
    """Read the command line; raises BadInput, or SystemExit once it has printed help or the version."""
    known = {command.name: command for command in COMMANDS}
    if argv and not argv[0].startswith("-") and argv[0] not in known:
        raise BadInput(f"there is no command {argv[0]}{_nearest(argv[0], list(known))}; see: gpujobs --help")
    cut = list(argv).index("--") if "--" in argv and argv[0] == "ssh" else len(argv)
    args = _build().parse_args(argv[:cut], argparse.Namespace(words=list(argv[cut + 1 :])))
    return known[args.command], args


def _build() -> Parser:
    top = Parser(
        prog="gpujobs",
        description="Rent a GPU, run a recipe on it, bring the results home, switch it off.",
        epilog=_EPILOG,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=16),
        allow_abbrev=False,
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        parser = commands.add_parser(command.name, help=command.help, description=command.help, allow_abbrev=False)
        command.words(parser)
        parser.add_argument("--json", action="store_true", help="print JSON alone on standard output")
        if command.fakeable:
            parser.add_argument("--fake", action="store_true", help="use a local fake cloud, which rents nothing")
    return top


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version  # noqa: PLC0415 - costs more than all of the rest

        print(f"gpujobs {version('gpujobs')}")  # noqa: T201 - what was asked for
        parser.exit()


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 up")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 86400:  # noqa: PLR2004 - a day
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return value
