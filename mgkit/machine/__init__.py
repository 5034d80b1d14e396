"""What the kit runs on: devices, processes, progress, files and downloads."""
