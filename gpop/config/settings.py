"""
Every setting of gpop, described once: key, default, what is accepted, purpose, what goes wrong.

Defaults, validation, did-you-mean, conf/gpop.toml and the table in docs/configuration.md are all
read from `SETTINGS`, so they cannot disagree. What one value may be is said by its kind
(kinds.py); what needs two values is in reading.py, what needs the machine in machine.py.

Executed as root by the short-lived process that reads the config, and by `gpop check-config`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpop import languages
from gpop.accounts import names, user_settings
from gpop.config.kinds import (
    DOMAIN_PATTERN,
    CertificateFiles,
    Choice,
    DomainOfAddress,
    Flag,
    Kind,
    ListenAddress,
    ListOf,
    MapFile,
    Network,
    RelativeFolder,
    Seconds,
    Text,
    Whole,
)
from gpop.log_target import FACILITIES


@dataclass(frozen=True)
class Setting:
    """One setting. `purpose` and `if_wrong` are sentences for an administrator."""

    key: str
    default: Any
    kind: Kind
    purpose: str
    if_wrong: str
    unit: str = ""

    @property
    def section(self) -> str:
        return self.key.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]

    @property
    def field(self) -> str:
        """What the setting is called in the dataclasses of `gpop.config`, where sections are gone."""
        return FIELD_PREFIX.get(self.section, "") + self.name


FIELD_PREFIX = {
    "log": "log_",
    "tls": "tls_",
    "metrics": "metrics_",
    "accounts.cache": "cache_",
    "accounts.virtual": "virtual_",
}

# The largest uid_t is reserved: it is the (uid_t) -1 that means "leave unchanged" to setresuid.
MAX_ID = 2**32 - 2

USER_NAME = Text("the name of a user", r"[A-Za-z_][A-Za-z0-9_.-]*\$?")
HOST_NAME = Text('a host name, or ""', r"|[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")
ABSOLUTE_PATH = Text("an absolute path", r"/[^\x00-\x1f\x7f]+")
FOLDER_OR_NONE = Text(
    'an absolute path without a slash at its end, or ""', r"|/[^\x00-\x1f\x7f]*[^\x00-\x1f\x7f/]"
)
DOMAIN = Text('a domain, such as "example.org"', DOMAIN_PATTERN)
PUNCTUATION = Text('punctuation, or ""', r"|[!#$%&*+\-./:=?^_|~]{1,8}")
# It becomes a file name in /etc/pam.d, so no slash and no leading dot.
# `other` is what PAM takes for a service that has no file, and so nobody's own.
PAM_SERVICE = Text(
    'the name of a PAM service, such as "gpop", and not "other"',
    r"(?!(?i:other)$)[A-Za-z0-9_][A-Za-z0-9_.-]*",
)
# Relative ones are taken from the folder of the config file.
CIPHERS = Text('names of OpenSSL with colons between them, or ""', r"[\x21-\x7e]*")
FILE_PATH = Text("the path of a file", r"[^\x00-\x1f\x7f]+")

SECTIONS = {
    "server": "Listening, and the processes that talk to clients nobody has authenticated yet.",
    "tls": "Certificates, for server.listen_tls and for STLS on the other addresses. Files that change are "
    "loaded within seconds, without a restart; a pair that does not load leaves the old one in force.",
    "session": "What happens after a login: one process per session, as the mail user, jailed.",
    "accounts": "Who may log in, and as which account.",
    "accounts.virtual": "From the name that a client gives to the account that it means. The order: "
    "separators and case, default domain, sendmail_maps, postfix_maps, local domains. docs/virtual-users.md "
    "has examples.",
    "accounts.cache": "Remembering accepted passwords for a short while (in memory, keyed hash only).",
    "log": "One line per event. Passwords never appear in it.",
    "metrics": "Numbers for Prometheus, and whether all is well, over HTTP: /metrics, /healthz and /readyz.",
}

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "server.listen",
        ["127.0.0.1:110", "[::1]:110"],
        ListOf(ListenAddress(), may_be_empty=False),
        "Addresses and ports to listen on; IPv6 in square brackets. The default can be reached from this "
        "machine only, because without TLS passwords cross the network readable.",
        "With an address this machine does not have, or one that is taken, gpop does not start. With "
        '"0.0.0.0:110" everybody on the way can read the mail of clients that do not begin TLS.',
    ),
    Setting(
        "server.listen_tls",
        [],
        ListOf(ListenAddress(), may_be_empty=True),
        "Addresses and ports on which TLS begins at once (RFC 8314); the usual port is 995. Needs "
        "tls.certificates.",
        "A client that is set to STARTTLS, or to no encryption, waits here in vain: it belongs to "
        "server.listen.",
    ),
    Setting(
        "server.fronts",
        1,
        Whole(1, 64),
        "Front processes, which greet clients and read their name and password. One serves thousands of "
        "connections; add a second when one of them keeps a core busy.",
        "Too many gain nothing and cost the memory of a Python process each.",
    ),
    Setting(
        "server.user",
        "gpop",
        USER_NAME,
        "The user as whom the fronts run when gpop is started by root. It should own nothing and be "
        "used by nothing else. Not looked at when gpop runs without root.",
        "If it is missing, gpop does not start. If other programs run as it, whoever takes over one of "
        "them can read the passwords that pass through a front.",
    ),
    Setting(
        "server.hostname",
        "",
        HOST_NAME,
        "The host name in the greeting. Empty means the system's own.",
        "Harmless: clients ignore it. It tells strangers what the machine is called.",
    ),
    Setting(
        "server.language",
        "en",
        Choice(("en", *languages.FILES)),
        "The language in which gpop replies to a client that asks for the one its server prefers (LANG *, "
        "RFC 6856). Who does not ask gets English.",
        "Users whose client shows its server's words read a language they may not know.",
    ),
    Setting(
        "server.max_connections",
        10000,
        Whole(1, 1_000_000),
        "Connections one front holds at once. At the limit the one that has been without a login for longest "
        "is closed for a new one; where all are logged in, the new one is.",
        "Too low: clients are turned away while the machine is idle. Above the limit on open files "
        "(LimitNOFILE, ulimit -Hn), less 64, that limit counts instead: gpop starts, and warns.",
        unit="connections per front",
    ),
    Setting(
        "server.max_connections_per_address",
        64,
        Whole(1, 1_000_000),
        "Connections that one front holds at once of one address (an IPv4 address or an IPv6 /64), sessions "
        "included. More are told [SYS/TEMP]. accounts.trusted_networks are exempt, and so are "
        "server.xclient_networks until they have said for whom they speak. With several fronts an address "
        "may have as many at each.",
        "Too low: an office or a provider that hides many users behind one address is turned away. Too high: "
        "one address can take all of server.max_connections.",
        unit="connections per front",
    ),
    Setting(
        "server.login_timeout_s",
        600,
        Seconds(0.1),
        "How long a client may be silent before it has logged in; then it is disconnected.",
        "Too short: slow lines, and people who type the protocol by hand, are cut off. Too long: idle "
        "strangers hold connections.",
        unit="seconds",
    ),
    Setting(
        "server.proxy_listen",
        [],
        ListOf(ListenAddress(), may_be_empty=True),
        "Those addresses of server.listen and server.listen_tls that only load balancers connect to: there "
        "every connection begins with a PROXY header (version 1 or 2), which says who the client is; TLS, if "
        "it is due, comes behind it. At the others none ever does.",
        "A balancer that sends no header to such an address, or one to another address, gets nowhere.",
    ),
    Setting(
        "server.proxy_networks",
        [],
        ListOf(Network(), may_be_empty=True),
        "The load balancers: who may connect to server.proxy_listen. What they say of a client's address "
        "and of its TLS is believed.",
        "Too wide: whoever is in there names any address as their own, so that penalties and allow_nets do "
        "not stop them. Too narrow: the balancer's connections are closed, and the log says so.",
    ),
    Setting(
        "server.proxy_timeout_s",
        10,
        Seconds(0.1, 300),
        "How long a load balancer may take to send the PROXY header.",
        "Below 3 one lost packet on the way costs the connection. Long: only idle connections.",
        unit="seconds",
    ),
    Setting(
        "server.xclient_networks",
        [],
        ListOf(Network(), may_be_empty=True),
        "Proxies that speak POP3 themselves, as Dovecot's does, and say with XCLIENT who their client is.",
        "A balancer that only passes octets on must not stand here: its clients could then give XCLIENT "
        "themselves, and take any address for their own.",
    ),
    Setting(
        "server.seccomp",
        True,
        Flag(),
        "Sessions, fronts and the metrics process may make only the system calls that they need. Needs "
        "libseccomp2.",
        "false: one that was taken over can start programs, reach the network and try the kernel's weak "
        "spots.",
    ),
    Setting(
        "server.grace_time_s",
        30,
        Seconds(0),
        "After SIGTERM: how long running sessions may go on before they are ended (without removing mail).",
        "Longer than the service manager waits (systemd: 90 s), and it kills them instead. 0 cuts off "
        "downloads that would have ended in a moment.",
        unit="seconds",
    ),
    Setting(
        "server.answer_timeout_s",
        30,
        Seconds(0.1, 3600),
        "A front or auth that has not answered the broker for so long (up to a third longer) hangs: it is "
        "killed and another one is started. The broker asks them all the time.",
        "Too short: on a machine that swaps, processes are killed that would have gone on, and peers of a "
        "front lose their connection. Too long: so long nobody can log in when one hangs.",
        unit="seconds",
    ),
    Setting(
        "server.run_dir",
        "/run/gpop",
        ABSOLUTE_PATH,
        "Made at start if missing. Holds the empty directory in which the fronts are jailed, and the socket "
        "of gpop who and gpop kick. Without root it is only used if it is there. It changes with a restart "
        "only.",
        "If somebody else can write there, the jail is not empty; gpop refuses such a directory.",
    ),
    Setting(
        "tls.certificates",
        [],
        ListOf(CertificateFiles(), may_be_empty=True),
        "What gpop shows to clients: for each certificate the file with its chain (its own first) and the "
        "file with its key, or one file with both, by absolute path. A client that names a host gets the "
        "first certificate with that name, any other client the first of all. Empty: no TLS.",
        "The name that users have in their clients must be in the certificate, or they are warned, and learn "
        "to click warnings away.",
    ),
    Setting(
        "tls.min_version",
        "1.2",
        Choice(("1.2", "1.3")),
        "The oldest version of TLS that is spoken. Older ones than these are broken (RFC 8996, RFC 8997).",
        '"1.3" keeps out clients from before 2018 or so.',
    ),
    Setting(
        "tls.ciphers",
        "",
        CIPHERS,
        "The ciphers for TLS 1.2, in the words of OpenSSL. Empty: forward secrecy only, authenticated "
        "ciphers first, no SHA-1. Those of TLS 1.3 are all good.",
        "With a list that does not fit the kind of key a certificate has, gpop does not start. "
        '"ECDHE+AESGCM:ECDHE+CHACHA20" leaves out CBC as well, which testssl.sh finds fault with ("low", as '
        "with other servers' defaults); mail programs on Windows before 10 need it.",
    ),
    Setting(
        "session.autologout_s",
        600,
        Seconds(0.1),
        "A session whose client is silent for so long is ended; nothing is removed (RFC 1939 section 3).",
        "Below 600 the standard is broken: a client that is slow between two commands loses its session and "
        "its deletions. Too long: a client that vanished keeps the maildrop locked.",
        unit="seconds",
    ),
    Setting(
        "session.jail",
        "maildir",
        Choice(("maildir", "home", "none")),
        "Where a session locks itself in (chroot) before it reads the first octet from its client: the "
        "Maildir, the home around it, or nowhere. Not possible without root.",
        '"home" is for Maildirs whose folders are symbolic links to elsewhere in the home; homes that others '
        "can write to, and Maildirs outside the home, are refused with [SYS/TEMP] then. With "
        '"none" a session that is taken over can read every file its user can.',
    ),
    Setting(
        "session.lock",
        True,
        Flag(),
        "One session per maildrop at a time, as RFC 1939 section 8 wants.",
        "Without it two clients of one user may fetch the same mail twice, or one removes what the other has "
        "not yet read.",
    ),
    Setting(
        "session.lock_wait_s",
        5,
        Seconds(0, 60),
        "How long a login waits for an older session of the same maildrop to end before it is told [IN-USE]. "
        "Many clients connect again at once after a QUIT.",
        "0: such clients see errors. Long: a client that has given up waits on.",
        unit="seconds",
    ),
    Setting(
        "session.takeover_after_s",
        60,
        Seconds(0),
        "A newer login ends an older session (nothing is removed) if the older client has been silent for so "
        "long.",
        "Too short: two clients of one user throw each other out. Too long: after a dropped line the user is "
        "told [IN-USE] for as long.",
        unit="seconds",
    ),
    Setting(
        "session.move_to_cur",
        True,
        Flag(),
        "At QUIT, messages that were retrieved move from new/ to cur/ and get the flag S (seen).",
        "Off: an IMAP or webmail reader of the same Maildir shows mail as new that was fetched long ago.",
    ),
    Setting(
        "session.removal",
        "unlink",
        Text(user_settings.REMOVAL_WORDS, "unlink|hide|" + user_settings.FOLDER),
        'What becomes of messages that a client removes. "unlink": they are gone. ".Trash": they move to '
        "that folder of the Maildir, which is made where it is missing; IMAP and webmail show it, POP3 never "
        'does. "hide": they stay where they are, for IMAP and webmail, and POP3 shows them no more. '
        "accounts.user_settings can say something else for single accounts.",
        "With a folder that nobody empties, users run into their quota with mail they thought was gone.",
    ),
    Setting(
        "session.expire_retrieved_days",
        -1,
        Whole(-1, 36500),
        "Messages that were retrieved (RETR, not TOP) are removed so many days later, at the QUIT of a "
        "session that retrieves something; 0: at the QUIT of the very session that retrieved them. -1: only "
        "clients remove messages. docs/retention.md says what counts.",
        "Any value but -1 removes mail that users may think is kept: who reads on two machines may find it "
        "on one only, and with 0 a client that is set to leave mail on the server can't.",
        unit="days",
    ),
    Setting(
        "session.max_messages",
        0,
        Whole(0, 10_000_000),
        "The most messages one session sees, oldest first; 0 means all.",
        "Too low: users do not get their newest mail until they remove old mail.",
        unit="messages",
    ),
    Setting(
        "session.memory_limit_mib",
        4096,
        Whole(0, 1_048_576),
        "How much address space one session may take; 0: as much as it likes. Listing a maildrop anew takes "
        "up to 1 KiB for each message.",
        "Below 64 few maildrops can be opened: the login is answered [SYS/TEMP]. 0: a user with millions of "
        "files in a Maildir can take the memory of the machine.",
        unit="MiB",
    ),
    Setting(
        "session.utf8_headers",
        "as_is",
        Choice(("as_is", "refuse")),
        "What a client that did not say UTF8 gets of a message whose header has octets outside ASCII: the "
        "message as it is, which is what servers have always done, or -ERR [UTF8] to LIST, RETR and TOP of "
        "it, as RFC 6856 has it.",
        '"refuse": clients that never say UTF8, nearly all, can\'t fetch such mail; some stop at the first '
        "error, or ask for it again and again.",
    ),
    Setting(
        "session.max_per_account",
        10,
        Whole(1, 10_000),
        "Sessions of one account at once, those waiting for the lock included.",
        "Too low: a family or a shared account behind several clients is refused. Too high: one account can "
        "fill the process table.",
        unit="sessions",
    ),
    Setting(
        "session.statcache",
        True,
        Flag(),
        "Keep .statcache in each Maildir, so that a poll which finds no new mail costs next to nothing. It "
        "belongs to the user and counts in a quota.",
        "Off: each login lists and measures the maildrop anew.",
    ),
    Setting(
        "session.reuse_below",
        "",
        FOLDER_OR_NONE,
        "For a store whose mail all belongs to one uid (virtual users): the directory that all of it lies "
        "below. Sessions there share processes: each serves one login after another, as that user, jailed in "
        'this directory, for a third of the cost. "" means a process and a jail for every session.',
        "A session that is taken over can then read the mail of the other accounts in the store, and of "
        "those it serves later. Not a directory of that user's own: logins are told [SYS/TEMP].",
    ),
    Setting(
        "accounts.user_settings",
        "user-settings",
        FILE_PATH,
        "A file of settings for single accounts: POP3 switched off, removed mail kept, dialogue logged "
        "(`gpop user` edits it). Read again when it changes; a relative path starts at the folder of this "
        "config file. It need not exist.",
        "A line that can't be used keeps its account out, with [SYS/TEMP]: it may have been meant to.",
    ),
    Setting(
        "accounts.maildir",
        "Maildir",
        RelativeFolder(),
        "Where the Maildir is, relative to the home. A passwd-file can name another one per account.",
        "If it is not where mail is delivered, users find an empty maildrop or are told [SYS/TEMP].",
    ),
    Setting(
        "accounts.first_valid_uid",
        1000,
        Whole(1, MAX_ID),
        "Accounts with a lower uid cannot log in. uid 0 never can.",
        "Too low: system accounts can be used to read mail, and their passwords guessed. Too high: users are "
        "refused, with the reason in the log only.",
    ),
    Setting(
        "accounts.last_valid_uid",
        MAX_ID,
        Whole(1, MAX_ID),
        "Accounts with a higher uid cannot log in.",
        "Too low: users are refused, with the reason in the log only.",
    ),
    Setting(
        "accounts.first_valid_gid",
        100,
        Whole(1, MAX_ID),
        "Accounts with a lower primary gid cannot log in. gid 0 never can.",
        "As with first_valid_uid.",
    ),
    Setting(
        "accounts.max_checks",
        16,
        Whole(1, 1000),
        "Password checks at once, each in a process of its own. When all are busy a login is told "
        "[SYS/TEMP], never that its password is wrong.",
        "Too low: a morning of logins is turned away. Too high: password hashes, which are made to be "
        "expensive, occupy every core.",
        unit="processes",
    ),
    Setting(
        "accounts.max_logins_per_address",
        32,
        Whole(1, 100_000),
        "Logins under way at once from one address (an IPv4 address or an IPv6 /64), by way of all fronts, "
        "from PASS until the answer. More are told [SYS/TEMP]. accounts.trusted_networks are exempt.",
        "Too low: users behind one address disturb each other in the morning. Too high: one address keeps "
        "everybody else waiting for a password check.",
        unit="logins",
    ),
    Setting(
        "accounts.max_logins_per_second",
        10000,
        Whole(0, 1_000_000),
        "Logins looked at per second in all, refused ones included; more are told [SYS/TEMP]. As many may "
        "come at once after a quiet second. 0 means no limit.",
        "Too low: users are turned away when many poll at the same minute, and strangers who guess from many "
        "addresses can use up what all may do. Too high: it protects nothing.",
        unit="logins per second",
    ),
    Setting(
        "accounts.login_delay_s",
        0,
        Whole(0, 86400),
        "The time between two logins of one account (LOGIN-DELAY of RFC 2449); a login that comes earlier "
        "is told [LOGIN-DELAY], after its password was checked. 0: no delay, and none is announced.",
        "Too long: clients show errors to users who look for mail by hand, and a webmail that logs in for "
        "each page does not work.",
        unit="seconds",
    ),
    Setting(
        "accounts.login_delay_burst",
        2,
        Whole(1, 1000),
        "So many logins of an account may come at once before login_delay_s holds; each login_delay_s gives "
        "one of them back. Some clients (Outlook) log in twice to fetch once.",
        "1: such clients get errors. High: the delay does little.",
        unit="logins",
    ),
    Setting(
        "accounts.check_timeout_s",
        30,
        Seconds(0.1, 600),
        "A password check that takes longer is killed, and the login told [SYS/TEMP].",
        "Shorter than a slow directory service needs: nobody can log in when it is busy.",
        unit="seconds",
    ),
    Setting(
        "accounts.refusal_time_s",
        1.0,
        Seconds(0, 30),
        "A refused login is answered so long after its PASS, whatever the reason, so that the time tells "
        "nothing about which names exist.",
        "Shorter than a password check takes (0.05 s for yescrypt, more under load): the time gives names "
        "away.",
        unit="seconds",
    ),
    Setting(
        "accounts.cleartext",
        "trusted",
        Choice(("never", "trusted", "always")),
        "From where passwords are taken without TLS: from nowhere, from this machine and "
        "accounts.trusted_networks, or from everywhere. Others are refused at USER already, and offered STLS "
        "if there is a certificate. TLS that a proxy in front of gpop tells of counts "
        "(server.proxy_networks, server.xclient_networks).",
        '"always": everybody on the way can read passwords. "never": a webmail on this machine has to speak '
        "TLS.",
    ),
    Setting(
        "accounts.trusted_networks",
        ["127.0.0.0/8", "::1/128"],
        ListOf(Network(), may_be_empty=True),
        "Clients that are not delayed after wrong passwords, of which as many as want may connect and log in "
        "at once, such as a webmail host through which everybody comes, and that may send passwords without "
        'TLS (accounts.cleartext = "trusted").',
        "Too wide: passwords can be guessed from there at full speed. If the webmail host is missing, one "
        "forgetful user delays all of them.",
    ),
    Setting(
        "accounts.penalty_forget_s",
        900,
        Seconds(0),
        "A source address that has sent no wrong password for so long starts again without delay.",
        "Too short: guessing gets cheap. Too long: whoever gets a used address from the provider waits for "
        "somebody else's mistakes.",
        unit="seconds",
    ),
    Setting(
        "accounts.virtual.case",
        "keep",
        Choice(names.CASES),
        '"keep": Joe is not joe, unless a map has him (maps know no case). "fold_domain": joe@Example.ORG is '
        'joe@example.org. "fold": and Joe@example.org is joe@example.org.',
        '"fold" where accounts have capitals in their names: nobody reaches them.',
    ),
    Setting(
        "accounts.virtual.domain_separators",
        "",
        PUNCTUATION,
        'Characters that clients write instead of @: with "%" the name joe%example.org is '
        "joe@example.org. They count only in a name without @, the last one of them.",
        "One that stands in the names of accounts: these can't be reached.",
    ),
    Setting(
        "accounts.virtual.default_domains",
        {},
        DomainOfAddress(),
        "The domain of names that are given without one, by the local address that the client has "
        'connected to (behind a proxy: what that says); "*" is any address that is not named. nupop calls '
        "this virtservers.",
        "Users of the system (without a domain) are no longer found, unless local_domains has that domain.",
    ),
    Setting(
        "accounts.virtual.sendmail_maps",
        [],
        ListOf(MapFile(), may_be_empty=True),
        "Maps that are read as sendmail reads a virtusertable; nupop's popusertable is one. Name them as "
        "Postfix does, without the ending: hash:/etc/mail/virtusertable is the file "
        "/etc/mail/virtusertable.db. lmdb needs the Python package lmdb.",
        "A map that is missing or damaged: nobody can log in, all are told [SYS/TEMP].",
    ),
    Setting(
        "accounts.virtual.sendmail_domains",
        [],
        ListOf(DOMAIN, may_be_empty=True),
        "The only domains whose names are looked up in sendmail_maps (sendmail: VirtHost). Empty: all.",
        "A domain that is missing: its names are accounts as they are.",
    ),
    Setting(
        "accounts.virtual.postfix_maps",
        [],
        ListOf(MapFile(), may_be_empty=True),
        "Maps that are read as Postfix reads virtual_alias_maps; asked after sendmail_maps.",
        "As with sendmail_maps.",
    ),
    Setting(
        "accounts.virtual.recipient_delimiter",
        "",
        PUNCTUATION,
        'Postfix\'s setting of that name, for postfix_maps: with "+" joe+lists@example.org is looked up as '
        "joe@example.org, too; sendmail always does so.",
        "Another one than Postfix has: what reaches a user there is nobody here.",
    ),
    Setting(
        "accounts.virtual.propagate_extensions",
        True,
        Flag(),
        "Whether Postfix's propagate_unmatched_extensions has `virtual` (it does by default): "
        "joe+lists@example.org then becomes jim+lists, where the map says joe@example.org is jim.",
        "On, where nothing maps jim+lists further: there is no such account.",
    ),
    Setting(
        "accounts.virtual.local_domains",
        [],
        ListOf(DOMAIN, may_be_empty=True),
        "Domains whose users are the system's own: joe@example.org is the account joe, after the maps. In "
        "postfix_maps their users may stand without it. nupop calls this localdomains.",
        "A domain whose users are others: they can log in as the system's users of the same name, if they "
        "know their passwords.",
    ),
    Setting(
        "accounts.cache.enabled",
        False,
        Flag(),
        "Remember accepted passwords, so that a client which polls every minute does not cost a password "
        "hash each time.",
        "On: a password that was changed or locked elsewhere (LDAP, a database) still works until its entry "
        "ends. Changes of /etc/shadow, /etc/passwd, a passwd-file or the PAM service file are seen within "
        "a second.",
    ),
    Setting(
        "accounts.cache.lifetime_s",
        600,
        Seconds(1),
        "How long an accepted password is remembered.",
        "Longer than the time between two polls, or it gains nothing; as short as a withdrawn password may "
        "still work.",
        unit="seconds",
    ),
    Setting(
        "accounts.cache.max_entries",
        100000,
        Whole(1, 10_000_000),
        "The most passwords remembered; the oldest is forgotten first.",
        "Below the number of users who poll: entries are forgotten before they are of use.",
        unit="entries",
    ),
    Setting(
        "accounts.cache.always_check_account",
        False,
        Flag(),
        "On a hit still ask PAM whether the account is valid (expired, locked out by time or host).",
        "Off: an account that expires can be used until its entry ends. On: each poll costs a process again.",
    ),
    Setting(
        "log.target",
        "stdout",
        Choice(("stdout", "file", "syslog")),
        "Where the log goes: to standard output, for whoever starts gpop (supervisord; systemd, for its "
        "journal); to the file log.path; or to the syslog daemon at log.syslog_socket. It changes with a "
        "restart only.",
        "Nobody reads it: what is missing is counted, and the service goes on.",
    ),
    Setting(
        "log.path",
        "/var/log/gpop/gpop.log",
        ABSOLUTE_PATH,
        'The file for log.target = "file". The broker opens it, as root, and anew on SIGUSR1: for logrotate.',
        "If the folder is missing, gpop does not start. If somebody else can write there, they can have root "
        "write elsewhere; gpop refuses such a folder.",
    ),
    Setting(
        "log.syslog_socket",
        "/dev/log",
        ABSOLUTE_PATH,
        'The socket of the syslog daemon for log.target = "syslog". A daemon that was started again is found '
        "within some seconds.",
        "If nobody listens there, gpop does not start.",
    ),
    Setting(
        "log.syslog_facility",
        "mail",
        Choice(tuple(FACILITIES)),
        "The facility under which lines go to syslog; the level of an event is its severity.",
        "The daemon files the log where nobody looks for it.",
    ),
    Setting(
        "log.format",
        "auto",
        Choice(("auto", "json", "console")),
        '"json" is one object a line, "console" is for reading along; "auto" takes console on a terminal and '
        "json elsewhere.",
        'fail2ban and log readers want "json".',
    ),
    Setting(
        "log.level",
        "info",
        Choice(("info", "debug")),
        '"debug" adds the dialogue of every session, passwords hidden.',
        '"debug" fills disks, and names and unique-ids of everybody\'s mail stand in the log.',
    ),
    Setting(
        "log.removals",
        False,
        Flag(),
        "A line for each message that UPDATE removes, with its unique-id: the answer to who deleted it. "
        "No subject and no address of a message is ever logged.",
        "Off: session_closed tells how many messages were removed, and nothing which.",
    ),
    Setting(
        "metrics.listen",
        [],
        ListOf(ListenAddress(), may_be_empty=True),
        'Addresses and ports at which metrics can be had, such as "127.0.0.1:9610". Empty: nothing is '
        "counted. Needs the extra `metrics` (requirements-extras.txt has it).",
        "Whoever can reach it sees how much mail is fetched here, and how often logins fail; nobody's name. "
        "There is no password to it: leave it on loopback, or behind a firewall.",
    ),
)

# What a table in [[accounts.sources]] may hold beside `type`; sources are asked in their order.
SOURCES: dict[str, tuple[Setting, ...]] = {
    "passwd-file": (
        Setting(
            "accounts.sources.path",
            None,
            FILE_PATH,
            "A file of accounts; a relative path starts at the folder of this config file. `gpop passwd` "
            "adds and changes entries.",
            "Missing or unreadable: gpop does not start. Readable by others: they can crack its hashes.",
        ),
    ),
    "pam": (
        Setting(
            "accounts.sources.service",
            "gpop",
            PAM_SERVICE,
            "The PAM service, a file in /etc/pam.d; accounts then come from the system (NSS). Needs root.",
            "Without such a file PAM would ask its service `other`, which may accept anybody, so gpop does "
            "not start.",
        ),
    ),
}
SOURCE_TYPE = Choice(tuple(SOURCES))

SETTING_OF_KEY = {setting.key: setting for setting in SETTINGS}
