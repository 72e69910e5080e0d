"""The output of ``deltatap init``: the files of a new folder with their texts, and the commands to try next.

The texts are those of the files that ship with the package. A few lines that fit only a checkout are changed.
Leaves reading and writing files to ``cli/beginning.py``.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONFIG, PRICES, PROMPTS = "conf/local.yml", "conf/our-prices.yml", "prompts.csv"
BUNDLE, OVERRIDES = "databricks.yml", ".databricks/bundle/dev/variable-overrides.json"

_PRICES_TEXT = """\
# Your own prices in USD per million tokens. They come before deltatap's prices, and the first matching pattern applies.
# Remove the # and change the line, for example for a deployment, or for prices in your contract.
# - {model: "our-deployment", input: 2.00, cached_input: 0.50, output: 8.00, date: 2026-11-01, source: "our contract"}
"""
_PROMPTS_TEXT = """\
request_id,prompt
greeting,Say hello in three languages.
count,"Count to 100, with a comma between each number and no newlines."
haiku,Write a haiku about a slow query.
"""
_PRICES_LINE = f"prices: [{PRICES}, conf/prices.yml]   # the first match applies; null: no costs"


def files(shipped: Mapping[str, str], *, wheel: str, uuid: str) -> dict[str, str]:
    """The files to write, by name.

    Args:
        shipped: the texts of the files that ship with the package: ``conf/local.yml``, and those of the bundle if the
            folder should have one.
        wheel: the source of the wheel for pip: a requirement or a URL.
        uuid: of the new bundle.
    """
    config = _replaced(shipped[CONFIG], r"^prices: .*$", _PRICES_LINE)
    own = {CONFIG: config, PRICES: _PRICES_TEXT, PROMPTS: _PROMPTS_TEXT}
    bundle = {name: text for name, text in shipped.items() if name != CONFIG}
    if BUNDLE in bundle:
        build = f"pip wheel --quiet --no-deps --wheel-dir dist {shlex.quote(wheel)}"
        text = _replaced(bundle[BUNDLE], r"(?<=build: )make wheel$", build)
        text = _replaced(text, r"make setup && (?=databricks)", "")
        text = _replaced(text, r" docs/databricks.md describes every step\.$", "")  # not in the wheel
        bundle[BUNDLE] = _replaced(text, r"(?<=uuid: ).*$", uuid)
    return own | bundle


def _replaced(text: str, pattern: str, line: str) -> str:
    changed, times = re.subn(pattern, lambda _: line, text, flags=re.MULTILINE)
    if times != 1:
        raise ValueError(f"a shipped file has {pattern!r} {times} times")
    return changed


def next_steps(folder: str, program: str, *, missing: Sequence[str], databricks: bool) -> list[str]:
    """Lines with the commands to try next. They work when pasted into a shell.

    Args:
        folder: as the user named it; ``.`` if it is the working folder.
        program: how to call ``deltatap`` in a shell.
        missing: the extras to install first.
        databricks: whether the folder has a bundle.
    """
    first = [f"pip install 'deltatap[{','.join(missing)}]'"] if missing else []
    if folder != ".":
        first.append(f"cd {shlex.quote(folder)}")
    tried = [
        f"{program} simulate &",
        f"{program} load {PROMPTS}",
        f"{program} capture --set endpoint.api_key=",
        f"{program} show greeting",
        f"{program} report",
        "kill $!   # stops the simulator",
    ]
    lines = ["to try it with a simulated endpoint, without a key and at no cost:"]
    lines += [f"  {line}" for line in (*first, *tried)]
    lines.append(
        f"for a real endpoint, set endpoint.base_url and endpoint.model in {CONFIG}, export your key, and run:"
    )
    lines.append(f"  {program} check")
    if databricks:
        lines.append(f"to deploy the jobs, set catalog and warehouse_id in {OVERRIDES}, and run:")
        lines += ["  databricks bundle validate --strict --target dev", "  databricks bundle deploy --target dev"]
    return lines


def wheel_source(version: str, direct_url: str | None) -> str:
    """The source of the wheel for pip: the file or folder that deltatap was installed from, or else the package index.

    Args:
        version: of the installed package.
        direct_url: the content of ``direct_url.json`` (PEP 610) of the installed package, if it has one.
    """
    url: str = json.loads(direct_url or "{}").get("url", "")
    return url if url.startswith("file://") else f"deltatap=={version}"
