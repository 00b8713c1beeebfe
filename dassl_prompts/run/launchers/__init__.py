"""Where the runs of a plan are carried out: on this machine, by SLURM, or by a script for another batch system."""
