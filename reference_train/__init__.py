"""The reference trainer: run from the repository, not installed (see README.md here)."""
