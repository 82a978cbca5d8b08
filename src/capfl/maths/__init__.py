"""Numbers in, numbers out: Gamma posteriors, random features and budgets, one noun a file."""
