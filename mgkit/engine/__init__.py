"""The machinery of runs: folders, worker processes, the training loop, snapshots, features on disk."""
