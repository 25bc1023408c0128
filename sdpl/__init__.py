"""sdpl: multi-label image recognition with partial labels, from training to production."""

__version__ = "0.1.0"
