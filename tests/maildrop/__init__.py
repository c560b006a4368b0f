"""Tests of gpop.maildrop, on real Maildirs."""
