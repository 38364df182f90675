"""What is learnt and by what: models, objectives, metrics, training, bundles."""
