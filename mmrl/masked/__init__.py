"""Canvases that are filled in steps: step maps, fill sets, views. Shared by language and images."""
