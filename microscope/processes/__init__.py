"""Processes that other processes start: what they do about that, what they may take, and how they are supervised."""
