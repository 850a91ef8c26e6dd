"""The network: blocks, parameter budget, initial weights.

The code that trains it is in training/; its weight files are handled in evaluation/.
"""
