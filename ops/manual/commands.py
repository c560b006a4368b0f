"""PURE: gpop(1), from the command lines that `gpop.cli` describes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from gpop import __version__, cli
from gpop.config import DEFAULT_PATH
from ops.manual import roff

PURPOSE = "a POP3 server for Maildir stores"
DESCRIPTION = """\
Most POP3 sessions find no new mail. gpop keeps the answer to that lying in each maildrop, so that a poll
which finds nothing new costs next to nothing, however many messages there are. Each session is a process
of its own that has given up root and locked itself into the maildrop, and the log says of each what the
cache did."""
STATUSES = (
    ("0", "Done."),
    ("1", "It failed, or found what it was to look for."),
    ("2", "The command line or the config is wrong; nothing was started."),
)
SIGNALS = (
    ("SIGHUP", "The config is read again. With errors in it nothing changes; no session ends."),
    ("SIGTERM", "No new connections; sessions have server.grace_time_s to end. A second one ends them now."),
)


def page() -> Iterator[str]:
    """Return the lines of gpop.1."""
    parser = cli.parser(cli.COMMANDS)
    yield from roff.head("gpop", 1, __version__, PURPOSE)
    yield from roff.heading("SYNOPSIS")
    yield f"{roff.bold('gpop')} {roff.italic('COMMAND')} [{roff.italic('ARGUMENT')} ...]"
    yield from roff.heading("DESCRIPTION")
    yield roff.text(DESCRIPTION)
    yield from roff.heading("COMMANDS")
    for name, command in _subcommands(parser):
        yield from roff.subheading(f"gpop {name}")
        yield from _command(f"gpop {name}", command)
    yield from roff.heading("SIGNALS")
    yield roff.text("To the broker, the process that gpop serve becomes:")
    for tag, meaning in SIGNALS:
        yield from roff.tagged(roff.bold(tag), roff.text(meaning))
    yield from roff.heading("EXIT STATUS")
    for tag, meaning in STATUSES:
        yield from roff.tagged(tag, roff.text(meaning))
    yield from roff.heading("FILES")
    yield from roff.tagged(roff.italic(DEFAULT_PATH), "The config, see gpop.toml(5).")
    yield from roff.tagged(roff.italic(".statcache"), "In each Maildir: the cache. Losing it costs time.")
    yield from roff.heading("SEE ALSO")
    yield "gpop.toml(5)"


def _subcommands(parser: argparse.ArgumentParser) -> list[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return list(action.choices.items())
    return []


def _command(words: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """One command: what it does, what it takes; and its own commands, where it has some."""
    yield roff.text(f"{_sentence(parser.description or '')}")
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            yield from roff.tagged(_tag(action), roff.text(_help(action)))
    for name, sub in _subcommands(parser):
        yield from roff.paragraph(roff.bold(f"{words} {name}"), ".br")
        yield from _command(f"{words} {name}", sub)


def _tag(action: argparse.Action) -> str:
    choices = "|".join(map(str, action.choices or ()))
    value = roff.italic(str(action.metavar or choices or action.dest.upper()))
    if not action.option_strings:
        return value
    options = ", ".join(map(roff.bold, action.option_strings))
    return options if action.nargs == 0 else f"{options} {value}"


def _help(action: argparse.Action) -> str:
    filled = (action.help or "") % (vars(action) | {"prog": "gpop"})
    return _sentence(filled)


def _sentence(words: str) -> str:
    first, _, rest = words.partition(" ")
    # "pop3=on|off" is no word to begin a sentence with.
    first = first if "=" in first else first[:1].upper() + first[1:]
    return " ".join(filter(None, (first, rest))) + ("" if words.endswith(".") else ".")
