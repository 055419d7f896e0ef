"""Policies trained on a judge's feedback, online and by DPO, and what became of them."""
