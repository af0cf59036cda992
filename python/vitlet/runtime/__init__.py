"""Runs a bundle on a device, without torch."""
