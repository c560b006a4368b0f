"""
EDGE: what commands ask a gpop that runs: over the control socket that its config names.

Executed by an administrator, as root or as the user who has started that gpop.
"""

from __future__ import annotations

import os
import socket
import sys

from gpop.config import DEFAULT_PATH, ConfigErrors, reading
from gpop.events import printable_text
from gpop.privsep import channel, messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

ANSWER_TIMEOUT_S = 10


class CommandFailed(Exception):
    """What keeps the command from being done, in words for whoever typed it; `complain` prints them."""


def complain(command: str, error: CommandFailed) -> None:
    """Say on standard error, line by line, why `command` could not be done."""
    for line in str(error).splitlines():
        print(f"gpop {command}: {printable_text(line)}", file=sys.stderr)


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Describe `--config`."""
    text = "the config file of the gpop that runs (default: %(default)s)"
    parser.add_argument("--config", metavar="FILE", default=DEFAULT_PATH, help=text)


def settings(config_path: str) -> dict[str, Any]:
    """
    Return the values of a config file, by their fields.

    Raises:
        CommandFailed: the file has errors.
    """
    read = reading.read(config_path)
    if read.errors:
        raise CommandFailed(str(ConfigErrors(read.errors)))
    return read.values


def ask(config_path: str, kind: int, **fields: Any) -> tuple[messages.Frame, list[int]]:
    """
    Return a running broker's answer to one request, and its descriptors, now the caller's.

    Raises:
        CommandFailed: nobody answers there, or not to us.
    """
    path = os.path.join(settings(config_path)["run_dir"], messages.CONTROL_SOCKET)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(ANSWER_TIMEOUT_S)
            sock.connect(path)
            channel.send(sock, messages.encode(kind, **fields))
            return channel.receive(sock)
    except FileNotFoundError:
        raise CommandFailed(f"{path} is not there; is gpop running with this config?") from None
    except ConnectionRefusedError:
        raise CommandFailed(f"{path}: nobody listens there; gpop has stopped") from None
    except PermissionError:
        raise CommandFailed(f"{path}: gpop answers root and its own user only") from None
    except channel.ChannelClosed:
        raise CommandFailed(f"{path}: gpop hung up: it answers root and its own user only") from None
    except (OSError, messages.BadFrame, channel.ShortOfDescriptors) as error:
        raise CommandFailed(f"{path}: {error}") from None
