"""Models: plain torch modules that know nothing of Ray, each with its Spec."""
