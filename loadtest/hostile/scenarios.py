"""
PURE: what is done to the server, one scenario after the other, and how much honest users may suffer by it.

What an attacker does in each is in `attacks`, by the same name. A factor says by how much the p99 of the
honest users' polls may grow beside the attack: some times what was measured, because attackers, users and
server have the same cores, and a busy machine has others on them as well.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scenario:
    """One attack. `factor`: see above; it was measured, with room for a busy machine."""

    name: str
    what: str
    factor: float


SCENARIOS = (
    Scenario("slowloris", "connections that say one octet every 3 s and never log in", 20),
    Scenario("idle-one-address", "connections that say nothing, as many as one address gets, and more", 20),
    Scenario("idle", "10,500 connections that say nothing, from 200 addresses: more than a front has", 40),
    Scenario(
        "half-open-tls", "TLS that begins and stops: nothing, half a ClientHello, a whole one, STLS", 20
    ),
    Scenario("handshakes", "TLS handshakes without end, three of four given up by the client", 40),
    Scenario("renegotiation", "clients that renegotiate (TLS 1.2) and renew keys (TLS 1.3) without end", 40),
    Scenario("unread-retr", "logged in, 1,000 times RETR of a MB, and nothing read; half inside TLS", 40),
    Scenario("disconnects", "a login and its session, cut off or reset at any octet", 60),
    Scenario("commands", "commands without end, answers read; half before the login, half after", 40),
    Scenario("pipelines", "megabytes of commands and noise, answers not read; before and after a login", 100),
    Scenario("endless-lines", "lines that never end, before and after a login", 100),
    Scenario("spray-one-address", "1,000 wrong passwords a second from one address", 40),
    Scenario("spray", "1,000 wrong passwords a second, each from another address", 200),
)
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
