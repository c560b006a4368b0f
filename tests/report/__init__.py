"""Tests of gpop report."""
