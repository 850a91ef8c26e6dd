"""The network: its blocks, its parameter budget, its initial weights.

What trains it is in training/, its files of weights are in evaluation/.
"""
