"""The AUTHORIZATION state: `gpop.pop3.authorization`."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpop.pop3.authorization import (
    CLEARTEXT_REFUSED,
    LOGIN_REFUSED,
    MAX_NAME_OCTETS,
    MAX_PASSWORD_OCTETS,
    Authorization,
    greeting,
)
from gpop.pop3.commands import Offer
from gpop.pop3.decisions import Close, Decision, Login, RefusedLogin, Reply, StartTls
from gpop.pop3.wire import HAS_NUL, TOO_LONG, LineReader
from tests.pop3.strategies import client_octets, cuts, pieces, thorough


def start(**settings) -> Authorization:
    return Authorization(**settings)


def b64(octets: bytes) -> bytes:
    return base64.b64encode(octets)


def converse(chunks: list[bytes]) -> list[Decision]:
    """Feed what a client sends as the front does; every login is refused, a Close ends it."""
    authorization, reader, decisions = start(), LineReader(), []
    for chunk in chunks:
        reader.feed(chunk)
        while (line := reader.next_line()) is not None:
            decision = authorization.handle(line)
            if isinstance(decision, Login):
                authorization.login_refused()
            reader.sasl_response = authorization.awaits_sasl_response
            decisions.append(decision)
            if isinstance(decision, Close):
                return decisions
    return decisions


def converse_every_way(octets: bytes) -> list[Decision]:
    """Whole, octet by octet, and with trailing data: the decisions must be the same."""
    whole = converse([octets])
    assert whole == converse([octets[i : i + 1] for i in range(len(octets))])
    assert whole == converse([octets + b"trailing"])
    return whole


def is_error(decision: Decision) -> bool:
    """A plain -ERR: no login, and no word about the password."""
    return type(decision) is Reply and decision.octets.startswith(b"-ERR ") and b"[" not in decision.octets


# --- USER and PASS


def test_user_and_pass_ask_for_a_login():
    """RFC 1939 §7; what is to be decided reaches auth octet for octet."""
    first, login = converse_every_way(b"USER tim\r\nPASS tanstaaf\r\n")
    assert first.octets.startswith(b"+OK")
    assert login == Login(b"tim", b"tanstaaf", "USER")


def test_password_may_contain_and_begin_with_spaces():
    """The argument of PASS is the rest of the line after one space."""
    assert converse_every_way(b"USER tim\r\nPASS  two words \r\n")[1] == Login(b"tim", b" two words ", "USER")


def test_name_is_the_rest_of_the_line():
    """So is the argument of USER."""
    assert converse_every_way(b"user Tim O'Tay\nPASS x\n")[1] == Login(b"Tim O'Tay", b"x", "USER")


def test_pass_before_user_is_an_error():
    """And nothing is decided."""
    assert is_error(converse_every_way(b"PASS tanstaaf\r\n")[0])


def test_user_without_name_is_an_error():
    """With or without the space."""
    assert all(is_error(decision) for decision in converse_every_way(b"USER\r\nUSER \r\nPASS x\r\n"))


def test_after_a_refused_login_user_must_be_given_again():
    """A guesser does not get to send one PASS after the other."""
    decisions = converse_every_way(b"USER tim\r\nPASS a\r\nPASS b\r\nUSER tim\r\nPASS b\r\n")
    assert is_error(decisions[2])
    assert decisions[4] == Login(b"tim", b"b", "USER")


def test_the_last_user_counts():
    """USER again replaces the name; CAPA and mistakes in between do not matter."""
    decisions = converse_every_way(b"USER tim\r\nUSER ann\r\nCAPA\r\nXYZZY\r\nPASS x\r\n")
    assert decisions[-1] == Login(b"ann", b"x", "USER")


def test_every_name_gets_the_same_answer_to_user():
    """USER must not tell which names exist or could exist."""
    answers = {start().handle(b"USER " + name).octets for name in (b"tim", b"root", b"\x01\x7f", b"x" * 240)}
    assert len(answers) == 1


@pytest.mark.parametrize("name", [b"a\x01", b"a\rb", b"a\x7f", b"\x1b[2J"])
def test_control_characters_in_a_name_are_refused_in_the_usual_words(name):
    """Such a name is no account's: auth is not asked, and the client cannot tell."""
    _, refusal = converse_every_way(b"USER " + name + b"\r\nPASS x\r\n")
    assert refusal == RefusedLogin(LOGIN_REFUSED, name, "USER", "unusable_name")


@pytest.mark.parametrize("line", [b"PASS", b"PASS "])
def test_empty_password_is_refused_in_the_usual_words(line):
    """PAM with `nullok` would let it pass; and USER must be given again."""
    _, refusal, again = converse_every_way(b"USER tim\r\n" + line + b"\r\nPASS x\r\n")
    assert refusal == RefusedLogin(LOGIN_REFUSED, b"tim", "USER", "unusable_password")
    assert is_error(again)


def test_refused_login_says_auth():
    """RFC 3206: the credentials are the problem."""
    assert LOGIN_REFUSED.startswith(b"-ERR [AUTH] ")


# --- UTF-8 (RFC 6856 §2.2)

ILL_FORMED = [b"\xe4", b"\xc3", b"\xc3(", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80", b"\xff"]


@pytest.mark.parametrize("octets", ILL_FORMED)
def test_ill_formed_utf8_is_refused_before_auth_is_asked(octets):
    """In name and password, by PASS and by AUTH: must be, since CAPA has "UTF8 USER"."""
    for name, password in ((b"j" + octets, b"pw"), (b"joe", b"p" + octets + b"w")):
        refusal = RefusedLogin(LOGIN_REFUSED, name, "USER", "ill_formed_utf8")
        assert converse_every_way(b"USER " + name + b"\r\nPASS " + password + b"\r\n")[1] == refusal
        plain = b64(b"\0" + name + b"\0" + password)
        assert converse_every_way(b"AUTH PLAIN " + plain + b"\r\n")[0].reason == "ill_formed_utf8"
        login = b"AUTH LOGIN " + b64(name) + b"\r\n" + b64(password) + b"\r\n"
        assert converse_every_way(login)[1].reason == "ill_formed_utf8"


def test_utf8_names_and_passwords_are_accepted_without_utf8_mode():
    """The client may use them before the UTF8 command."""
    name, password = "jörg".encode(), "schlüssel ☂".encode()
    login = Login(name, password, "USER")
    assert converse_every_way(b"USER " + name + b"\r\nPASS " + password + b"\r\n")[1] == login
    assert converse_every_way(b"AUTH PLAIN " + b64(b"\0" + name + b"\0" + password) + b"\r\n") == [
        Login(name, password, "PLAIN")
    ]


# --- AUTH


def test_bare_auth_lists_the_mechanisms():
    """Outlook asks this way; the answer is a multi-line response."""
    assert converse_every_way(b"AUTH\r\n")[0].octets.split(b"\r\n", 1)[1] == b"PLAIN\r\nLOGIN\r\n.\r\n"


def test_only_offered_mechanisms_work():
    """What CAPA does not list is refused, and no response is awaited."""
    authorization = start(offer=Offer(mechanisms=("PLAIN",)))
    for line in (b"AUTH LOGIN", b"AUTH CRAM-MD5", b"AUTH SCRAM-SHA-256", b"AUTH \xff", b"AUTH  PLAIN"):
        assert is_error(authorization.handle(line))
        assert not authorization.awaits_sasl_response
    assert b"SASL PLAIN\r\n" in authorization.handle(b"CAPA").octets


@pytest.mark.parametrize("mechanism", [b"OAUTHBEARER", b"XOAUTH2"])
def test_tokens_are_refused_at_once_in_either_form(mechanism):
    """A client that tries them, with the token in the same line or without, can go on with a password."""
    for line in (mechanism, mechanism + b" " + b"dXNlcj1hbm4B" * 500):
        authorization = start()
        assert is_error(authorization.handle(b"AUTH " + line))
        assert not authorization.awaits_sasl_response
        assert not is_error(authorization.handle(b"USER ann"))


BEFORE_TLS = Offer(user=False, mechanisms=(), stls=True)


def test_stls_is_a_decision_where_it_is_offered():
    """RFC 2595 §4: +OK, and TLS begins right after it."""
    decision = start(offer=BEFORE_TLS).handle(b"stls")
    assert isinstance(decision, StartTls)
    assert decision.octets.startswith(b"+OK")
    assert is_error(start(offer=BEFORE_TLS).handle(b"STLS now"))


def test_stls_inside_tls_or_without_a_certificate_is_an_error():
    """RFC 2595 §4: a second STLS is -ERR, and CAPA does not name it."""
    authorization = start()
    assert is_error(authorization.handle(b"STLS"))
    assert b"STLS" not in authorization.handle(b"CAPA").octets


def test_stls_within_a_sasl_exchange_is_a_bad_response():
    """It is no command there; the exchange is over, and then it is one."""
    authorization = start(offer=Offer(stls=True))
    authorization.handle(b"AUTH PLAIN")
    assert is_error(authorization.handle(b"STLS"))
    assert isinstance(authorization.handle(b"STLS"), StartTls)


def test_where_no_password_may_come_user_is_refused_and_pass_says_the_same():
    """RFC 2595 §2.4: before the password is sent; a client that sends it all the same hears it again."""
    authorization = start(offer=BEFORE_TLS)
    answers = [authorization.handle(line) for line in (b"USER tim", b"PASS tanstaaf", b"PASS")]
    assert [answer.octets for answer in answers] == [CLEARTEXT_REFUSED] * 3
    assert answers[0] == RefusedLogin(CLEARTEXT_REFUSED, b"tim", "USER", "cleartext", "SYS/PERM")
    # One line in the log for one login.
    assert not isinstance(answers[1], RefusedLogin)
    assert b"[AUTH]" not in CLEARTEXT_REFUSED


def test_where_no_password_may_come_no_mechanism_is_offered_or_begins():
    """RFC 5034 §6: SASL lists what is usable now; a client that knows better gets no challenge."""
    authorization = start(offer=BEFORE_TLS)
    capabilities = authorization.handle(b"CAPA").octets
    assert b"SASL" not in capabilities
    assert b"\r\nUSER\r\n" not in capabilities
    assert b"STLS\r\n" in capabilities
    for line in (b"AUTH PLAIN", b"AUTH LOGIN", b"AUTH plain " + b64(b"\0tim\0tanstaaf")):
        decision = authorization.handle(line)
        assert isinstance(decision, RefusedLogin)
        assert decision.octets == CLEARTEXT_REFUSED
        assert not authorization.awaits_sasl_response
    assert authorization.handle(b"AUTH").octets.endswith(b"\r\n.\r\n")
    assert not isinstance(authorization.handle(b"AUTH CRAM-MD5"), RefusedLogin)


def test_plain_with_initial_response():
    """RFC 5034 §4, RFC 4616: one line."""
    line = b"AUTH plain " + b64(b"\0tim\0tanstaaf") + b"\r\n"
    assert converse_every_way(line) == [Login(b"tim", b"tanstaaf", "PLAIN")]


def test_plain_without_initial_response():
    """The empty challenge is plus, space, CRLF."""
    challenge, login = converse_every_way(b"AUTH PLAIN\r\n" + b64(b"tim\0tim\0two words") + b"\r\n")
    assert challenge == Reply(b"+ \r\n")
    assert login == Login(b"tim", b"two words", "PLAIN")


def test_login_without_initial_response():
    """Name and password are asked for one after the other."""
    octets = b"AUTH LOGIN\r\n" + b64(b"tim") + b"\r\n" + b64(b"tanstaaf") + b"\r\n"
    first, second, login = converse_every_way(octets)
    assert base64.b64decode(first.octets.removeprefix(b"+ ")) == b"Username:"
    assert base64.b64decode(second.octets.removeprefix(b"+ ")) == b"Password:"
    assert login == Login(b"tim", b"tanstaaf", "LOGIN")


def test_login_with_initial_response():
    """The initial response is the name."""
    second, login = converse_every_way(b"AUTH LOGIN " + b64(b"tim") + b"\r\n" + b64(b"pw") + b"\r\n")
    assert base64.b64decode(second.octets.removeprefix(b"+ ")) == b"Password:"
    assert login == Login(b"tim", b"pw", "LOGIN")


def test_equals_sign_is_a_zero_length_initial_response():
    """RFC 5034 §4: PLAIN cannot use one; LOGIN has an empty name then, which nobody has."""
    assert is_error(converse_every_way(b"AUTH PLAIN =\r\n")[0])
    challenge, refusal = converse_every_way(b"AUTH LOGIN =\r\n" + b64(b"pw") + b"\r\n")
    assert challenge.octets.startswith(b"+ ")
    assert refusal == RefusedLogin(LOGIN_REFUSED, b"", "LOGIN", "unusable_name")


def test_equals_sign_alone_is_no_later_response():
    """It stands for nothing only where nothing could not be written."""
    assert is_error(converse_every_way(b"AUTH PLAIN\r\n=\r\n")[1])


@pytest.mark.parametrize("mechanism", [b"PLAIN", b"LOGIN", b"LOGIN " + b64(b"tim")])
def test_star_cancels(mechanism):
    """-ERR, and the next line is a command again."""
    challenge, cancelled, capabilities = converse_every_way(b"AUTH " + mechanism + b"\r\n*\r\nCAPA\r\n")
    assert challenge.octets.startswith(b"+ ")
    assert is_error(cancelled)
    assert b"\r\nUIDL\r\n" in capabilities.octets


@pytest.mark.parametrize(
    "response",
    [b"!", b"AHRpbQB0YQ", b"AHRpbQB0YQ=", b"AHRp bQB0YQ==", b"AA==AA==", b"=AAA", b"AHRp\rbQ==", b"\xff"],
)
def test_bad_base64_is_an_error(response):
    """In an initial response and in a later one; it ends the exchange, and is no matter of [AUTH]."""
    assert is_error(converse_every_way(b"AUTH PLAIN " + response + b"\r\n")[0])
    _, refused, command = converse_every_way(b"AUTH PLAIN\r\n" + response + b"\r\nCAPA\r\n")
    assert is_error(refused)
    assert command.octets.startswith(b"+OK")


@pytest.mark.parametrize("response", [b"", b"tim", b"\0tim", b"\0tim\0pw\0", b"\0\0\0"])
def test_plain_needs_exactly_three_parts(response):
    """Authorization identity, name and password, with NUL between them (RFC 4616 §2)."""
    assert is_error(converse_every_way(b"AUTH PLAIN\r\n" + b64(response) + b"\r\n")[1])


def test_nobody_acts_for_somebody_else():
    """An authorization identity that is not the name itself is a refused login."""
    [refusal] = converse_every_way(b"AUTH PLAIN " + b64(b"root\0tim\0pw") + b"\r\n")
    assert refusal == RefusedLogin(LOGIN_REFUSED, b"tim", "PLAIN", "other_identity")
    [refusal] = converse_every_way(b"AUTH PLAIN " + b64(b"root\0" + b"x" * 9999 + b"\0pw") + b"\r\n")
    assert refusal.name == b"x" * MAX_NAME_OCTETS


@pytest.mark.parametrize(
    ("name", "password"),
    [
        (b"", b"pw"),
        (b"x" * (MAX_NAME_OCTETS + 1), b"pw"),
        (b"ti\nm", b"pw"),
        (b"tim", b""),
        (b"tim", b"p" * (MAX_PASSWORD_OCTETS + 1)),
    ],
)
def test_unusable_credentials_are_refused_in_the_usual_words(name, password):
    """Bounds hold for every mechanism, and no refusal can be told from another."""
    [plain] = converse_every_way(b"AUTH PLAIN " + b64(b"\0" + name + b"\0" + password) + b"\r\n")
    octets = b"AUTH LOGIN\r\n" + b64(name) + b"\r\n" + b64(password) + b"\r\n"
    login = converse_every_way(octets)[2]
    for refusal in (plain, login):
        assert isinstance(refusal, RefusedLogin)
        assert refusal.octets == LOGIN_REFUSED
        assert len(refusal.name) <= MAX_NAME_OCTETS


def test_credentials_at_their_bounds_are_accepted():
    """255 octets of name, 1,024 of password, some outside ASCII in both."""
    name, password = "ü".encode() + b"x" * (MAX_NAME_OCTETS - 2), "ä".encode() * (MAX_PASSWORD_OCTETS // 2)
    line = b"AUTH PLAIN " + b64(b"\0" + name + b"\0" + password) + b"\r\n"
    assert converse_every_way(line) == [Login(name, password, "PLAIN")]


def test_nul_in_a_login_password_is_refused():
    """AUTH LOGIN could smuggle one in where PASS and PLAIN cannot."""
    decisions = converse_every_way(b"AUTH LOGIN\r\n" + b64(b"tim") + b"\r\n" + b64(b"pw\0x") + b"\r\n")
    assert decisions[2] == RefusedLogin(LOGIN_REFUSED, b"tim", "LOGIN", "unusable_password")


@pytest.mark.parametrize("error", (HAS_NUL, TOO_LONG))
def test_line_error_ends_the_exchange(error):
    """An over-long response or one with NUL is one -ERR; the next line is a command again."""
    authorization = start()
    authorization.handle(b"AUTH PLAIN")
    assert authorization.awaits_sasl_response
    assert is_error(authorization.handle(error))
    assert not authorization.awaits_sasl_response


def test_awaits_sasl_response_only_between_challenge_and_response():
    """The front gives long lines room then, and only then."""
    authorization = start()
    awaited = []
    for line in (b"AUTH LOGIN", b64(b"tim"), b64(b"pw"), b"AUTH PLAIN", b"*", b"USER tim"):
        authorization.handle(line)
        awaited.append(authorization.awaits_sasl_response)
    assert awaited == [True, True, False, True, False, False]


def test_auth_forgets_user():
    """A cancelled AUTH leaves no half-given login behind."""
    decisions = converse_every_way(b"USER tim\r\nAUTH PLAIN\r\n*\r\nPASS x\r\n")
    assert is_error(decisions[3])


def test_after_a_refused_auth_everything_begins_again():
    """A refused login by AUTH leaves no name behind for PASS."""
    decisions = converse_every_way(b"AUTH PLAIN " + b64(b"\0tim\0pw") + b"\r\nPASS x\r\n")
    assert is_error(decisions[1])


# --- the rest


def test_quit_closes_without_update():
    """RFC 1939 §4: QUIT in AUTHORIZATION ends the connection, and nothing else."""
    [decision] = converse_every_way(b"QUIT\r\n")
    assert isinstance(decision, Close)
    assert decision.octets.startswith(b"+OK")


@pytest.mark.parametrize(
    "line", [b"STAT", b"LIST", b"UIDL", b"RETR 1", b"TOP 1 0", b"DELE 1", b"RSET", b"NOOP", b"APOP tim 0"]
)
def test_transaction_commands_are_errors_before_login(line):
    """-ERR, not a disconnect: the client may still log in."""
    first, second, login = converse_every_way(line + b"\r\nUSER tim\r\nPASS x\r\n")
    assert is_error(first)
    assert second.octets.startswith(b"+OK")
    assert login == Login(b"tim", b"x", "USER")


@pytest.mark.parametrize("text", ["gpop ready", "<host> ready", "<1896.697@dbc.mtview.ca.us>", "[x] <a@b>"])
def test_greeting_never_offers_apop(text):
    """Clients take `<...@...>` in the greeting for an APOP challenge, and "[" for a response code."""
    octets = greeting(text)
    assert octets.startswith(b"+OK ") and octets.endswith(b"\r\n")
    assert b"<" not in octets and b">" not in octets and b"+OK [" not in octets


@thorough
@given(octets=client_octets | st.binary(max_size=400), cuts=cuts)
def test_any_octets_lead_to_decisions(octets, cuts):
    """Whatever a stranger sends, in whatever pieces: decisions, the same ones, and never a traceback."""
    decisions = converse(pieces(octets, cuts))
    assert decisions == converse([octets])
    for decision in decisions:
        assert isinstance(decision, Login) or decision.octets.startswith((b"+OK", b"-ERR ", b"+ "))
        assert isinstance(decision, Login) or decision.octets.endswith(b"\r\n")


@thorough
@given(name=st.binary(max_size=300), password=st.binary(max_size=1100))
def test_no_login_with_an_unusable_name_or_password_is_handed_out(name, password):
    """Auth sees bounded names without control characters and bounded, non-empty passwords, nothing else."""
    for octets in (
        b"AUTH PLAIN " + b64(b"\0" + name + b"\0" + password) + b"\r\n",
        b"AUTH LOGIN " + b64(name) + b"\r\n" + b64(password) + b"\r\n",
    ):
        for decision in converse([octets]):
            if isinstance(decision, Login):
                assert (decision.name, decision.password) == (name, password)
                assert 0 < len(name) <= MAX_NAME_OCTETS and min(name) >= 0x20 and 0x7F not in name
                assert 0 < len(password) <= MAX_PASSWORD_OCTETS and 0 not in password
