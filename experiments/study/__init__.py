"""Who trains them: a study, its trials, and one worker."""
