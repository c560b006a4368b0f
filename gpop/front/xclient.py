"""
PURE: XCLIENT, with which a proxy that speaks POP3 itself says for whom it does.

As Dovecot's pop3-login takes it and its proxy sends it: `XCLIENT ADDR=192.0.2.7 PORT=4711 DESTADDR=…
DESTPORT=… SESSION=… TTL=… CLIENT-TRANSPORT=TLS`. Who may give it is decided elsewhere.
"""

from __future__ import annotations

from gpop.front.proxy_header import TLS_UNNAMED, Address, Header, normal_address, port_number


class BadXclient(ValueError):
    """The arguments are not usable; nothing of them counts."""


def parse(arguments: bytes, local: Address) -> Header:
    """
    Return what XCLIENT says of the client; without DESTADDR and DESTPORT `local` stays as it is.

    Keys are in any case. Those gpop has no use for (SESSION, TTL, FORWARD, LOGIN, PROTO, ...) are ignored.

    Raises:
        BadXclient: an address or a port is none; or ADDR is missing: whoever speaks for clients
            and does not say for which would be taken for the client itself.
    """
    given = {}
    for word in arguments.decode("ascii", "backslashreplace").split(" "):
        key, _, value = word.partition("=")
        given[key.upper()] = value
    if "ADDR" not in given:
        raise BadXclient
    try:
        peer = normal_address(given["ADDR"]), port_number(given.get("PORT", "0"))
        destination = normal_address(given["DESTADDR"]) if "DESTADDR" in given else local[0]
        local = destination, port_number(given.get("DESTPORT", str(local[1])))
    except ValueError:
        raise BadXclient from None
    return Header(peer, local, TLS_UNNAMED if given.get("CLIENT-TRANSPORT", "").startswith("TLS") else None)
