"""A small web with known truth, drawn by program and served on loopback: the embedded default."""

from infra.miniweb.launch import MiniwebConfig, MiniwebError, RunningWeb, running

__all__ = ["MiniwebConfig", "MiniwebError", "RunningWeb", "running"]
