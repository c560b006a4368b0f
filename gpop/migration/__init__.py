"""Unique-ids of other servers: reading what they left behind, and planning what a Maildir gets of it."""
