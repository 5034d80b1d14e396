"""Devices, processes, progress bars, files and downloads."""
