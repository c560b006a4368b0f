"""gpop: a POP3 server for Maildir stores."""

__version__ = "0.1.0"
