"""Logit reducers: pure functions of one chunk of logits, called while the head is walked, so [N,T,V] never exists."""
