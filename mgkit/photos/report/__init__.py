"""The results of 06 as one HTML file and as figures."""
