"""The boundaries between gpop's processes: frames, channels, and giving up root."""
