"""The command line: `python -m fusedopt`, or the console script `fusedopt`. Only the command asked for is imported."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import fusedopt

COMMANDS = {
    "demo": "train a small language model, resume it half-way, and time the step",
    "doctor": "show what is here and what is missing, and check that the bits are right",
    "kernel": "print the CUDA text that a rule becomes",
    "check": "check a rule of your own: its mathematics, its bits on each backend, its optimizer",
    "bench": "time the fused step beside what one could take instead",
}
# What a user can cause: a variable or an option that cannot work, a rule with an error, a missing library or file.
USER_ERRORS = (ValueError, TypeError, RuntimeError, ImportError, OSError, MemoryError)


def main(words: Sequence[str] | None = None) -> int:
    """Run one command, and return its exit status: 2 for what the user must change, with one line on stderr.

    Under `python -X dev` an error keeps its traceback.
    """
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser("python -m fusedopt", description=f"fusedopt {fusedopt.__version__}")
    parser.add_argument("--version", action="version", version=f"fusedopt {fusedopt.__version__}")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    asked = next((word for word in words if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name == asked:  # no other is imported: rich alone takes longer than `--help` should
            module = importlib.import_module(f"fusedopt.cli.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    arguments = parser.parse_args(words)
    if arguments.run is None:
        parser.print_help()
        return 0
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader has seen enough, as in `fusedopt kernel adam | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130  # as shells report an interrupt
    except USER_ERRORS as error:
        if sys.flags.dev_mode:
            raise
        print(f"{asked}: {error}", file=sys.stderr)
        return 2
