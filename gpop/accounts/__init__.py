"""Who may log in, and as which account: executed by auth, as root; what fronts execute of it says so."""
