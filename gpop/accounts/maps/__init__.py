"""
Virtual user maps: from a login name to the account that it means.

`sendmail` and `postfix` are the two ways to read a map, `resolving` follows a name through
it, `grammar` is the text of a map; all of these are pure. `textfile`, `lmdbfile`,
`berkeleydb` and `cdb` read one type of file each, `virtualusers` has all that a config names.
docs/virtual-users.md says it to operators. Executed by auth's checkers, as root; auth itself
only reads texts again that have changed.
"""
