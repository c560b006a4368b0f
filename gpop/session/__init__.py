"""The session: the mail user, in a jail; TRANSACTION and UPDATE. `session` is the process."""
