"""How wrong logits are: each loss a class in its own file, chosen by its name in `loss`."""
