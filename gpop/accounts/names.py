"""
PURE: what a name that a client gives means, before and after the virtual user maps.

`NameRules.login_name` makes one name of the ways to write it (case, `user%domain`, the domain of
the local address where none was given); `account_name` takes off a domain whose users are
the system's own. Names are octets; a rule that is not set changes nothing. Executed by auth
and its checkers, as root.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpop.accounts.addresses import packed

KEEP, FOLD_DOMAIN, FOLD = CASES = ("keep", "fold_domain", "fold")
ANY_ADDRESS = "*"


def split(name: bytes) -> tuple[bytes, bytes]:
    """Return (local part, domain) of a name; the domain is b"" where there is none."""
    local, at, domain = name.rpartition(b"@")
    return (local, domain) if at else (name, b"")


def lower(octets: bytes) -> bytes:
    """Return a name in lower case: of UTF-8 every letter, of anything else those of ASCII."""
    try:
        return octets.decode("utf-8").lower().encode("utf-8")
    except UnicodeDecodeError:
        return octets.lower()


class NameRules:
    """
    The rules of one config.

    `default_domains` maps a local address, or "*" for any other, to a domain.
    """

    def __init__(
        self,
        case: str = KEEP,
        separators: str = "",
        default_domains: Mapping[str, str] | None = None,
        local_domains: Sequence[str] = (),
    ) -> None:
        self._case = case
        self._separators = separators.encode()
        domains = dict(default_domains or {})
        self._any_domain = domains.pop(ANY_ADDRESS, "").encode()
        self._domains = {packed(address): domain.encode() for address, domain in domains.items()}
        self._local_domains = frozenset(lower(domain.encode()) for domain in local_domains)
        # Every login passes here, those that need no checker too.
        self._keeps_names = case == KEEP and not separators and not self._domains and not self._any_domain

    def is_local(self, domain: bytes) -> bool:
        """Say whether the users of `domain` are those of the system."""
        return bool(self._local_domains) and lower(domain) in self._local_domains

    def login_name(self, typed: bytes, local_address: str) -> bytes:
        """Return the name that `typed` means to a client that connected to `local_address`."""
        if self._keeps_names:
            return typed
        name = self._folded(self._with_at_sign(typed))
        if name and not split(name)[1] and (self._domains or self._any_domain):
            domain = self._domains.get(packed(local_address), self._any_domain)
            # "joe@" is written so by who wants to say that there is none; it gets the same one.
            name = name.removesuffix(b"@") + b"@" + domain if domain else name
        return name

    def account_name(self, name: bytes) -> bytes:
        """Return `name` without its domain, if that is a local one."""
        local, domain = split(name)
        return local if domain and local and self.is_local(domain) else name

    def _with_at_sign(self, name: bytes) -> bytes:
        if b"@" in name:
            return name
        # The last one counts, as it does with "@": a%b%example.org is the user a%b.
        place = max((name.rfind(bytes((octet,))) for octet in self._separators), default=-1)
        return name if place < 1 else name[:place] + b"@" + name[place + 1 :]

    def _folded(self, name: bytes) -> bytes:
        if self._case == FOLD:
            return lower(name)
        local, domain = split(name)
        return local + b"@" + lower(domain) if domain and self._case == FOLD_DOMAIN else name
