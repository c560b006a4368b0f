"""
The command table: every keyword gpop knows, the shape of its argument, the states it is legal in.

What is legal now and what CAPA announces are read from here. Pure: what a command does is the business of
`authorization` and `transaction`. Executed by the front and by the session.
"""

from __future__ import annotations

from gpop.pop3.decisions import Reply
from gpop.pop3.wire import HAS_NUL, TOO_LONG, LineError, err, multiline, ok

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Arguments = tuple[bytes | int | None, ...]
    Shape = Callable[[bytes], Arguments | Reply]

# No maildrop and no message comes near 2**64; what is longer is not read as a number at all.
MAX_DIGITS = 20


# The states in which a client may give commands (RFC 1939 §3). UPDATE reads none.
AUTHORIZATION = "AUTHORIZATION"
TRANSACTION = "TRANSACTION"
STATES = (AUTHORIZATION, TRANSACTION)


# --- Shapes: what follows the keyword and its one space, as a tuple of arguments, or the reply refusing it.
# Spaces at the end carry nothing and some clients send them; elsewhere one space is the rule (RFC 1939 §3).

_UNWANTED_ARGUMENT = Reply(err("This command takes no argument"))
_NO_NUMBER = Reply(err("A message-number is needed, in digits"))
_NO_LANGUAGE_RANGE = Reply(err("LANG takes one language tag"))
_NO_LINE_COUNT = Reply(err("A message-number and a line count are needed, in digits"))


def no_argument(rest: bytes) -> Arguments | Reply:
    return _UNWANTED_ARGUMENT if rest.strip(b" ") else ()


def rest_of_line(rest: bytes) -> Arguments | Reply:
    """Names and passwords may contain spaces, begin and end with them."""
    return (rest,)


def mechanism_and_initial_response(rest: bytes) -> Arguments | Reply:
    mechanism, _, initial_response = rest.rstrip(b" ").partition(b" ")
    return mechanism, initial_response or None


def optional_language_range(rest: bytes) -> Arguments | Reply:
    wanted = rest.strip(b" ")
    return _NO_LANGUAGE_RANGE if b" " in wanted else (wanted,)


def message_number(rest: bytes) -> Arguments | Reply:
    number = _number(rest.rstrip(b" "))
    return _NO_NUMBER if number is None else (number,)


def optional_message_number(rest: bytes) -> Arguments | Reply:
    return message_number(rest) if rest.strip(b" ") else (None,)


def message_number_and_line_count(rest: bytes) -> Arguments | Reply:
    first, _, second = rest.rstrip(b" ").partition(b" ")
    number, line_count = _number(first), _number(second)
    return _NO_LINE_COUNT if number is None or line_count is None else (number, line_count)


def _number(word: bytes) -> int | None:
    """Digits only: no sign, no trailing noise; 2**32 + 1 is no other name for 1."""
    return int(word) if word.isdigit() and len(word) <= MAX_DIGITS else None


# --- The table.


class Command:
    """One command; `capability` is the name under which CAPA announces it, if it does."""

    __slots__ = ("arguments", "capability", "keyword", "rfc", "states")

    def __init__(
        self, keyword: bytes, arguments: Shape, states: tuple[str, ...], rfc: str, capability: str = ""
    ) -> None:
        self.keyword = keyword
        self.arguments = arguments
        self.states = states
        self.rfc = rfc
        self.capability = capability


COMMANDS = {
    command.keyword: command
    for command in (
        Command(b"USER", rest_of_line, (AUTHORIZATION,), "RFC 1939 §7", capability="USER"),
        Command(b"PASS", rest_of_line, (AUTHORIZATION,), "RFC 1939 §7"),
        Command(b"AUTH", mechanism_and_initial_response, (AUTHORIZATION,), "RFC 5034 §4", capability="SASL"),
        Command(b"STLS", no_argument, (AUTHORIZATION,), "RFC 2595 §4", capability="STLS"),
        Command(b"CAPA", no_argument, STATES, "RFC 2449 §5"),
        # After the login as well, because Outlook says it there: see `Transaction`.
        Command(b"UTF8", no_argument, STATES, "RFC 6856 §2.1", capability="UTF8 USER"),
        Command(b"LANG", optional_language_range, STATES, "RFC 6856 §3", capability="LANG"),
        Command(b"STAT", no_argument, (TRANSACTION,), "RFC 1939 §5"),
        Command(b"LIST", optional_message_number, (TRANSACTION,), "RFC 1939 §5"),
        Command(b"UIDL", optional_message_number, (TRANSACTION,), "RFC 1939 §7", capability="UIDL"),
        Command(b"RETR", message_number, (TRANSACTION,), "RFC 1939 §5"),
        Command(b"TOP", message_number_and_line_count, (TRANSACTION,), "RFC 1939 §7", capability="TOP"),
        Command(b"DELE", message_number, (TRANSACTION,), "RFC 1939 §5"),
        Command(b"RSET", no_argument, (TRANSACTION,), "RFC 1939 §5"),
        Command(b"NOOP", no_argument, (TRANSACTION,), "RFC 1939 §5"),
        Command(b"QUIT", no_argument, STATES, "RFC 1939 §4, §6"),
    )
}

_UNKNOWN = Reply(err("Unknown command"))
_ILLEGAL = {state: Reply(err(f"Not a command of the {state} state")) for state in STATES}
LINE_REFUSALS = {error: Reply(err(error.text)) for error in (TOO_LONG, HAS_NUL)}


def parse(line: bytes | LineError, state: str) -> tuple[bytes, Arguments] | Reply:
    """Return the keyword, in upper case, and the arguments of a command legal in `state`; or its refusal."""
    if isinstance(line, LineError):
        return LINE_REFUSALS[line]
    keyword, _, rest = line.partition(b" ")
    command = COMMANDS.get(keyword.upper())
    if command is None:
        return _UNKNOWN
    if state not in command.states:
        return _ILLEGAL[state]
    arguments = command.arguments(rest)
    if isinstance(arguments, Reply):
        return arguments
    return command.keyword, arguments


def without_secret(line: bytes | LineError, sasl_response: bool = False) -> bytes:
    """
    Return a line of the client's fit for a log.

    What is, or may be by mistake, a password is left out: an unknown command may be a SASL
    response that was sent before anybody asked for it, or a PASS with a letter missing.
    """
    if isinstance(line, LineError):
        return line.name.encode("ascii")
    if sasl_response:
        return b"(SASL response)"
    keyword, space, rest = line.partition(b" ")
    if keyword.upper() not in COMMANDS:
        return b"(unknown command of %d octets)" % len(line)
    if keyword.upper() == b"PASS" and space:
        return keyword + b" (hidden)"
    mechanism, space, _ = rest.partition(b" ")
    if keyword.upper() == b"AUTH" and space:
        return keyword + b" " + mechanism + b" (hidden)"
    return line


# --- CAPA.

# The SASL mechanisms that `authorization` can speak.
MECHANISMS = ("PLAIN", "LOGIN")

# Announced for what they say about every command: RFC 2449 §6.4, RFC 3206, RFC 2449 §6.6.
_PROMISES = ("RESP-CODES", "AUTH-RESP-CODE", "PIPELINING")
# RFC 2449 §6.9. A version is nobody's business before a login.
_IMPLEMENTATION = "IMPLEMENTATION gpop"


def policies(login_delay_s: int, expire_days: int) -> tuple[str, ...]:
    """
    Return what the settings say in CAPA, for `capability_list` (RFC 2449 §6.5, §6.7).

    `expire_days` is how long a message stays at least once it was retrieved; -1 means that nothing but DELE
    and QUIT removes one. Both hold for all users, so there is no "USER" behind them in either state.
    """
    expire = f"EXPIRE {'NEVER' if expire_days < 0 else expire_days}"
    return (expire, f"LOGIN-DELAY {login_delay_s}") if login_delay_s else (expire,)


NO_POLICIES = policies(0, -1)


class Offer:
    """
    What a connection is offered at the moment; what CAPA says and what is refused follow from it.

    `user`: USER and PASS. `mechanisms`: those of AUTH. `stls`: that TLS may begin. `policies`: what the
    settings say, see there.
    """

    __slots__ = ("mechanisms", "policies", "stls", "user")

    def __init__(
        self,
        user: bool = True,
        mechanisms: tuple[str, ...] = MECHANISMS,
        stls: bool = False,
        policies: tuple[str, ...] = NO_POLICIES,
    ) -> None:
        self.policies = policies
        self.user = user
        self.mechanisms = mechanisms
        self.stls = stls


# Every way to log in: over TLS, or where passwords may be sent readable. It is also what a session says:
# whoever has logged in was offered just this, and STLS is no capability of TRANSACTION (RFC 2595 §4).
EVERY_LOGIN = Offer()


def capability_list(offer: Offer) -> Reply:
    """
    Return the answer to CAPA, which is the same in both states but for what `offer` says.

    What can be used in AUTHORIZATION must be announced in TRANSACTION too (RFC 2449 §5), and TOP and UIDL in
    both (§6.1, §6.8): many clients ask only once, before they log in. Without a mechanism there is no line
    "SASL": it would be a lie.
    """
    lines = [command.capability for command in COMMANDS.values() if command.capability]
    lines[lines.index("SASL")] = " ".join(["SASL", *offer.mechanisms])
    left_out = {"SASL", *([] if offer.user else ["USER"]), *([] if offer.stls else ["STLS"])}
    lines += [*_PROMISES, *offer.policies, _IMPLEMENTATION]
    lines = [line for line in lines if line not in left_out]
    return Reply(multiline(ok("capability list follows"), [line.encode("ascii") for line in lines]))
