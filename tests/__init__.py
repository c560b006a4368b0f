"""Tests of gpop; a package, so that its parts can share `tests.dialogue` and the corpus."""
