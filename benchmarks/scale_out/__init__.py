"""How far a study scales, in workers and in trials."""
