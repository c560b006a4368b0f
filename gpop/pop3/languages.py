"""
What a client understands: whether UTF-8, and which language (RFC 6856).

All replies are written in English. `Speech.said` puts a finished one into the client's language, just
before it is sent: so who asked for no language pays for none, and no other part of gpop knows that there
are several. What is no human-readable text never changes: response codes, numbers, the answers to STAT, LIST
and UIDL. Pure. Executed by the front and by the session.
"""

from __future__ import annotations

from gpop.pop3.decisions import Reply
from gpop.pop3.wire import err, multiline, ok

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_CHANGED = "language changed"
_NO_SUCH_LANGUAGE = Reply(err("No such language"))


class Language:
    """One language: its tag (RFC 5646), its name in itself, and the translations there are."""

    __slots__ = ("_ascii", "_name", "_texts", "tag")

    def __init__(self, tag: str, octets: bytes) -> None:
        """`octets` are those of a file as `gpop.languages` describes it; any other line means nothing."""
        self.tag = tag
        self._name = tag
        self._texts: dict[str, str] = {}
        self._ascii: dict[int, str] = {}
        for line in octets.decode("utf-8", "replace").split("\n"):
            english, equals, translation = line.partition(" = ")
            if line.startswith("name: "):
                self._name = line.removeprefix("name: ")
            elif line.startswith("ascii: "):
                pairs = [pair.partition("=") for pair in line.removeprefix("ascii: ").split(" ")]
                self._ascii = {ord(letter): instead for letter, _, instead in pairs if len(letter) == 1}
            elif equals and not line.startswith("#"):
                self._texts[english] = translation

    def text(self, english: str, utf8: bool) -> bytes | None:
        """The translation of a text, in ASCII unless `utf8`; None if there is none."""
        translation = self._texts.get(english)
        return None if translation is None else self._written(translation, utf8)

    def name(self, utf8: bool) -> bytes:
        return self._written(self._name, utf8)

    def _written(self, text: str, utf8: bool) -> bytes:
        """
        A text as it goes out.

        Only who has said UTF8 gets octets outside ASCII. RFC 6856 §3.2 has texts in UTF-8 after LANG, §2.1
        wants none before UTF8: ASCII is right by both, and readable (the RFC's example: "es Espanol").
        """
        return text.encode() if utf8 else text.translate(self._ascii).encode("ascii", "replace")


ENGLISH = Language("en", b"name: English")


class Languages:
    """The languages that a client can choose from. English is always there."""

    __slots__ = ("_files", "_known", "preferred")

    def __init__(self, files: Mapping[str, bytes], preferred: str = "en") -> None:
        """`files` are those of `gpop.languages`; `preferred` is the tag of the one that `LANG *` means."""
        self._files = files
        self._known = {ENGLISH.tag: ENGLISH}
        self.preferred = preferred

    def all(self) -> list[Language]:
        return [ENGLISH, *map(self._taken_apart, self._files)]

    def find(self, wanted: str) -> Language | None:
        """
        Return the language that a basic language range (RFC 4647 §2.1) means; None if there is no such.

        A range that is too narrow (de-AT) means what is left of it when its end is cut off (RFC 4647 §3.4).
        """
        wanted = (self.preferred if wanted == "*" else wanted).lower()
        while wanted:
            for tag in (ENGLISH.tag, *self._files):
                if tag.lower() == wanted or tag.lower().startswith(wanted + "-"):
                    return self._taken_apart(tag)
            wanted = wanted.rpartition("-")[0]
        return None

    def _taken_apart(self, tag: str) -> Language:
        if tag not in self._known:
            self._known[tag] = Language(tag, self._files[tag])
        return self._known[tag]


class Speech:
    """How to speak with one client. `utf8`: it has said UTF8, and so gets texts in UTF-8."""

    __slots__ = ("_languages", "language", "utf8")

    def __init__(self, languages: Languages, tag: str = "", utf8: bool = False) -> None:
        """`tag` is that of the language which the client has chosen where it spoke before the login."""
        self._languages = languages
        self.utf8 = utf8
        self.language = (languages.find(tag) if tag else None) or ENGLISH

    @property
    def tag(self) -> str:
        """The tag of the language; "" for English, which needs no translation."""
        return "" if self.language is ENGLISH else self.language.tag

    def lang(self, wanted: bytes) -> Reply:
        """LANG (RFC 6856 §3): list the languages, or change to the one that is wanted."""
        if not wanted:
            lines = [
                b"%b %b" % (language.tag.encode(), language.name(self.utf8))
                for language in self._languages.all()
            ]
            return Reply(multiline(ok("language list follows"), lines))
        language = self._languages.find(wanted.decode("latin-1"))
        if language is None:
            return _NO_SUCH_LANGUAGE
        self.language = language
        return Reply(b"+OK %b %b\r\n" % (language.tag.encode(), self.text(_CHANGED)))

    def text(self, english: str) -> bytes:
        """A text that is only a part of a reply."""
        return self.language.text(english, self.utf8) or english.encode("ascii")

    def said(self, reply: bytes) -> bytes:
        """Return a whole reply with the text of its first line in the client's language."""
        if self.language is ENGLISH:
            return reply
        line, line_end, rest = reply.partition(b"\r\n")
        status, _, text = line.partition(b" ")
        code = b""
        if text.startswith(b"["):
            code, _, text = text.partition(b"] ")
            code += b"] "
        translation = self.language.text(text.decode("latin-1"), self.utf8)
        if translation is None:
            return reply  # no text: numbers, unique-ids, a challenge
        return b"%b %b%b%b%b" % (status, code, translation, line_end, rest)
