"""
A Maildir as a POP3 maildrop, and the statcache that makes polling it cheap.

Read in this order: names, statcache, table, listing, reconcile, model (pure); then system, maildir, lock,
cachefile, stock, renewal, opening, opened, update (edges). `hit` is the short way of a poll, in one function.
docs/statcache.md has the format and the states of the cache.
"""
