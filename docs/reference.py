"""Write docs/cli.md from the commands themselves, or check (`--check`) that it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from depthkit.cli import COMMANDS, cli

GOAL = Path(__file__).with_name("cli.md")


def reference() -> str:
    """The help of the group and of every command, as Markdown."""
    parts = ["# Command line\n\nWritten by `make docs` from the commands; `make test` checks that it is up to date.\n"]
    context = cli.make_context("depthkit", [], resilient_parsing=True, terminal_width=100)
    parts.append(f"```\n{cli.get_help(context)}\n```\n")
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        inner = command.make_context(name, [], parent=context, resilient_parsing=True, terminal_width=100)
        parts.append(f"## depthkit {name}\n\n```\n{command.get_help(inner)}\n```\n")
        for part in command.commands.values() if isinstance(command, click.Group) else ():
            deeper = part.make_context(part.name, [], parent=inner, resilient_parsing=True, terminal_width=100)
            parts.append(f"### depthkit {name} {part.name}\n\n```\n{part.get_help(deeper)}\n```\n")
    return "\n".join(parts)


def main() -> int:
    """Write, or compare."""
    text = reference()
    if "--check" not in sys.argv:
        GOAL.write_text(text, encoding="utf-8")
        return 0
    if GOAL.is_file() and GOAL.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write(f"{GOAL} is not what the commands say; run `make docs`\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
