"""Who trains them: a study, its trials, and the workers of this machine."""
