"""Trust: the rubric and its judges, risk in a conversation, and what a reply must do about it."""
