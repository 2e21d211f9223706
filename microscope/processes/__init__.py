"""Processes that other processes start: their manners, their limits, and how they are supervised."""
