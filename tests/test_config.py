"""Reading the config: every problem, with its key, its line, its value and what would be right."""

from __future__ import annotations

import argparse
import importlib.util
import json
import marshal
import os
import resource
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpop import certificates, config
from gpop.accounts.maps import lmdbfile
from gpop.commands import check_config as config_command
from gpop.config import machine, reading, toml_lines
from gpop.config.settings import SETTINGS
from tests.certificates import Authority

SOURCE = '[[accounts.sources]]\ntype = "passwd-file"\npath = "passwd"\n'

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a config file beside an empty passwd-file; returns its path."""
    passwd = tmp_path / "passwd"
    passwd.touch(mode=0o600)

    def write_config(text: str) -> str:
        path = tmp_path / "gpop.toml"
        path.write_text(text, "utf-8", newline="")
        return str(path)

    return write_config


def problems(path: str) -> list[config.Problem]:
    """What is wrong with the file itself, whatever the machine says."""
    return reading.read(path).errors


def only_problem(path: str) -> config.Problem:
    found = problems(path)
    assert len(found) == 1, found
    return found[0]


# Values


def test_a_file_with_only_a_source_has_the_defaults(write: Write) -> None:
    """What is not said has its documented default."""
    checked = reading.read(write(SOURCE))
    assert not checked.errors
    settings = checked.config()
    assert settings.session.autologout_s == 600
    assert settings.broker.listen == ["127.0.0.1:110", "[::1]:110"]
    assert settings.auth.cache_enabled is False


def test_every_setting_reaches_a_process(write: Write) -> None:
    """A setting that no process gets would be read, checked, and without effect."""
    plain = reading.read(write(SOURCE)).config().as_plain()
    handed_over = set().union(*plain.values())
    made_of_it = {"sources", "certificate_ends", "session_calls", "service_calls", "log_calls"}
    assert handed_over == {setting.field for setting in SETTINGS} - {"seccomp"} | made_of_it


def test_a_range_of_uids_that_is_none_is_an_error(write: Write) -> None:
    """Before anybody wonders why nobody can log in."""
    (problem,) = reading.read(write(SOURCE + "[accounts]\nlast_valid_uid = 999\n")).errors
    assert "accounts.last_valid_uid = 999: below accounts.first_valid_uid, 1000" in str(problem)


def test_settings_are_plain_values(write: Write) -> None:
    """What marshal makes of the settings is the same again, so the broker reads them without gpop.config."""
    plain = reading.read(write(SOURCE + '[server]\nlisten = ["[::1]:0"]\n')).config().as_plain()
    assert marshal.loads(marshal.dumps(plain)) == plain
    assert plain["broker"]["listen"] == ["[::1]:0"]


def test_a_passwd_file_is_looked_for_beside_the_config(write: Write, tmp_path: Path) -> None:
    """A relative path does not depend on where gpop was started."""
    settings = reading.read(write(SOURCE)).config()
    assert settings.auth.sources == [{"type": "passwd-file", "path": str(tmp_path / "passwd")}]


def test_addresses_and_networks_take_their_normal_form(write: Write) -> None:
    """The same address in another spelling is the same address."""
    text = SOURCE + '[server]\nlisten = ["[0:0:0:0:0:0:0:1]:0110"]\n[accounts.cache]\n[log]\n'
    assert reading.read(write(text)).config().broker.listen == ["[::1]:110"]


# Problems


@pytest.mark.parametrize(
    ("section", "line", "key", "hint"),
    [
        ("server", "fronts = 0", "server.fronts = 0", "a whole number from 1 to 64"),
        ("server", "fronts = true", "server.fronts = true", "a whole number"),
        ("server", "fronts = 1.5", "server.fronts = 1.5", "a whole number"),
        ("server", 'user = ""', 'server.user = ""', "the name of a user"),
        ("server", "user = 5", "server.user = 5", "the name of a user"),
        ("server", "listen = []", "server.listen = []", "must not be empty"),
        ("server", 'listen = "127.0.0.1:110"', "server.listen = ", "a list"),
        ("server", 'listen = ["localhost:110"]', "server.listen[1] = ", "an IP address and a port"),
        ("server", 'listen = ["127.0.0.1"]', "server.listen[1] = ", "the port is missing"),
        ("server", 'listen = ["127.0.0.1:65536"]', "server.listen[1] = ", "a number from 0 to 65535"),
        ("server", 'listen = ["::1:110"]', "server.listen[1] = ", "square brackets"),
        ("server", 'listen = ["[127.0.0.1]:110"]', "server.listen[1] = ", "square brackets"),
        ("server", 'listen = ["*:110"]', "server.listen[1] = ", '"0.0.0.0:110" and "[::]:110"'),
        ("server", 'listen = ["127.0.0.1:0", "[::1]:1", "[::1]:1"]', "server.listen[3] = ", "twice"),
        ("server", 'listen = ["127.0.0.1:1", "0.0.0.0:1"]', "server.listen[1] = ", "already includes"),
        (
            "server",
            'proxy_listen = ["localhost:110"]',
            "server.proxy_listen[1] = ",
            "an IP address and a port",
        ),
        ("server", 'proxy_networks = ["192.0.2.1/24"]', "server.proxy_networks[1] = ", '"192.0.2.0/24"'),
        ("server", "proxy_timeout_s = 0", "server.proxy_timeout_s = 0", "a number of seconds"),
        ("server", 'xclient_networks = ["lan"]', "server.xclient_networks[1] = ", "an IP address or"),
        ("server", 'run_dir = "run/gpop"', "server.run_dir = ", "an absolute path"),
        ("server", 'hostname = "a b"', "server.hostname = ", "a host name"),
        ("session", 'jail = "maildr"', "session.jail = ", 'did you mean "maildir"?'),
        ("session", 'lock = "yes"', "session.lock = ", "true or false"),
        ("session", "autologout_s = -1", "session.autologout_s = -1", "a number of seconds"),
        ("session", "autologout_s = nan", "session.autologout_s = NaN", "a number of seconds"),
        ("session", "autologout_s = 06:00:00", "session.autologout_s = ", "a number of seconds"),
        ("accounts", "first_valid_uid = 0", "accounts.first_valid_uid = 0", "from 1 to"),
        ("accounts", 'maildir = "~/Maildir"', "accounts.maildir = ", "inside each home"),
        ("accounts", 'maildir = "../Maildir"', "accounts.maildir = ", "no .."),
        ("accounts", 'trusted_networks = ["10.0.0.1/8"]', "accounts.trusted_networks[1] = ", '"10.0.0.0/8"'),
        ("accounts", 'trusted_networks = ["lan"]', "accounts.trusted_networks[1] = ", "an IP address or"),
        ("accounts.cache", "max_entries = 0", "accounts.cache.max_entries = 0", "from 1 to"),
        ("session", 'removal = "Trash"', "session.removal = ", "a Maildir++ folder"),
        ("session", 'removal = "../../etc"', "session.removal = ", "a Maildir++ folder"),
        ("log", 'format = "jsno"', "log.format = ", 'did you mean "json"?'),
    ],
)
def test_a_bad_value_is_named_with_what_would_be_right(
    write: Write, section: str, line: str, key: str, hint: str
) -> None:
    """Key, line, value and the accepted form stand in one sentence."""
    path = write(f"{SOURCE}\n[{section}]\n{line}\n")
    text = str(only_problem(path))
    assert text.startswith(f"{path}:6: {key}"), text
    assert hint in text, text


@pytest.mark.parametrize(
    ("lines", "error", "warning"),
    [
        ('proxy_listen = ["[::1]:110"]\nproxy_networks = ["192.0.2.7"]', "", ""),
        ('proxy_listen = ["[::1]:1110"]\nproxy_networks = ["192.0.2.7"]', "server.proxy_listen[1]", ""),
        ('proxy_listen = ["[::1]:110"]', "server.proxy_networks", ""),
        ('proxy_networks = ["192.0.2.7"]', "", "server.proxy_networks"),
        ('proxy_listen = ["[::1]:110"]\nproxy_networks = ["::/0"]', "", "server.proxy_networks[1]"),
        ('xclient_networks = ["192.0.2.7", "0.0.0.0/0"]', "", "server.xclient_networks[2]"),
    ],
)
def test_proxies_are_listened_for_and_named(write: Write, lines: str, error: str, warning: str) -> None:
    """An address for balancers that nobody may use, or balancers without one; and a network of everybody."""
    checked = reading.read(write(f"{SOURCE}\n[server]\n{lines}\n"))
    assert [problem.key for problem in checked.errors] == ([error] if error else [])
    assert [problem.key for problem in checked.warnings] == ([warning] if warning else [])


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("[session]\nautologut_s = 5\n", 2, 'did you mean "session.autologout_s"?'),
        ("[server]\nautologout_s = 5\n", 2, 'did you mean "session.autologout_s"?'),
        ("autologout_s = 5\n", 1, 'did you mean "session.autologout_s"?'),
        ("[loging]\nlevel = 'info'\n", 1, 'did you mean "log"?'),
        ("[session]\nquantum = 1\n", 2, "unknown setting"),
        ('"session.lock" = false\n', 1, "unknown setting"),
        ("[[server]]\nfronts = 1\n", 1, "[server]"),
        ("log = 'json'\n", 1, "[log]"),
    ],
)
def test_an_unknown_setting_is_a_problem_with_a_guess(write: Write, text: str, line: int, hint: str) -> None:
    """A mistyped setting never silently means its default."""
    problem = only_problem(write(text + SOURCE))
    assert problem.line == line
    assert hint in problem.text


def test_every_problem_is_reported_at_once(write: Write) -> None:
    """One run of check-config is enough to mend a file; the problems come in the order of their lines."""
    server = '[server]\nfronts = 0\nlisten = [\n  "x",\n  "127.0.0.1:1",\n  "y"]\n'
    path = write(server + "[log]\nlevel = 1\nsize = 2\n")
    with pytest.raises(config.ConfigErrors) as raised:
        reading.load(path)
    found = [(problem.line, problem.key) for problem in raised.value.problems if problem.key != "server.user"]
    assert found == [
        (0, "accounts.sources"),
        (2, "server.fronts"),
        (4, "server.listen[1]"),
        (6, "server.listen[3]"),
        (8, "log.level"),
        (9, "log.size"),
    ]


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("[server]\nuser = gpop\n", 2, "column 8"),
        ("[server]\nfronts = 1\nfronts = 2\n", 3, "twice"),
        ("[server]\n\n[server]\n", 3, "twice"),
        ("[server]\nlisten = [\n", 2, "ends too early"),
        ("[log]\r\nformat = 'x\r\n", 2, "not TOML"),
    ],
)
def test_a_mistake_in_the_toml_names_its_line(write: Write, text: str, line: int, hint: str) -> None:
    """An administrator finds a forgotten quote without counting lines."""
    problem = only_problem(write(text))
    assert (problem.line, hint in problem.text) == (line, True), problem


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    """Nor are line ends of Windows: some editors write both."""
    path = tmp_path / "gpop.toml"
    path.write_bytes(b"\xef\xbb\xbf[server]\r\nfronts = 3\r\n")
    read = reading.read(str(path))
    assert [problem.key for problem in read.errors] == ["accounts.sources"]
    assert read.values["fronts"] == 3


def test_octets_that_are_not_utf_8_name_their_line(tmp_path: Path) -> None:
    """A file in Latin-1 says so instead of ending in a traceback."""
    path = tmp_path / "gpop.toml"
    path.write_bytes(b"[server]\n# Gr\xfc\xdfe\n")
    problem = only_problem(str(path))
    assert problem.line == 2
    assert "0xfc" in problem.text


def test_a_file_that_cannot_be_read_is_one_problem(tmp_path: Path) -> None:
    """Nothing else is complained about when nothing is known."""
    with pytest.raises(config.ConfigErrors) as missing:
        reading.load(str(tmp_path / "nowhere.toml"))
    assert str(missing.value) == f"{tmp_path}/nowhere.toml: cannot be read: No such file or directory"
    assert "directory" in str(only_problem(str(tmp_path)))


# Sources


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("", 0, "nobody could log in"),
        ("[accounts]\nsources = []\n", 2, "nobody could log in"),
        ('[accounts]\nsources = ["pam"]\n', 2, "[[accounts.sources]]"),
        ('[accounts.sources]\ntype = "pam"\n', 1, "[[accounts.sources]]"),
        ('[[accounts.sources]]\npath = "x"\n', 1, "the type is missing"),
        ('[[accounts.sources]]\ntype = "pm"\n', 2, 'did you mean "pam"?'),
        ('[[accounts.sources]]\ntype = "passwd-file"\n', 1, "path is missing"),
        ('[[accounts.sources]]\ntype = "pam"\npath = "x"\n', 3, "no such setting"),
        ('[[accounts.sources]]\ntype = "pam"\nservice = "../x"\n', 3, "the name of a PAM service"),
        ('[[accounts.sources]]\ntype = "pam"\nservice = "OTHER"\n', 3, 'not "other"'),
        (SOURCE + SOURCE, 4, "for the second time"),
    ],
)
def test_sources_are_checked_one_by_one(write: Write, text: str, line: int, hint: str) -> None:
    """Without a usable source nobody could log in, so each must be right."""
    problem = only_problem(write(text))
    assert (problem.line, hint in problem.text) == (line, True), problem


def test_a_bad_source_does_not_shift_the_place_of_the_next(write: Write, tmp_path: Path) -> None:
    """What the machine says about the second source names the second source."""
    path = write('[[accounts.sources]]\ntype = "x"\n' + SOURCE.replace('"passwd"', '"no"'))
    with pytest.raises(config.ConfigErrors) as raised:
        reading.load(path)
    found = {problem.key: problem for problem in raised.value.problems}
    assert found["accounts.sources[2].path"].line == 5
    assert "No such file" in found["accounts.sources[2].path"].text


# What the machine says


def as_user(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)


def machine_problems(path: str) -> reading.Reading:
    checked = reading.read(path)
    assert not checked.errors
    machine.check(checked)
    return checked


def test_a_missing_passwd_file_is_an_error(write: Write) -> None:
    """Otherwise each login would be told [SYS/TEMP], and nobody would know why."""
    with pytest.raises(config.ConfigErrors) as raised:
        reading.load(write(SOURCE.replace('"passwd"', '"nowhere"')))
    assert "nowhere" in str(raised.value)


@pytest.mark.parametrize(("mode", "errors", "warnings"), [(0o600, 0, 0), (0o604, 0, 1), (0o602, 1, 0)])
def test_the_passwd_file_is_nobody_elses(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, errors: int, warnings: int
) -> None:
    """Readable by others is a warning, writable an error: who writes there makes accounts."""
    as_user(monkeypatch, os.getuid() or 1000)
    path = write(SOURCE + '[server]\nlisten = ["127.0.0.1:0"]\n')
    (tmp_path / "passwd").chmod(mode)
    checked = machine_problems(path)
    assert (len(checked.errors), len(checked.warnings)) == (errors, warnings)


def test_a_line_of_the_passwd_file_that_cannot_be_used_is_a_warning(write: Write, tmp_path: Path) -> None:
    """One bad line keeps one user out, and check-config says which line it is."""
    path = write(SOURCE)
    (tmp_path / "passwd").write_text("# comment\nanna:{WHAT}x:1000:1000::/home/anna:\n")
    found = [str(warning) for warning in machine_problems(path).warnings]
    assert any(text.startswith(f"{tmp_path}/passwd:2: ") and "WHAT" in text for text in found), found


def test_metrics_have_an_address_of_their_own(write: Write) -> None:
    """Not one at which mail is served; and one that others can reach is worth a warning."""
    text = (
        SOURCE + '[server]\nlisten = ["127.0.0.1:110"]\n[metrics]\nlisten = ["127.0.0.1:110", "[::]:9610"]\n'
    )
    found = reading.read(write(text))
    assert [(problem.key, "of its own" in problem.text) for problem in found.errors] == [
        ("metrics.listen[1]", True)
    ]
    assert [problem.key for problem in found.warnings] == ["metrics.listen[2]"]


def test_metrics_need_their_package(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is started, with what to type."""
    as_user(monkeypatch, 1000)
    path = write(SOURCE + '[metrics]\nlisten = ["127.0.0.1:9610"]\n')
    assert not machine_problems(path).errors
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    (problem,) = machine_problems(path).errors
    assert (problem.key, problem.line) == ("metrics.listen", 5)
    assert f"{sys.executable} -m pip install 'gpop[metrics]'" in problem.text


def test_a_log_has_a_place_to_go(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file in a folder that nobody else can write to, or the socket of a daemon; else it is an error."""
    as_user(monkeypatch, os.geteuid())
    folder = tmp_path / "log"
    folder.mkdir(mode=0o700)

    def problems(target: str, key: str, path: Path) -> list[str]:
        text = f'{SOURCE}[server]\nuser = "nobody"\n[log]\ntarget = "{target}"\n{key} = "{path}"\n'
        return [problem.key for problem in machine_problems(write(text)).errors]

    assert problems("file", "path", folder / "gpop.log") == []
    assert problems("file", "path", tmp_path / "none" / "gpop.log") == ["log.path"]
    assert problems("file", "path", folder) == ["log.path"]
    folder.chmod(0o770)
    assert problems("file", "path", folder / "gpop.log") == ["log.path"]
    assert problems("stdout", "path", folder / "gpop.log") == []
    assert problems("syslog", "syslog_socket", folder) == ["log.syslog_socket"]
    assert problems("syslog", "syslog_socket", folder / "none") == ["log.syslog_socket"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(folder / "socket"))
        assert problems("syslog", "syslog_socket", folder / "socket") == []


def test_root_needs_the_service_user(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fronts must not run as root because a user was forgotten, nor as root by name."""
    as_user(monkeypatch, 0)
    missing = machine_problems(write(SOURCE + '[server]\nuser = "no-such-user"\n')).errors
    assert [(problem.key, problem.line) for problem in missing] == [("server.user", 5)]
    is_root = machine_problems(write(SOURCE + '[server]\nuser = "root"\n')).errors
    assert "this is root" in is_root[0].text


def test_without_root_the_service_user_does_not_matter(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop has no user gpop and needs none."""
    as_user(monkeypatch, 1000)
    assert not machine_problems(write(SOURCE)).errors


def test_without_root_pam_is_an_error_and_a_low_port_a_warning(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both would fail later, with less to go by."""
    as_user(monkeypatch, 1000)
    monkeypatch.setattr(machine, "_first_unprivileged_port", lambda: 1024)
    text = '[[accounts.sources]]\ntype = "pam"\nservice = "login"\n[server]\nlisten = ["127.0.0.1:110"]\n'
    checked = machine_problems(write(text))
    assert any("need root" in problem.text for problem in checked.errors)
    assert [warning.key for warning in checked.warnings] == ["server.listen[1]"]


def test_a_pam_service_without_a_file_is_an_error(write: Write) -> None:
    """PAM would ask its service `other` instead, which may accept anybody."""
    checked = machine_problems(write('[[accounts.sources]]\ntype = "pam"\nservice = "gpop-no-such"\n'))
    assert any("/etc/pam.d/gpop-no-such" in problem.text for problem in checked.errors)


def test_the_run_directory_must_be_roots(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A jail into which somebody else can write is none."""
    as_user(monkeypatch, 0)
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    text = SOURCE + f'[server]\nuser = "nobody"\nrun_dir = "{tmp_path}/run"\n'
    assert [problem.key for problem in machine_problems(write(text)).errors] == ["server.run_dir"]


def test_a_config_that_everybody_can_write_is_an_error(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root does what the file says."""
    as_user(monkeypatch, 0)
    path = write(SOURCE + '[server]\nuser = "nobody"\n')
    os.chmod(path, 0o666)
    assert "chmod o-w" in str(machine_problems(path).errors[0])


def test_a_store_that_everybody_can_write_to_is_an_error(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each login would be refused: its session locks itself in there."""
    as_user(monkeypatch, 0)
    store = tmp_path / "store"
    store.mkdir()
    config = f'{SOURCE}[server]\nuser = "nobody"\n[session]\nreuse_below = "{store}"\n'
    store.chmod(0o755)
    assert not machine_problems(write(config)).errors
    store.chmod(0o1777)
    (error,) = machine_problems(write(config)).errors
    assert error.line == 7 and "everybody can write there" in error.text


# Warnings


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("autologout_s = 599", "RFC 1939 section 3"),
        ("lock = false", "RFC 1939 section 8"),
        ('jail = "none"', "can read every file"),
    ],
)
def test_what_is_allowed_and_unwise_is_a_warning(
    write: Write, monkeypatch: pytest.MonkeyPatch, line: str, hint: str
) -> None:
    """A warning says so and starts all the same."""
    as_user(monkeypatch, 0)
    checked = machine_problems(write(f'{SOURCE}[server]\nuser = "nobody"\n[session]\n{line}\n'))
    assert not checked.errors
    # That the files are not root's is another matter, if we are not.
    warnings = [each for each in checked.warnings if "belongs to" not in each.text]
    assert [(warning.line, hint in warning.text) for warning in warnings] == [(7, True)]


# The two ways to ask


def test_the_short_lived_process_says_what_is_wrong(write: Write) -> None:
    """The broker gets values or errors, and an exit status, from a process that then is gone."""
    path = write(SOURCE.replace('"passwd"', '"nowhere"'))
    main = Path(__file__).parent.parent / "gpop" / "__main__.py"
    command = [sys.executable, "-I", str(main), "read-config", path]
    done = subprocess.run(command, capture_output=True, check=False, cwd="/")
    answer = marshal.loads(done.stdout)
    assert done.returncode == 1
    assert any("nowhere" in error for error in answer["errors"])


def test_main_prints_the_settings(
    write: Write, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """What the broker reads has one group of settings for each process."""
    as_user(monkeypatch, 1000)
    assert reading.main([write(SOURCE + "[session]\nlock = false\n")]) == 0
    answer = marshal.loads(capfdbinary.readouterr().out)
    assert set(answer["settings"]) == {"broker", "front", "auth", "session", "metrics", "log"}
    assert answer["settings"]["session"]["lock"] is False
    assert any("session.lock = false" in warning for warning in answer["warnings"])


def check_config(path: str) -> int:
    parser = argparse.ArgumentParser()
    config_command.add_arguments(parser)
    return config_command.run(parser.parse_args(["--config", path]))


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ('listen = ["0.0.0.0:110", "127.0.0.2:110"]', ["server.listen[1]"]),
        ('listen = ["[::]:110"]\n[accounts]\ntrusted_networks = ["::1/128"]', ["server.listen[1]"]),
        ('listen = ["0.0.0.0:110"]\n[accounts]\ntrusted_networks = ["192.0.2.0/24"]', []),
        ('listen = ["0.0.0.0:110"]\n[accounts]\ncleartext = "always"', []),
        ('listen = ["0.0.0.0:110"]\nxclient_networks = ["192.0.2.1/32"]', []),
        (
            'listen = ["192.0.2.1:110"]\nproxy_listen = ["192.0.2.1:110"]\nproxy_networks = ["192.0.2.2/32"]',
            [],
        ),
    ],
)
def test_an_address_where_nobody_elsewhere_can_log_in(write: Write, text: str, warned: list[str]) -> None:
    """Without TLS, and without leave for cleartext, a new administrator is told before the first user is."""
    path = write(f"[server]\n{text}\n{SOURCE}")
    assert [each.key for each in reading.read(path).warnings] == warned


def test_check_config_tells_errors_from_warnings(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit status is that of the errors; warnings are shown beside them."""
    as_user(monkeypatch, 1000)
    path = write(SOURCE + "[session]\nlock = false\n")
    assert check_config(path) == 0
    assert f"warning: {path}:5: session.lock = false: " in capsys.readouterr().out
    path = write(SOURCE + "[session]\nlock = false\njail = 1\n")
    assert check_config(path) == 1
    printed = capsys.readouterr().out
    assert f"error: {path}:6: session.jail = 1: " in printed
    assert f"{path}: 1 error, " in printed


# Anything at all


known_keys = st.sampled_from(
    [setting.key for setting in SETTINGS] + ["accounts.sources", "accounts.cache", "log"]
)
known_values = st.sampled_from(
    [
        0,
        -1,
        2**70,
        1.5,
        True,
        "",
        "pam",
        "127.0.0.1:110",
        "[::1]:0",
        [],
        ["::1"],
        [[1]],
        [{"type": "pam"}],
        {},
    ]
)


def inline(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {inline(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return json.dumps(value)


@given(st.dictionaries(known_keys, known_values, max_size=5))
def test_whatever_stands_in_a_file_is_a_problem_or_a_setting(document: dict[str, object]) -> None:
    """No value, however wrong its type, ends in a traceback; and without errors there is a config."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "gpop.toml")
        Path(path).write_text("".join(f"{key} = {inline(value)}\n" for key, value in document.items()))
        checked = reading.read(path)
        if not checked.unreadable:
            machine.check(checked)
        assert all(problem.text for problem in checked.errors)
        if not checked.errors:
            json.dumps(checked.config().as_plain())


# Lines


def test_lines_are_found_in_every_form_toml_has() -> None:
    """Dotted and quoted keys, nested tables, strings that look like TOML: the line is the right one."""
    text = '''\
# [not.a.table]
top = """
[also.not]
x = 1
""" # end
a.b . "c d" = 1

[t . "u"]
list = [ # comment ]
  "]", [1,
  2], {k = "}", l = [
    3]},
]
date = 1979-05-27T07:32:00Z
f = 1.5
[[s]]
n = 1
[[s]]
n = \'\'\'a
\'\'\'
[s.sub]
m = 2
'''
    tomllib.loads(text)
    lines = toml_lines.lines_of(text)
    expected: dict[toml_lines.Path, int] = {
        ("top",): 2,
        ("a", "b", "c d"): 6,
        ("t", "u"): 8,
        ("t", "u", "list"): 9,
        ("t", "u", "list", 0): 10,
        ("t", "u", "list", 1, 1): 11,
        ("t", "u", "list", 2, "k"): 11,
        ("t", "u", "list", 2, "l", 0): 12,
        ("t", "u", "date"): 14,
        ("t", "u", "f"): 15,
        ("s", 0): 16,
        ("s", 0, "n"): 17,
        ("s", 1, "n"): 19,
        ("s", 1, "sub", "m"): 22,
    }
    assert {path: lines.get(path) for path in expected} == expected


scalars = st.one_of(
    st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8)
)
keys = st.text(min_size=1, max_size=6)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=6)


def toml_string(text: str) -> str:
    # JSON's escapes are TOML's, but for half of a surrogate pair and DEL.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_value(value: object) -> str:
    if isinstance(value, str):
        return toml_string(value)
    if isinstance(value, list):
        return "[" + ",\n".join(map(toml_value, value)) + "]"
    return json.dumps(value)


@given(st.dictionaries(keys, st.dictionaries(keys, values, max_size=3), max_size=4))
def test_every_key_of_any_document_has_its_line(document: dict[str, dict[str, object]]) -> None:
    """On the line that is named stands the key, whatever strings and lists are around it."""
    text = ""
    for section, table in document.items():
        text += f"[{toml_string(section)}]\n"
        for key, value in table.items():
            text += f"{toml_string(key)} = {toml_value(value)} # = [\n"
    assert tomllib.loads(text) == document
    rows = text.split("\n")
    lines = toml_lines.lines_of(text)
    for section, table in document.items():
        assert rows[lines[(section,)] - 1] == f"[{toml_string(section)}]"
        for key in table:
            assert rows[lines[(section, key)] - 1].startswith(f"{toml_string(key)} = ")


# Certificates


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def about_certificates(write: Write, certificates: object, more: str = "") -> tuple[list[str], list[str]]:
    """The errors and warnings about `tls.certificates`, on this machine."""
    text = SOURCE.replace("[[", f"[tls]\ncertificates = {json.dumps(certificates)}\n{more}\n[[", 1)
    checked = reading.read(write(text))
    machine.check(checked)
    found = [[str(each) for each in list if "tls" in each.key] for list in (checked.errors, checked.warnings)]
    return found[0], found[1]


def test_good_certificates_are_silent(write: Write, authority: Authority) -> None:
    """Two files, or one with both; of any kind of key."""
    chain, key = authority.issue("pop.example.org", rsa=True)
    both = Path(chain).with_name("both.pem")
    both.touch(mode=0o600)
    both.write_text(Path(key).read_text() + Path(chain).read_text())
    assert about_certificates(write, [list(authority.issue("a.example.org")), str(both)]) == ([], [])


def test_what_is_wrong_with_a_certificate_is_said(write: Write, authority: Authority) -> None:
    """In words, with the place in the list."""
    chain, key = authority.issue("pop.example.org")
    other_chain, other = authority.issue("other.example.org")
    with_phrase, damaged = Path(key).with_name("phrase.key"), Path(key).with_name("damaged.key")
    command = ["openssl", "pkey", "-in", key, "-aes128", "-passout", "pass:secret", "-out", str(with_phrase)]
    subprocess.run(command, check=True, timeout=20)
    damaged.write_text(Path(key).read_text()[:-40])
    for pair, problem in (
        ([chain, other], "the key is not the certificate's"),
        (chain, f"there is no key in PEM form in {chain}; a certificate and its key in two files are a list"),
        ([key, chain], f"there is no certificate in PEM form in {key}"),
        ([chain, other_chain], f"there is no key in PEM form in {other_chain}\n"),
        ([chain, str(with_phrase)], "the key needs a pass phrase"),
        ([chain, str(damaged)], "the certificate, or the key, is damaged"),
        ([chain, "/nowhere.pem"], "/nowhere.pem can't be read: No such file"),
        (list(authority.issue("mail.example.org", usage="clientAuth")), "it is not for a server"),
    ):
        errors, _ = about_certificates(write, [list(authority.issue("a.example.org")), pair])
        assert len(errors) == 1, errors
        assert "tls.certificates[2]" in errors[0]
        assert problem in errors[0] + "\n"
    for value in (["chain.pem", "key.pem"], [chain], [chain, key, key], 7):
        assert (
            "expected"
            in only_problem(
                write(SOURCE.replace("[[", f"[tls]\ncertificates = [{json.dumps(value)}]\n[[", 1))
            ).text
        )


@pytest.mark.parametrize("days", [30, -1])
@pytest.mark.parametrize("version", sorted(certificates.VERSIONS))
@pytest.mark.parametrize("rsa", [False, True])
def test_what_a_certificate_says_is_read(authority: Authority, days: int, version: str, rsa: bool) -> None:
    """Its names, and its end, as openssl tells them; of one that has expired, and with any tls.ciphers."""
    chain, key = authority.issue("Pop.example.org", "*.example.net", file="read", days=days, rsa=rsa)
    loaded = certificates.load(chain, key, version, "ALL:@SECLEVEL=0")
    command = ["openssl", "x509", "-in", chain, "-noout", "-enddate", "-dateopt", "iso_8601"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout
    assert loaded.not_after == said.strip().removeprefix("notAfter=").replace(" ", "T")
    assert loaded.names == ["pop.example.org", "*.example.net"]


def test_ciphers_have_to_exist_and_to_fit_the_key(write: Write, authority: Authority) -> None:
    """What no client could agree to is found before one tries."""
    pair = list(authority.issue("pop.example.org"))
    for ciphers, problem in (
        ("NONSENSE", "names no cipher that there is"),
        ("ECDHE-RSA-AES128-GCM-SHA256", "none of tls.ciphers fits the key"),
    ):
        errors, _ = about_certificates(write, [pair], f'ciphers = "{ciphers}"')
        assert len(errors) == 1
        assert problem in errors[0]
    good = 'ciphers = "ECDHE-ECDSA-AES128-GCM-SHA256"'
    assert about_certificates(write, [pair], good) == ([], [])


def test_certificates_that_are_unwise_are_warnings(write: Write, authority: Authority) -> None:
    """Soon at their end, past it, without a name, with a key for everybody."""
    chain, key = authority.issue("soon.example.org", days=5)
    assert "expires on" in about_certificates(write, [[chain, key]])[1][0]
    chain, key = authority.issue("open.example.org")
    os.chmod(key, 0o644)
    assert "everybody can read the key" in about_certificates(write, [[chain, key]])[1][0]
    chain, key = authority.issue("past.example.org", days=-1)
    assert "has expired" in about_certificates(write, [[chain, key]])[1][0]


def test_tls_needs_a_certificate_and_addresses_of_its_own(write: Write) -> None:
    """An address is listened on once, with or without TLS."""
    text = SOURCE + '[server]\nlisten = ["127.0.0.1:110"]\nlisten_tls = ["127.0.0.1:110"]\n'
    found = " ".join(str(each) for each in problems(write(text)))
    assert "without a certificate there is no TLS" in found
    assert "listened on twice" in found


# Virtual users

VIRTUAL = "[accounts.virtual]\n"


@pytest.mark.parametrize(
    "line, words",
    [
        ('sendmail_maps = ["/etc/mail/virtusertable"]', "the type is missing"),
        ('postfix_maps = ["mysql:/etc/x"]', "type 'mysql' is none of text, lmdb, hash, btree, cdb"),
        ('postfix_maps = ["hash:virtual"]', "the path is absolute"),
        ("postfix_maps = [1]", "expected a type"),
        ('default_domains = "example.org"', "expected a table from local addresses to domains"),
        ('default_domains = { "192.0.2.300" = "example.org" }', '"192.0.2.300" is neither an IP address'),
        ('default_domains = { "192.0.2.1" = "@example.org" }', '"@example.org" is no domain'),
        ('default_domains = { "::1" = "a.example", "0::1" = "b.example" }', '"0::1" stands there twice'),
        ('local_domains = ["example.org."]', "expected a domain"),
        ('case = "lower"', 'expected "keep", "fold_domain" or "fold"'),
        ('domain_separators = "a"', "expected punctuation"),
        ('domain_separators = "@"', "expected punctuation"),
        ('postfix_maps = ["hash:/etc/x", "hash:/etc/x.db"]', "/etc/x.db stands here for the second time"),
    ],
)
def test_a_wrong_setting_of_virtual_users(write: Write, line: str, words: str) -> None:
    """What was written, and what would be right."""
    problem = only_problem(write(SOURCE.replace("[[", f"{VIRTUAL}{line}\n[[", 1)))
    assert words in problem.text
    assert problem.key.startswith("accounts.virtual.") and problem.line == 2


def test_a_table_of_default_domains(write: Write) -> None:
    """In line or with a header of its own; addresses are compared in their normal form."""
    table = '[accounts.virtual.default_domains]\n"192.0.2.1" = "Example.org"\n"2001:DB8::0" = "x.example"\n'
    found = reading.read(write(table + SOURCE))
    assert not found.errors
    expected = {"192.0.2.1": "Example.org", "2001:db8::": "x.example"}
    assert found.config().auth.virtual_default_domains == expected


def test_maps_are_opened(write: Write, tmp_path: Path) -> None:
    """Missing, damaged, writable by everybody: errors. Bad lines, and one older than its source: warnings."""
    (tmp_path / "text").write_text("joe@x.example\n")
    (tmp_path / "open").write_text("joe@x.example joe\n")
    (tmp_path / "open").chmod(0o666)
    (tmp_path / "old").write_text("joe@x.example joe\n")
    lmdbfile.write(str(tmp_path / "old.lmdb"), {b"joe@x.example": b"joe"})
    os.utime(tmp_path / "old.lmdb", (1e9, 1e9))
    os.utime(tmp_path / "old", (1e9 + 1, 1e9 + 1))
    (tmp_path / "bad.db").write_bytes(b"nothing" * 1000)
    maps = ["text:text", "text:open", "lmdb:old", "hash:bad", "cdb:none"]
    written = json.dumps([each.replace(":", f":{tmp_path}/") for each in maps])
    found = reading.read(write(f"{VIRTUAL}postfix_maps = {written}\n{SOURCE}"))
    machine.check(found)
    errors = {each.key: each.text for each in found.errors if "virtual" in each.key}
    assert list(errors) == [f"accounts.virtual.postfix_maps[{n}]" for n in (2, 4, 5)]
    assert "everybody can write" in errors["accounts.virtual.postfix_maps[2]"]
    assert "damaged: no Berkeley DB file" in errors["accounts.virtual.postfix_maps[4]"]
    assert "No such file" in errors["accounts.virtual.postfix_maps[5]"]
    warnings = [str(each) for each in found.warnings]
    assert any(f"{tmp_path}/text:1: a key without a value" in each for each in warnings)
    assert any("old.lmdb is older than its source" in each for each in warnings)


def test_lmdb_needs_its_package(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has not installed it is told its name, before anything starts."""
    lmdbfile.write(str(tmp_path / "virtual.lmdb"), {b"joe@x.example": b"joe"})
    found = reading.read(write(f'{VIRTUAL}postfix_maps = ["lmdb:{tmp_path}/virtual"]\n{SOURCE}'))
    monkeypatch.setitem(sys.modules, "lmdb", None)
    machine.check(found)
    assert ["pip install 'gpop[maps]'" in each.text for each in found.errors if "virtual" in each.key] == [
        True
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = " + "[" * 3000 + "]" * 3000, "nested deeper than can be read"),
        ("a = " + "{b=" * 900 + "1" + "}" * 900, "nested deeper than can be read"),
        ("a." * 3000 + "b = 1", "unknown setting"),
        ("[server]\nfronts = " + "9" * 5000, "more digits than can be read"),
        ("[server]\nfronts = 0x" + "f" * 5000, "expected"),
        ("[session]\nlock_wait_s = " + "9" * 400, "expected"),
    ],
    ids=["array", "table", "key", "decimal", "hexadecimal", "beyond a float"],
)
def test_what_is_too_deep_or_too_large_is_a_problem_in_words(write: Write, text: str, words: str) -> None:
    """Each of these was a traceback: Python has limits of its own for nesting and for numbers."""
    found = reading.read(write(text + "\n"))
    assert any(words in problem.text for problem in found.errors)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: only root can give a file away")
def test_files_that_decide_who_is_served_are_roots(write: Write, tmp_path: Path) -> None:
    """Whose they are may let himself in as anybody: a warning names him, or a group that may write there."""
    users = tmp_path / "users"
    users.touch(mode=0o600)
    path = write(f'[[accounts.sources]]\ntype = "passwd-file"\npath = "{users}"\n[server]\nuser = "nobody"\n')
    for uid, about in ((0, []), (61007, ["", "accounts.sources[1].path"])):
        os.chown(users, uid, uid)
        os.chown(path, uid, uid)
        checked = reading.read(path)
        machine.check(checked)
        found = [problem for problem in checked.warnings if "belongs to uid 61007" in problem.text]
        assert [problem.key for problem in found] == about
    for group, about in ((0, []), (61007, ["", "accounts.sources[1].path"])):
        for file in (users, Path(path)):
            os.chown(file, 0, group)
            file.chmod(0o660)
        checked = reading.read(path)
        machine.check(checked)
        found = [problem for problem in checked.warnings if "group 61007 can write to" in problem.text]
        assert [problem.key for problem in found] == about


def test_more_connections_than_descriptors_are_a_warning(write: Write) -> None:
    """The front takes as many as it can have; who set the number is told of which limit that is."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    path = write(f"{SOURCE}[server]\nmax_connections = 1000\n")
    assert "open files" not in str(machine_problems(path).warnings)
    command = [
        "prlimit",
        f"--nofile=512:{limit}",
        sys.executable,
        "-m",
        "gpop",
        "check-config",
        "--config",
        str(path),
    ]
    assert "open files" not in subprocess.run(command, capture_output=True, text=True, check=False).stdout
    command[1] = "--nofile=512:512"
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    (warning,) = [line for line in found.splitlines() if "open files" in line]
    assert warning.startswith(f"warning: {path}:5: server.max_connections = 1000: ")
    assert "512 open files (LimitNOFILE, ulimit -Hn)" in warning and "holds 448 connections" in warning
    assert warning.endswith("a limit of 2000")
