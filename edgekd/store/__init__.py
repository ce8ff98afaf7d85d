"""The store of finished work: immutable artifacts by key (`store`), how keys are made of code, data and settings
(`fingerprint`), locks."""
