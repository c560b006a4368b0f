"""
EDGE: certificates and TLS contexts: load them, see whose they are, and choose one for a peer.

Executed by whoever reads the config, to check it, and by the fronts: as root before they drop, and
from then on without a file. It knows no connection and no POP3.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Sequence
from typing import Any

# A certificate that ends so soon should have been renewed: the usual ones are, 30 days before.
SOON_DAYS = 14
VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
# One session ticket per handshake is what a client can use before it has another; OpenSSL's own default is 2.
TICKETS = 1
NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME: one that has expired is to be read, too


class Unusable(Exception):
    """A certificate can't be used; the text says why, in words for an administrator."""


class Certificate:
    """
    A certificate with its key, ready for use.

    Attributes:
        context: makes TLS connections with it.
        names: the host names it is for, in lower case; some begin with "*.".
        not_after, not_after_s: its end, as "2027-01-31T12:00:00Z" and in seconds since 1970.
    """

    __slots__ = ("chain_file", "context", "names", "not_after", "not_after_s")

    def __init__(self, chain_file: str, context: ssl.SSLContext, facts: dict[str, Any]) -> None:
        self.chain_file = chain_file
        self.context = context
        alternatives = facts.get("subjectAltName", ())
        self.names = [name.lower() for kind, name in alternatives if kind == "DNS"]
        self.not_after_s = ssl.cert_time_to_seconds(facts["notAfter"])
        self.not_after = _utc(self.not_after_s)

    def days_left(self, now: float) -> int:
        """Return the whole days until it ends, at `now` (seconds since 1970); below 0 if it has ended."""
        return int((self.not_after_s - now) // 86400)


def load(chain_file: str, key_file: str, min_version: str, ciphers: str) -> Certificate:
    """
    Load one certificate, its chain and its key, and see that TLS can begin with it.

    Raises:
        Unusable: a file can't be read or is not what it should be, key and certificate do not
            belong together, or no client could agree on a cipher with it.
    """
    for path in (chain_file, key_file):
        try:
            open(path, "rb").close()
        except OSError as error:
            raise Unusable(f"{path} can't be read: {error.strerror}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Nobody needs either, and both have been ways in. (No compression is ssl's own default.)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    context.minimum_version = VERSIONS[min_version]
    context.num_tickets = TICKETS
    try:
        if ciphers:
            context.set_ciphers(ciphers)
        # A key with a pass phrase would be asked for on a terminal that a daemon does not have.
        context.load_cert_chain(chain_file, key_file, password="")
        certificate = Certificate(chain_file, context, _facts_of(context))
    except (OSError, ValueError, KeyError) as error:  # ssl's own, or a file that has gone this moment
        what = _what_is_missing(chain_file, key_file) or _in_words(error)
        raise Unusable(f"{chain_file} with {key_file}: {what}") from error
    return certificate


def _facts_of(context: ssl.SSLContext) -> dict[str, Any]:
    """
    Read the certificate, as a client does that trusts it and nothing else: ssl has no other public way.

    Whatever OpenSSL and ssl load on first use they have loaded then, while there is a file system.
    """
    client = _client_of(context)
    shown = _rehearse(context, client).getpeercert(binary_form=True)
    client.load_verify_locations(cadata=shown)
    client.verify_flags = ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(NO_CHECK_TIME)
    client.verify_mode = ssl.CERT_REQUIRED
    facts: dict[str, Any] = _rehearse(context, client).getpeercert() or {}
    return facts


def _client_of(context: ssl.SSLContext) -> ssl.SSLContext:
    """Return a client of the oldest version, for which alone `tls.ciphers` counts, and of any cipher."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    client.minimum_version = client.maximum_version = context.minimum_version
    client.set_ciphers("DEFAULT:@SECLEVEL=0")
    return client


# What OpenSSL and ssl say, and what it means to an administrator; the first that fits.
IN_WORDS = {
    "KEY_VALUES_MISMATCH": "the key is not the certificate's",
    "PEM lib": "the certificate, or the key, is damaged",
    "No cipher can be selected": "tls.ciphers names no cipher that there is",
    "NO_SHARED_CIPHER": "none of tls.ciphers fits the key",
    "unsuitable certificate purpose": "it is not for a server (its key usage), so no client would believe it",
}


def _what_is_missing(chain_file: str, key_file: str) -> str:
    """Look at files that are not usable for what OpenSSL does not tell apart; "" if that is not it."""
    try:
        with open(chain_file, "rb") as chain, open(key_file, "rb") as key:
            of_chain, of_key = chain.read(), key.read()
    except OSError:
        return ""  # being renewed at this moment
    if b"CERTIFICATE-----" not in of_chain:
        return f"there is no certificate in PEM form in {chain_file}"
    if b"PRIVATE KEY-----" not in of_key:
        two = "; a certificate and its key in two files are a list of the two, within the list"
        return f"there is no key in PEM form in {key_file}{two if chain_file == key_file else ''}"
    if b"ENCRYPTED" in of_key:
        return "the key needs a pass phrase, which nobody can give here; `openssl pkey` takes it off"
    return ""


def _in_words(error: Exception) -> str:
    text = str(error)
    return next(
        (words for part, words in IN_WORDS.items() if part in text), f"TLS can't begin with it ({text})"
    )


def _rehearse(context: ssl.SSLContext, client_context: ssl.SSLContext) -> ssl.SSLObject:
    """Play one handshake through; returns the client's side."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    done: set[object] = set()
    for _ in range(8):
        for side in (client, server):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                continue
    if len(done) != 2:
        raise ValueError("the handshake does not end")
    return client


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


class Certificates:
    """The certificates of a front: which of them a peer gets."""

    def __init__(self, certificates: Sequence[Certificate]) -> None:
        """The first is for peers that name no host, or one that no certificate is for."""
        self._default = certificates[0].context
        self._by_name: dict[str, ssl.SSLContext] = {}
        for certificate in certificates:
            for name in certificate.names:
                self._by_name.setdefault(name, certificate.context)
        # Sessions are resumed with the context that a connection began with, whichever is chosen then.
        self._default.sni_callback = self._choose

    @property
    def context(self) -> ssl.SSLContext:
        """What every connection begins with."""
        return self._default

    def _choose(self, peer: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        """Called within the handshake with the host name that the peer asks for (RFC 6066 §3)."""
        context = self.for_name(name) if name else None
        if context is not None and context is not self._default:
            peer.context = context

    def for_name(self, name: str) -> ssl.SSLContext | None:
        """Return the context for a host name: that very name goes before a wildcard (RFC 9525 §6.3)."""
        name = name.lower()
        return self._by_name.get(name) or self._by_name.get("*." + name.partition(".")[2])
