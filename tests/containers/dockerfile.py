"""Dockerfiles as instructions: enough of the format for the rules that ours keep."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Instruction", "Stage", "read_stages"]


@dataclass(frozen=True)
class Instruction:
    """One instruction: its keyword, its flags without `--`, and the rest of its line."""

    word: str
    flags: dict[str, str]
    rest: str

    def words(self) -> list[str]:
        """The rest as an exec form, a JSON list. Raises ValueError for a shell form."""
        found: list[str] = json.loads(self.rest)
        return found


@dataclass
class Stage:
    """A stage: its base, its name, and what follows `FROM`."""

    base: str
    name: str
    steps: list[Instruction] = field(default_factory=list)

    def all(self, word: str) -> list[Instruction]:
        """Its instructions of a keyword."""
        return [step for step in self.steps if step.word == word]

    def environment(self) -> dict[str, str]:
        """Its variables."""
        pairs = (pair.partition("=") for step in self.all("ENV") for pair in step.rest.split())
        return {name: value for name, _, value in pairs}


def read_stages(path: Path) -> tuple[dict[str, str], list[Stage]]:
    """The arguments before the first stage with their defaults, and the stages."""
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for step in _instructions(path.read_text(encoding="utf-8")):
        if step.word == "FROM":
            base, _, name = step.rest.partition(" AS ")
            stages.append(Stage(re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], base), name))
        elif stages:
            stages[-1].steps.append(step)
        else:
            assert step.word == "ARG", step
            name, _, default = step.rest.partition("=")
            arguments[name] = default
    return arguments, stages


def _instructions(text: str) -> list[Instruction]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    whole = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found = []
    for line in whole.splitlines():
        word, _, rest = line.partition(" ")
        flags = {}
        while flag := re.match(r"--([\w-]+)=(\S+)\s+", rest):
            flags[flag[1]] = flag[2]
            rest = rest[flag.end() :]
        found.append(Instruction(word, flags, rest.strip()))
    return found
