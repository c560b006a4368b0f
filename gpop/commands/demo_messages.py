"""
The messages of `gpop demo`: a dozen of the kinds that a real maildrop holds.

The same octets on every run. Knows no files; executed as the user who started the demo.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from typing import NamedTuple

LINE_END = b"\n"
FIRST_DELIVERY = datetime(2026, 1, 1, 9, 30, 3, tzinfo=UTC)


class DemoMessage(NamedTuple):
    """One file of the demo's Maildir."""

    folder: str
    name: str
    octets: bytes


def messages() -> Iterator[DemoMessage]:
    """Return the files of the Maildir, oldest first; the first three have been read before."""
    contents = [
        _welcome(),
        _eight_bit(),
        _latin_1(),
        _dot_lines(),
        _long_line(),
        _attachment(),
        _alternative(),
        _empty_body(),
        _crlf_file(),
        _forwarded(),
        _report(),
        _list_mail(),
    ]
    for number, octets in enumerate(contents):
        delivered = FIRST_DELIVERY + timedelta(days=number)
        base = f"{int(delivered.timestamp())}.M{number:06d}P1110.demo"
        # Some delivery agents put the file size (S=) and the octets on the wire (W=) into the name.
        if octets.count(b"\r") == 0 and octets.endswith(LINE_END) and number % 2:
            base += f",S={len(octets)},W={len(octets) + octets.count(LINE_END)}"
        yield DemoMessage("cur", f"{base}:2,S", octets) if number < 3 else DemoMessage("new", base, octets)


def _message(number: int, sender: str, subject: str) -> EmailMessage:
    """A message with the headers they all have; the caller adds the content."""
    message = EmailMessage()
    written = datetime(2026, 1, number, 9, 30, tzinfo=UTC)
    message["Received"] = (
        f"from mail.example.net (mail.example.net [192.0.2.{number}]) by mx.example.org with ESMTPS id "
        f"4fDemo{number:02d}; {format_datetime(written + timedelta(seconds=2))}"
    )
    message["From"] = Address(sender, f"sender-{number:02d}", "example.net")
    message["To"] = Address("Demo User", "demo", "example.org")
    message["Subject"] = subject
    message["Date"] = written
    message["Message-ID"] = f"<demo-{number:02d}@example.net>"
    return message


def _octets(message: EmailMessage, number: int) -> bytes:
    """The message as a file; boundaries are random otherwise."""
    for part_number, part in enumerate(message.walk()):
        if part.is_multipart() and part.get_content_maintype() == "multipart":
            part.set_boundary(f"=_demo_{number}_{part_number}")
    return message.as_bytes()


def _random_octets(number: int, count: int) -> bytes:
    return random.Random(number).randbytes(count)


def _welcome() -> bytes:
    message = _message(1, "Postmaster", "Welcome")
    message.set_content(
        "Welcome to the demo maildrop.\n\nEverything here was made by `gpop demo`; nobody really wrote it.\n"
    )
    return _octets(message, 1)


def _eight_bit() -> bytes:
    message = _message(2, "Jürgen Weiß", "Grüße aus Köln und 東京")
    text = "Schöne Grüße!\n東京からこんにちは。\nDziękuję, kiitos, takk \N{SMILING FACE WITH SUNGLASSES}\n"
    message.set_content(text, charset="utf-8", cte="8bit")
    return _octets(message, 2)


def _latin_1() -> bytes:
    message = _message(3, "Zoe Martin", "Vieux logiciel")
    message.set_content("Un caf\xe9, tr\xe8s fort, s'il vous pla\xeet.\n", charset="iso-8859-1", cte="8bit")
    return _octets(message, 3)


def _dot_lines() -> bytes:
    message = _message(4, "Dot Matrix", "Lines that begin with a dot")
    message.set_content(
        "The next line is a single dot, which ends a multi-line response unless it is stuffed.\n.\n"
        "..two dots\n...three\n.profile, .bashrc and other names\n\n.\n..\nThe end.\n.\n",
        cte="7bit",
    )
    return _octets(message, 4)


def _long_line() -> bytes:
    message = _message(5, "Newsletter", "A page of HTML on one line")
    words = " ".join(f'<a href="https://www.example.net/offer/{n}">offer {n}</a>' for n in range(3000))
    message.set_content(f"<html><body>{words}</body></html>\n", subtype="html", cte="7bit")
    return _octets(message, 5)


def _attachment() -> bytes:
    message = _message(6, "Anna Berg", "The scan you asked for")
    message.set_content("Two pages, sorry for the quality.\n\nAnna\n")
    scan = b"%PDF-1.4\n" + _random_octets(6, 150_000)
    message.add_attachment(scan, maintype="application", subtype="pdf", filename="scan für dich.pdf")
    return _octets(message, 6)


def _alternative() -> bytes:
    message = _message(7, "Garden Club", "Sunday, with a picture")
    message.set_content("We meet on Sunday at ten. Bring gloves.\n")
    message.add_alternative(
        '<p>We meet on <b>Sunday</b> at ten. <img src="cid:rose@example.net"> Bring gloves.</p>\n',
        subtype="html",
    )
    picture = base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
    _plain, html = message.iter_parts()
    assert isinstance(html, EmailMessage)
    html.add_related(picture, maintype="image", subtype="png", cid="<rose@example.net>")
    return _octets(message, 7)


def _empty_body() -> bytes:
    return _octets(_message(8, "Otto Kurz", "(all is said in the subject)"), 8)


def _crlf_file() -> bytes:
    """As some delivery agents write: with the line ends that came over the wire."""
    message = _message(9, "Windows Host", "A file with CRLF line ends")
    message.set_content("Every line of this file ends with CR and LF.\nIts octets are its file size.\n")
    return message.as_bytes(policy=SMTP)


def _forwarded() -> bytes:
    inner = _message(1, "Mallory", "You have won")
    inner.set_content("Send us your password.\n")
    message = _message(10, "Anna Berg", "Fwd: You have won")
    message.set_content("Is this real?\n")
    message.add_attachment(inner)
    return _octets(message, 10)


def _report() -> bytes:
    message = _message(11, "Accounts", "Figures of the year")
    message.set_content("The table is attached; totals in € below.\n", cte="quoted-printable")
    table = "month;sum\n" + "".join(f"2025-{month:02d};{month * 1234},56 €\n" for month in range(1, 13))
    message.add_attachment(table, subtype="csv", filename="figures.csv", cte="quoted-printable")
    raw = _random_octets(11, 40_000)
    message.add_attachment(raw, maintype="application", subtype="zip", filename="raw.zip")
    return _octets(message, 11)


def _list_mail() -> bytes:
    """The last line has no line end, as of programs that forget it."""
    message = _message(12, "Maildir Users", "[maildir-users] Digest, Vol 12, Issue 1")
    message["List-Id"] = "People who keep mail in files <maildir-users.example.net>"
    message["List-Unsubscribe"] = "<mailto:maildir-users-leave@example.net>"
    topics = "\n".join(f"{n:3}. Re: a question about {n} messages in one folder" for n in range(1, 120))
    message.set_content(f"Today's topics:\n\n{topics}\n\nEnd of digest\n")
    return _octets(message, 12).removesuffix(LINE_END)
