"""The peers that are libraries, each as the smallest application its own documentation would write.

The origin's address is in the environment as ORIGIN.
"""
