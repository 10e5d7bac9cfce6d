"""The clients of a round: how they train, what they send under a defense, and which privacy guarantee that gives."""

from benchmark.clients.federation import AttackerKnowledge, Round, draw_victim, image_counts, observe

__all__ = ["AttackerKnowledge", "Round", "draw_victim", "image_counts", "observe"]
