"""
EDGE: PAM, through python-pam. The only module that uses it.

What python-pam 2.1 lacks or does unasked is put right here: the peer becomes PAM_RHOST, a
wrong password does not sleep in this process (the delays are auth's), credentials are not
re-established, an empty password is never asked about, prompts in any encoding are
survived. Executed as root by auth's checkers, warmed by auth itself.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from dataclasses import dataclass

import pam

from gpop.accounts.account import AUTH, SYS_TEMP

PAM_DIRECTORIES = ("/etc/pam.d", "/usr/etc/pam.d", "/usr/lib/pam.d", "/usr/share/pam.d")
PAM_CONF = "/etc/pam.conf"
MAX_PASSWORD_OCTETS = 511  # PAM_MAX_RESP_SIZE with its NUL
MAX_SERVICE_FILE_OCTETS = 64 * 1024
MAX_INCLUDED_FILES = 32

PAM_SUCCESS = 0
PAM_FAIL_DELAY = 10  # not in python-pam: the item that holds the delay function
PAM_FLAGS = pam.PAM_SILENT | pam.PAM_DISALLOW_NULL_AUTHTOK

# What PAM says about the user: refused, and asking again with the same password is of no use.
REFUSALS = {
    pam.PAM_AUTH_ERR: "wrong_password",
    pam.PAM_USER_UNKNOWN: "unknown_user",
    pam.PAM_PERM_DENIED: "permission_denied",
    pam.PAM_MAXTRIES: "too_many_tries",
    pam.PAM_NEW_AUTHTOK_REQD: "password_expired",
    pam.PAM_AUTHTOK_EXPIRED: "password_expired",
    pam.PAM_ACCT_EXPIRED: "account_expired",
    pam.PAM_CRED_EXPIRED: "credentials_expired",
}
# What PAM says about itself. Codes in neither table are faults too ("pam_error").
FAULTS = {
    pam.PAM_OPEN_ERR: "pam_open_error",
    pam.PAM_SYMBOL_ERR: "pam_symbol_error",
    pam.PAM_SERVICE_ERR: "pam_service_error",
    pam.PAM_SYSTEM_ERR: "pam_system_error",
    pam.PAM_BUF_ERR: "pam_buffer_error",
    pam.PAM_CRED_INSUFFICIENT: "pam_credentials_insufficient",
    pam.PAM_AUTHINFO_UNAVAIL: "pam_authinfo_unavailable",
    pam.PAM_CONV_ERR: "pam_conversation_error",
    pam.PAM_TRY_AGAIN: "pam_try_again",
    pam.PAM_ABORT: "pam_abort",
    pam.PAM_MODULE_UNKNOWN: "pam_module_unknown",
}

# void (*delay_fn)(int retval, unsigned usec_delay, void *appdata_ptr)
_DelayFunction = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)


def _no_delay(_code: int, _microseconds: int, _data: int | None) -> None:
    """PAM calls this instead of sleeping."""


_no_delay_function = _DelayFunction(_no_delay)


@dataclass(frozen=True, slots=True)
class Answer:
    """What PAM said: `code` "" for yes, else AUTH or SYS/TEMP, with one word and PAM's own text."""

    code: str
    reason: str
    detail: str = ""


def service_file(service: str) -> str | None:
    """
    Return the file that configures `service`, None if there is none.

    Without one, PAM falls to `other`, which may accept anybody (Debian's asks for the system's
    passwords): such a service must not be used.
    """
    # libpam folds the name to lower case and takes what follows the last "/".
    name = service.lower()
    if not re.fullmatch(r"[a-z0-9_][a-z0-9_.-]*", name) or name == "other":
        return None
    for directory in PAM_DIRECTORIES:
        path = f"{directory}/{name}"
        if os.path.isfile(path):
            return path
    # pam.conf counts only where there is no pam.d at all.
    if not any(map(os.path.isdir, PAM_DIRECTORIES)) and _named_in_pam_conf(name):
        return PAM_CONF
    return None


def _named_in_pam_conf(name: str) -> bool:
    return any(line.split()[:1] == [name] for line in _lines(PAM_CONF))


def files_of(service: str) -> list[str]:
    """Return the service's file and every file it includes, as far as they can be followed."""
    first = service_file(service)
    found = [first] if first else []
    for path in found:
        for line in _lines(path):
            included = _included(line)
            if included and included not in found and len(found) < MAX_INCLUDED_FILES:
                found.append(included)
    return found


def _included(line: str) -> str | None:
    """Return the path that a line of a service file includes (`@include x`, `auth substack x`)."""
    words = line.split()
    if len(words) >= 2 and words[0] == "@include":
        name = words[1]
    elif len(words) >= 3 and words[1] in ("include", "substack"):
        name = words[2]
    else:
        return None
    return name if name.startswith("/") else service_file(name)


def _lines(path: str) -> list[str]:
    try:
        with open(path, "rb") as file:
            octets = file.read(MAX_SERVICE_FILE_OCTETS)
    except OSError:
        return []
    text = octets.decode("utf-8", "replace")
    return [line for line in text.splitlines() if not line.lstrip().startswith("#")]


def warm(service: str) -> pam.PamAuthenticator:
    """
    Do now, once for all checkers, what each of them would do: find libpam, load the modules.

    Finding it starts other programs. Loaded modules stay loaded as long as what is returned is
    kept: it holds an open handle of `service`, which nobody ever asks anything. A module that
    is replaced on disk is used from the next reload on, the service's file at once.
    """
    authenticator = pam.PamAuthenticator()
    authenticator.pam_authenticate = lambda _handle, _flags: pam.PAM_IGNORE
    authenticator.authenticate(b"gpop", b"", service.encode(), encoding="latin-1", call_end=False)
    return authenticator


def check(service: str, name: bytes, password: bytes, peer: str) -> Answer:
    """
    Ask PAM whether `name` may log in with `password` from `peer`: both its phases.

    Returns when PAM does, which may be never: the caller has a deadline.
    """
    if not password:
        # Under `nullok` an account without a password would be open to everybody.
        return Answer(AUTH, "empty_password")
    if len(password) > MAX_PASSWORD_OCTETS or b"\0" in password or b"\0" in name:
        return Answer(AUTH, "wrong_password")
    return _converse(service, name, password, peer, ask_password=True)


def check_account(service: str, name: bytes, peer: str) -> Answer:
    """Ask PAM's account phase alone: may a user who proved who he is log in now, from there?"""
    return _converse(service, name, b"", peer, ask_password=False)


def _converse(service: str, name: bytes, password: bytes, peer: str, ask_password: bool) -> Answer:
    authenticator = pam.PamAuthenticator()
    authenticate, manage_account = authenticator.pam_authenticate, authenticator.pam_acct_mgmt

    def with_items(handle: pam.PamHandle, _flags: int) -> int:
        # python-pam calls this with a fresh handle: the one moment where items can be set.
        for item, value in (
            (pam.PAM_RHOST, ctypes.c_char_p(peer.encode("ascii", "replace"))),
            (PAM_FAIL_DELAY, ctypes.cast(_no_delay_function, ctypes.c_void_p)),
        ):
            code: int = authenticator.pam_set_item(handle, item, value)
            if code != PAM_SUCCESS:
                return code
        return int(authenticate(handle, PAM_FLAGS)) if ask_password else PAM_SUCCESS

    authenticator.pam_authenticate = with_items
    authenticator.pam_acct_mgmt = _with_flags(manage_account)
    try:
        # Octets pass unchanged; the encoding is only for PAM's own texts, and Latin-1 takes any octet.
        accepted = authenticator.authenticate(
            name, password, service.encode(), encoding="latin-1", resetcreds=False
        )
    finally:
        authenticator.end()  # does nothing where authenticate() has ended the handle
    if accepted:
        return Answer("", "accepted")
    return answer_for(authenticator.code, str(authenticator.reason or ""))


def _with_flags(manage_account: Callable[..., int]) -> Callable[..., int]:
    return lambda handle, _flags: manage_account(handle, PAM_FLAGS)


def answer_for(code: int, text: str) -> Answer:
    """Return what a PAM code means for a login: a refusal of the user, or a fault of PAM's."""
    reason = REFUSALS.get(code)
    if reason is not None:
        return Answer(AUTH, reason, text)
    return Answer(SYS_TEMP, FAULTS.get(code, "pam_error"), f"{text} ({code})")
