"""The paper's claims, measured on public logs beside strong peers: `make bench-quality`."""
