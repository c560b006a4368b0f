"""
The look-up orders of sendmail and Postfix, written down slowly and obviously: what gpop's are compared with.

`maps` are dictionaries with folded keys. A result is a list of names, an "error: ..." string, or None.
"""

from __future__ import annotations

import re

Found = list[str] | str | None


def sendmail(maps: list[dict[str, str]], name: str) -> Found:
    """One step through a virtusertable."""
    if "@" not in name:
        tries = [(name, {"%1": name})]
    else:
        local, domain = name.rsplit("@", 1)
        tries = [(name, {"%1": local})]
        match = re.fullmatch(r"(.[^+]*)\+(.*)", local, re.DOTALL)
        if match:
            user, detail = match.groups()
            parts = {"%1": user, "%2": detail, "%3": "+" + detail}
            if detail != "":
                tries.append((f"{user}++@{domain}", parts))
            tries.append((f"{user}+*@{domain}", parts))
            tries.append((f"{user}@{domain}", parts))
            if detail != "":
                tries.append((f"++@{domain}", parts))
            tries.append((f"+*@{domain}", parts))
            tries.append((f"@{domain}", parts))
        else:
            tries.append((f"@{domain}", {"%1": local}))
    for key, parts in tries:
        for each in maps:
            if key.lower() in each:
                value = each[key.lower()]
                if value.startswith("error:"):
                    return value
                parts = {"%0": key.lower(), "%%": "%", **parts}
                return [re.sub(r"%[0-9%]", lambda found, parts=parts: parts.get(found[0], ""), value)]
    return None


def postfix(
    maps: list[dict[str, str]], name: str, delimiter: str, propagate: bool, local_domains: set[str]
) -> Found:
    """One step through virtual alias maps."""
    if "@" not in name and "." in name:
        return None
    local, _, domain = name.rpartition("@") if "@" in name else (name, "", None)
    bare, extension = local, ""
    if delimiter and delimiter in local[1:] and not local.startswith(delimiter):
        bare = local[: local.index(delimiter)]
        extension = local[local.index(delimiter) :]
    tries: list[tuple[str, str]] = []
    if domain is None:
        tries = [(local, ""), (bare, extension)]
    else:
        tries = [(f"{local}@{domain}", ""), (f"{bare}@{domain}", extension)]
        if domain.lower() in local_domains:
            tries += [(local, ""), (bare, extension)]
        tries += [(f"@{domain}", "")]
    for key, unmatched in tries:
        for each in maps:
            if key.casefold() in each:
                value = each[key.casefold()]
                if value.startswith("@"):
                    kept = local.removesuffix(unmatched) if unmatched else local
                    value = kept + value
                results = re.split(r"[, ]+", value.strip(", "))
                if propagate and unmatched:
                    results = [_with_extension(result, unmatched) for result in results]
                return results
    return None


def _with_extension(name: str, extension: str) -> str:
    local, at, domain = name.rpartition("@") if "@" in name else (name, "", "")
    return local + extension + at + domain
