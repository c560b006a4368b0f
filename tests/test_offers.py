"""Who may log in without TLS: `accounts.cleartext`."""

from __future__ import annotations

import pytest

from gpop.front.offers import Offers

NETWORKS = ["192.0.2.0/24", "2001:db8::/32"]
PEERS = ("127.0.0.1", "::1", "192.0.2.9", "2001:db8::1", "198.51.100.1", "fe80::1%eth0", "")


@pytest.mark.parametrize(
    ("cleartext", "allowed"), [("never", set()), ("trusted", set(PEERS[:4])), ("always", set(PEERS))]
)
def test_who_may_log_in_without_tls(cleartext, allowed):
    """USER and SASL go together; STLS is there for everybody, if there is a certificate."""
    for with_tls in (True, False):
        offers = Offers(cleartext, NETWORKS, with_tls, ())
        for peer in PEERS:
            offer = offers.in_cleartext(peer)
            assert offer.user == bool(offer.mechanisms) == (peer in allowed)
            assert offer.stls == with_tls
        assert offers.over_tls.user
        assert not offers.over_tls.stls
