"""Reward functions for TRL, each returning one number or `None` a completion."""

from .format import format_reward
from .labels import label_reward
from .trust import trust_rewards

__all__ = ["format_reward", "label_reward", "trust_rewards"]
