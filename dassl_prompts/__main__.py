"""``dassl-prompts``: every command of the package under one name."""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys

from dassl_prompts import __version__
from dassl_prompts.commands import BY_NAME, COMMANDS

SHELLS = ("bash", "zsh", "tcsh")


def overview() -> str:
    """What there is, a line and an example each."""
    lines = [f"dassl-prompts {__version__}: prompt learning for vision-language models", ""]
    for command in COMMANDS:
        lines += [
            f"  {command.name:<8} {command.help}",
            f"           dassl-prompts {command.name} {command.example}".rstrip(),
        ]
    lines += [
        "",
        "  dassl-prompts COMMAND --help says more; each is also python -m dassl_prompts.COMMAND.",
        f'  Completion of the shell: eval "$(dassl-prompts completion bash)"  (or {", ".join(SHELLS[1:])})',
    ]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """All commands' arguments in one tree, as completion needs them."""
    tree = argparse.ArgumentParser(prog="dassl-prompts")
    tree.add_argument("--version", action="version", version=__version__)
    names = tree.add_subparsers()
    for command in COMMANDS:
        own = command.parser()
        names.add_parser(command.name, help=command.help, parents=[own], add_help=False, conflict_handler="resolve")
    return tree


def completion(argv: list[str]) -> int:
    import shtab

    if argv[:1] == [] or argv[0] not in SHELLS:
        print(f"error: dassl-prompts completion takes one of {', '.join(SHELLS)}", file=sys.stderr)
        return 2
    print(shtab.complete(parser(), shell=argv[0]))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Dispatch to a command; alone, print the overview."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    name, rest = argv[0], argv[1:]
    if name in ("--version", "-V"):
        print(__version__)
        return 0
    if name != "completion" and name not in BY_NAME:
        near = difflib.get_close_matches(name, BY_NAME, n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        print(f"error: no command {name!r}{meant}; there are {', '.join(BY_NAME)}", file=sys.stderr)
        return 2
    try:
        code = completion(rest) if name == "completion" else BY_NAME[name].main(rest)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head` has seen enough; what is left in the buffer would raise again at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


if __name__ == "__main__":
    raise SystemExit(main())
