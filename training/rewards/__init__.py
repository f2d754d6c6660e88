"""Reward functions for TRL: pure, one a quality, each returning one number or `None` a completion."""

from .format import format_reward
from .labels import label_reward

__all__ = ["format_reward", "label_reward"]
