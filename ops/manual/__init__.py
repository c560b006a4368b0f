"""The manual pages gpop(1) and gpop.toml(5), and completions for shells, made of what the code says."""
