"""Distributed execution: launchers, rendezvous, preflight, process group, sums over ranks, stops, watchdog and Slurm.

This package knows nothing about data or networks, and of run folders only their paths. Job submission is in launch/.
"""
