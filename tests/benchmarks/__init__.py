"""Benchmarks: what the losses cost beside plain eager code, by time and by memory."""
