"""Tests of the driver that need no host."""
