"""The README's and the documents' own lines, so that a wrong one fails: shell blocks, by the heading that they stand below."""

import re

from lab.layout import REPOSITORY

README = "README.md"
INSTALL = "docs/install.md"


def blocks(document: str, heading: str) -> list[str]:
    """The shell blocks below a heading, up to the next one."""
    found, is_below, block = [], False, None
    for line in (REPOSITORY / document).read_text().splitlines():
        if block is not None:
            if line == "```":
                found.append("".join(block))
                block = None
            else:
                block.append(f"{line}\n")
        elif line.startswith("#"):
            is_below = line.lstrip("# ") == heading
        elif line == "```sh" and is_below:
            block = []
    if not found:
        raise ValueError(f"{document} has no shell block below “{heading}”")
    return found


def steps(block: str) -> list[str]:
    """A block's steps, each of which begins with a comment and its number."""
    return [step for step in re.split(r"(?m)^(?=# \d+\. )", block) if step.strip()]


def exchanged(text: str) -> str:
    """The same lines for the other host: names and addresses the other way round."""
    other = {"ha": "hb", "hb": "ha", "192.0.2.11": "192.0.2.12", "192.0.2.12": "192.0.2.11"}
    return re.sub(r"\b(?:h[ab]|192\.0\.2\.1[12])\b", lambda found: other[found[0]], text)
