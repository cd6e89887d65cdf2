"""Pixels along an order, each computed once."""
