"""
PURE: what a peer is offered before and inside TLS: accounts.cleartext (RFC 2595 §2.4, RFC 8314).

Knows addresses and no connection. Executed by the front.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpop.accounts.addresses import Networks
from gpop.pop3.commands import Offer

if TYPE_CHECKING:
    from collections.abc import Sequence

LOOPBACK = ("127.0.0.0/8", "::1/128")


class Offers:
    """
    The offers of a front.

    `cleartext` is "never", "trusted" (which loopback always is) or "always"; `policies` are what the
    settings add to CAPA (`commands.policies`).
    """

    def __init__(
        self, cleartext: str, trusted_networks: Sequence[str], with_tls: bool, policies: tuple[str, ...]
    ) -> None:
        self.over_tls = Offer(policies=policies)
        self._logins = Offer(stls=with_tls, policies=policies)
        self._no_logins = Offer(user=False, mechanisms=(), stls=with_tls, policies=policies)
        self._cleartext = cleartext
        self._trusted = Networks((*LOOPBACK, *trusted_networks))

    def in_cleartext(self, peer: str) -> Offer:
        """Return what a peer at this address is offered without TLS."""
        if self._cleartext == "always" or (self._cleartext == "trusted" and peer in self._trusted):
            return self._logins
        return self._no_logins
