"""Fills from paid services over the network, through their own clients."""
