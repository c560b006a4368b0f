"""
The AUTHORIZATION state: from the greeting to a login that somebody else decides.

Pure: knows the words a client may log in with (RFC 1939 §7, RFC 5034), not who may log in. What it offers
on this connection it is told (`Offer`). TLS begins with a new `Authorization` (RFC 2595 §4: what was said
before is forgotten), and the greeting is not repeated.
Executed by the front, as the service user, for peers nobody has identified.

APOP, CRAM-MD5 and SCRAM are left out on purpose: they need passwords, or what is as good as a password,
stored where the server can read them, and PAM has neither.
"""

from __future__ import annotations

import binascii
from enum import Enum

from gpop.pop3.commands import AUTHORIZATION, EVERY_LOGIN, LINE_REFUSALS, Offer, capability_list, parse
from gpop.pop3.decisions import AnnouncedClient, Close, Login, RefusedLogin, Reply, StartTls
from gpop.pop3.languages import Languages, Speech
from gpop.pop3.wire import LineError, err, multiline, ok

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    AuthorizationDecision = Reply | Login | StartTls | AnnouncedClient | Close
    # Returns the prepared form of a name or password, b"" if it has none; None if it is to be refused.
    Prepare = Callable[[bytes], bytes | None]

# No mail user's name comes near this; every frame that carries a name has room for it.
MAX_NAME_OCTETS = 255
# Room for pass phrases and application tokens; a bound on what is hashed for a stranger.
MAX_PASSWORD_OCTETS = 1024

# The words for every refused login, whatever the reason: none may tell whether the name exists.
LOGIN_REFUSED = err("Authentication failed", "AUTH")

# Not "AUTH": a client that reads that asks its user for another password, and this one was never looked at.
CLEARTEXT_REFUSED = err("Not without TLS: passwords are not taken on this connection", "SYS/PERM")

_CONTROLS = bytes((*range(0x20), 0x7F))

_GOODBYE = Close(ok("goodbye"))
_NAME_TAKEN = Reply(ok("now the password, with PASS"))
_UTF8_MODE = Reply(ok("UTF-8 mode"))
_NAME_MISSING = Reply(err("USER needs a name"))
_NAME_FIRST = Reply(err("First the name, with USER"))
_TLS_NOW = StartTls(ok("begin TLS now"))
_NO_TLS = Reply(err("TLS can't begin here"))
_UNKNOWN_MECHANISM = Reply(err("Unknown mechanism"))
_CANCELLED = Reply(err("Authentication cancelled"))
_BAD_BASE64 = Reply(err("That is not base64"))
_BAD_PLAIN = Reply(err("PLAIN needs authorization identity, name and password with NUL between them"))

# "+ " and the challenge in base64 (RFC 5034 §4). The space stays when there is nothing to follow it: clients
# compare with "+ ". LOGIN's challenges are the ones that clients know ("Username:", "Password:").
_EMPTY_CHALLENGE = Reply(b"+ \r\n")
_LOGIN_NAME_CHALLENGE = Reply(b"+ VXNlcm5hbWU6\r\n")
_LOGIN_PASSWORD_CHALLENGE = Reply(b"+ UGFzc3dvcmQ6\r\n")


class Step(Enum):
    """Where in a login the client is."""

    NO_NAME = "no USER given"
    NAME_GIVEN = "USER given"
    PLAIN_RESPONSE = "AUTH PLAIN awaits its response"
    LOGIN_NAME = "AUTH LOGIN awaits the name"
    LOGIN_PASSWORD = "AUTH LOGIN awaits the password"


# The step after AUTH with this mechanism, and the challenge for a client that sent no initial response.
_FIRST_STEPS = {
    "PLAIN": (Step.PLAIN_RESPONSE, _EMPTY_CHALLENGE),
    "LOGIN": (Step.LOGIN_NAME, _LOGIN_NAME_CHALLENGE),
}
_SASL_STEPS = (Step.PLAIN_RESPONSE, Step.LOGIN_NAME, Step.LOGIN_PASSWORD)


_XCLIENT = b"XCLIENT "


def greeting(text: str, xclient: bool = False) -> bytes:
    """
    The first line of a connection. Without "<": clients take `<...@...>` for an offer of APOP.

    With `xclient` it says that XCLIENT is welcome, in the way that Dovecot's proxy looks for.
    """
    line = ok(text.replace("<", "").replace(">", ""))
    return line.replace(b"+OK ", b"+OK [XCLIENT] ", 1) if xclient else line


class Authorization:
    """
    One connection in the AUTHORIZATION state.

    Every line goes to `handle`, and what comes back is to be done before the next one. After a `Login` no
    line is due until it is decided; if it is not accepted, `login_refused` is to be called.

    `xclient`: the peer is a proxy that may say for whom it speaks, before it gives a name. To others that
    is an unknown command like any other, and so it stands in no table and no capability list.
    """

    __slots__ = ("_name", "_offer", "_prepare", "_step", "_xclient", "speech")

    def __init__(
        self,
        offer: Offer = EVERY_LOGIN,
        speech: Speech | None = None,
        prepare: Prepare | None = None,
        xclient: bool = False,
    ) -> None:
        """`prepare` is SASLprep (RFC 6856 §2.2), asked about what is not ASCII."""
        self._offer = offer
        self._prepare = prepare
        self._xclient = xclient
        self.speech = speech or Speech(Languages({}))
        self._step = Step.NO_NAME
        self._name = b""

    @property
    def awaits_sasl_response(self) -> bool:
        """Whether the next line is a SASL response, which may be long, and not a command."""
        return self._step in _SASL_STEPS

    def login_refused(self) -> None:
        """Forget the name: the next login begins with USER or AUTH again."""
        self._step = Step.NO_NAME
        self._name = b""

    def handle(self, line: bytes | LineError) -> AuthorizationDecision:
        if self.awaits_sasl_response:
            return self._sasl_response(line)
        if self._xclient and self._step is Step.NO_NAME and not isinstance(line, LineError):
            keyword = line[: len(_XCLIENT)]
            if keyword.upper() == _XCLIENT:
                return AnnouncedClient(line[len(_XCLIENT) :])
        parsed = parse(line, AUTHORIZATION)
        if isinstance(parsed, Reply):
            return parsed
        keyword, arguments = parsed
        return _HANDLERS[keyword](self, *arguments)

    def _capa(self) -> Reply:
        return capability_list(self._offer)

    def _quit(self) -> Close:
        return _GOODBYE

    def _utf8(self) -> Reply:
        self.speech.utf8 = True
        return _UTF8_MODE

    def _lang(self, wanted: bytes) -> Reply:
        return self.speech.lang(wanted)

    def _stls(self) -> Reply | StartTls:
        """Not a second time, and not without a certificate: then it is not in the offer."""
        return _TLS_NOW if self._offer.stls else _NO_TLS

    def _user(self, name: bytes) -> Reply:
        """
        Any name is fine here, so that nobody can ask which ones exist.

        Where no password may come it is refused already, so that a client that listens sends none.
        """
        if not self._offer.user:
            return self._refuse_cleartext(name, "USER")
        if not name:
            return _NAME_MISSING
        self._step, self._name = Step.NAME_GIVEN, name
        return _NAME_TAKEN

    def _pass(self, password: bytes) -> AuthorizationDecision:
        if not self._offer.user:
            return Reply(CLEARTEXT_REFUSED)  # logged with its USER
        if self._step is not Step.NAME_GIVEN:
            return _NAME_FIRST
        return self._login(self._name, password, "USER")

    def _auth(self, mechanism: bytes, initial_response: bytes | None) -> AuthorizationDecision:
        """Bare AUTH is in no RFC, but Outlook and others ask with it which mechanisms there are."""
        if not mechanism and initial_response is None:
            names = [name.encode("ascii") for name in self._offer.mechanisms]
            return Reply(multiline(ok("mechanisms follow"), names))
        name = mechanism.upper().decode("latin-1")
        if name not in self._offer.mechanisms:
            if name in EVERY_LOGIN.mechanisms and not self._offer.user:
                return self._refuse_cleartext(b"", name)
            return _UNKNOWN_MECHANISM
        self._step, challenge = _FIRST_STEPS[name]
        if initial_response is None:
            return challenge
        return self._sasl_response(b"" if initial_response == b"=" else initial_response)

    def _sasl_response(self, line: bytes | LineError) -> AuthorizationDecision:
        step, self._step = self._step, Step.NO_NAME
        if isinstance(line, LineError):
            return LINE_REFUSALS[line]
        if line == b"*":
            return _CANCELLED
        try:
            response = binascii.a2b_base64(line, strict_mode=True)
        except binascii.Error:
            return _BAD_BASE64
        if step is Step.PLAIN_RESPONSE:
            return self._plain(response)
        if step is Step.LOGIN_PASSWORD:
            return self._login(self._name, response, "LOGIN")
        self._step, self._name = Step.LOGIN_PASSWORD, response
        return _LOGIN_PASSWORD_CHALLENGE

    def _plain(self, response: bytes) -> AuthorizationDecision:
        """RFC 4616 §2; nobody may act for somebody else."""
        if response.count(b"\0") != 2:
            return _BAD_PLAIN
        identity, name, password = response.split(b"\0")
        if identity not in (b"", name):
            return self._refuse(name, "PLAIN", "other_identity")
        return self._login(name, password, "PLAIN")

    def _login(self, name: bytes, password: bytes, mechanism: str) -> Login | RefusedLogin:
        if not 0 < len(name) <= MAX_NAME_OCTETS or name.translate(None, _CONTROLS) != name:
            return self._refuse(name, mechanism, "unusable_name")
        if not 0 < len(password) <= MAX_PASSWORD_OCTETS or b"\0" in password:
            return self._refuse(name, mechanism, "unusable_password")
        login = Login(name, password, mechanism)
        reason = "" if name.isascii() and password.isascii() else self._prepare_login(login)
        return self._refuse(name, mechanism, reason) if reason else login

    def _prepare_login(self, login: Login) -> str:
        """
        Add prepared forms to a login outside ASCII; returns why it is refused, "" if it is not.

        RFC 6856 §2.2: what is no UTF-8, and what has characters that SASLprep prohibits, must be refused.
        """
        if not (_is_utf8(login.name) and _is_utf8(login.password)):
            return "ill_formed_utf8"
        if self._prepare is not None:
            name, password = self._prepare(login.name), self._prepare(login.password)
            if name is None or password is None:
                return "prohibited_character"
            # Nobody has an empty password, and no frame room for a longer one.
            if len(name) <= MAX_NAME_OCTETS and len(password) <= MAX_PASSWORD_OCTETS:
                login.prepared_name, login.prepared_password = name, password
        return ""

    def _refuse_cleartext(self, name: bytes, mechanism: str) -> RefusedLogin:
        return RefusedLogin(CLEARTEXT_REFUSED, name[:MAX_NAME_OCTETS], mechanism, "cleartext", "SYS/PERM")

    def _refuse(self, name: bytes, mechanism: str, reason: str) -> RefusedLogin:
        self.login_refused()
        return RefusedLogin(LOGIN_REFUSED, name[:MAX_NAME_OCTETS], mechanism, reason)


def _is_utf8(octets: bytes) -> bool:
    """Whether octets are well-formed UTF-8 (RFC 3629): no surrogate, no overlong form, nothing cut short."""
    try:
        octets.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


_HANDLERS: dict[bytes, Callable[..., AuthorizationDecision]] = {
    b"USER": Authorization._user,
    b"PASS": Authorization._pass,
    b"AUTH": Authorization._auth,
    b"STLS": Authorization._stls,
    b"CAPA": Authorization._capa,
    b"UTF8": Authorization._utf8,
    b"LANG": Authorization._lang,
    b"QUIT": Authorization._quit,
}
