"""Graft's serving side: the HTTP endpoint for exported models."""
