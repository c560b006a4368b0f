"""The broker: root, lean; supervises, and forks sessions. `broker` is the process."""
