"""Twins of the Hub's repositories on a loopback server of our own: what the paper scale reads, narrow, without the Hub."""
