"""The POP3 protocol itself: octets in, decisions and octets out. No socket, file, clock or configuration."""
