"""Attention kernels of accelerators, each behind the same signature; `models/attention.py` chooses."""
