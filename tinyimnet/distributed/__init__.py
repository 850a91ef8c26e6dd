"""Many processes as one program: launchers, rendezvous, preflight, process group, sums over ranks, requests to stop, Slurm.

It knows nothing of data, networks or run folders beyond their paths. Submitting jobs is in launch/.
"""
