"""Kinds of bounds: each file is one, named as its class BOUND is; its first line says what it bounds."""
