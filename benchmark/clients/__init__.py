"""The clients of a round: how they train under a defense, what they send, and what that guarantees."""
