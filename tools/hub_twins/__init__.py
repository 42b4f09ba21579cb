"""Twins of the Hub's repositories on a loopback server: what the paper scale reads, narrow, without the Hub."""
