"""The clients of a round: how they train under a defense, what they send, and what that guarantees."""

from benchmark.clients.federation import Granted, Round, draw_victim, image_counts, observe

__all__ = ["Granted", "Round", "draw_victim", "image_counts", "observe"]
