"""The scripts that put a foreman on a machine and join a channel to it; and that find the Python there."""

import posixpath
import shlex

from gpujobs.remote import IN_WORKDIR
from gpujobs.shell import quote_path

_FIND = """\
gj_refuse() {{ printf '%s\\n' "$*" >{folder}/out/refused; printf 'gpujobs: %s\\n' "$*" >&2; exit 2; }}
gj_python=$({find}) || gj_python=
"""
_FLEET_RUN = """\
{find_it}[ -n "$gj_python" ] || gj_refuse {absent}
"$gj_python" -c 'import sys; sys.exit(sys.version_info < (3, 6))' ||
  gj_refuse "the machine's Python is $("$gj_python" -V 2>&1), and a call needs 3.6 or later; name another with python="
exec "$gj_python" {folder}/foreman.py
"""
_JOIN = """\
exec 2>/dev/null
cd {folder} || exit 70
until [ -s python ]; do
  [ ! -f ../../exit.json ] || exit 3
  sleep 0.1 2>/dev/null || sleep 1
done
read -r gj_python <python
exec "$gj_python" relay.py
"""


def foreman_script(python: str) -> str:
    """Write the `run` of a machine that takes tasks."""
    return filled(_FLEET_RUN, python)


def join_script(work: str) -> str:
    """Write what joins a channel to the foreman of the machine whose work's folder is `work`; waits for its start."""
    return _JOIN.format(folder=quote_path(posixpath.join(work, IN_WORKDIR)))


def filled(script: str, python: str, **more: str) -> str:
    """Fill a script with how the Python is found, and what is said where there is none."""
    absent = shlex.quote(
        f"there is no {python or 'Python'} on the machine; name one with python=, or an image= that has it"
    )
    return script.format(find_it=find_python(python), folder=IN_WORKDIR, absent=absent, **more)


def find_python(python: str) -> str:
    """Write what sets gj_python; empty where there is none."""
    find = f"command -v {shlex.quote(python)}" if python else "command -v python3 || command -v python"
    return _FIND.format(find=find, folder=IN_WORKDIR)
