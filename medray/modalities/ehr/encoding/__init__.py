"""Events to the arrays that a network is given."""
