"""Who may log in, and as which account: executed by auth alone, as root."""
