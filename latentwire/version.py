"""The program's version, which every checkpoint and export names."""

VERSION = "0.1.0"
