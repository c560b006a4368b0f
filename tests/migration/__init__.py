"""Tests of gpop.migration."""
